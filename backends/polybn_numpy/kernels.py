"""Arithmetic on channel rows: contiguous matrices ``(channels, m)`` in the type of the statistics.

A row holds the values of one channel in the order of clause S1. All functions work on rows, in place where
possible; :mod:`polybn_numpy.blocks` copies arrays to rows and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[Any]  # (channels, m)
Column: TypeAlias = NDArray[Any]  # (channels, 1)
Mask: TypeAlias = NDArray[np.bool_]  # (channels, m), True where a value takes part

# BLAS adds up a chunk of values in 16 or more lanes, and the chunks are added in a wider type: a float32 sum over any m
# errs by less than 40 u, and the equal differences of a constant channel add up exactly (S8). One long float32 dot
# product would err by m / 64 u, and NumPy's own float32 sums by m u in the worst layout. Float64 has shorter chunks,
# because the sum of 512 equal terms can drift by a few u.
CHUNK = {np.dtype(np.float32): 512}
SHORT_CHUNK = 64


class Statistics(NamedTuple):
    """Statistics as in S2 and S3, a column each, of the rows times ``2^-exponent``.

    The exponent is 0 except in channels that S10 rescues.
    """

    m1: Column
    delta: Column
    v: Column
    r: Column
    exponent: NDArray[np.int32]

    def mean(self) -> Column:
        """Return the mean of the original values."""
        mean: Column = np.ldexp(self.m1 + self.delta, self.exponent)
        return mean

    def variance(self) -> Column:
        """Return the biased variance of the original values."""
        return np.ldexp(self.v, 2 * self.exponent)

    def inverse_root(self) -> Column:
        """Return ``r`` of the original values."""
        return np.ldexp(self.r, -self.exponent)


def sums(rows: Rows) -> Column:
    """Add up each row, in a wider type across chunks."""
    (channels, m), chunk = rows.shape, _chunk(rows)
    rest = m % chunk
    total: NDArray[Any] = np.zeros(channels, _wider(rows))
    if rest:
        total += rows[:, m - rest :] @ np.ones(rest, rows.dtype)
    if m > rest:
        chunks = rows[:, : m - rest].reshape(channels, -1, chunk)
        total += (chunks @ np.ones(chunk, rows.dtype)).sum(axis=1, dtype=total.dtype)
    return total[:, None]


def dots(a: Rows, b: Rows) -> Column:
    """Return the inner product of each row of ``a`` with that of ``b``, in a wider type across chunks."""
    (channels, m), chunk = a.shape, _chunk(a)
    rest = m % chunk
    total: NDArray[Any] = np.zeros(channels, _wider(a))
    if rest:
        total += (a[:, None, m - rest :] @ b[:, m - rest :, None])[:, 0, 0]
    if m > rest:
        left, right = (z[:, : m - rest].reshape(channels, -1, chunk) for z in (a, b))
        total += (left[:, :, None, :] @ right[:, :, :, None]).sum(axis=(1, 2, 3), dtype=total.dtype)
    return total[:, None]


def _chunk(rows: Rows) -> int:
    return CHUNK.get(rows.dtype, SHORT_CHUNK)


def _wider(rows: Rows) -> type:
    return np.float64 if rows.dtype == np.float32 else np.longdouble


def subtract(rows: Rows, column: Column, kept: Mask | None) -> None:
    """Subtract a column in place, leaving 0 in deleted places (S12)."""
    rows -= column
    if kept is not None:
        np.copyto(rows, 0, where=~kept)


def center(rows: Rows, counts: Column, kept: Mask | None = None) -> tuple[Column, Column, Column]:
    """Turn rows of ``x`` into ``x - m1 - delta`` in place; return ``m1, delta, v`` (S2)."""
    dtype = rows.dtype
    m1 = (sums(rows) / counts).astype(dtype)
    subtract(rows, m1, kept)
    delta = (sums(rows) / counts).astype(dtype)
    v = np.maximum((dots(rows, rows) / counts).astype(dtype) - delta * delta, 0)
    subtract(rows, delta, kept)
    return m1, delta, v


def standardize(
    load: Callable[[], Rows], counts: Column, eps: float, kept: Mask | None = None
) -> tuple[Rows, Statistics]:
    """Centre the rows that ``load`` returns, and measure them.

    If a channel leaves the range, rows are loaded again and scaled first (S10), so ``load`` must return fresh rows.
    """
    rows = load()
    m1, delta, v = center(rows, counts, kept)
    exponent = np.zeros(v.shape, np.int32)
    strayed = out_of_range(v, eps)
    if strayed.any():
        rows = load()
        exponent = np.where(strayed, exponents(rows, eps), exponent)
        np.ldexp(rows, -exponent, out=rows)
        m1, delta, v = center(rows, counts, kept)
    r = inverse_root(v, np.ldexp(v.dtype.type(eps), -2 * exponent))
    return rows, Statistics(m1, delta, v, r, exponent)


def inverse_root(variance: Column, eps: Column | np.floating[Any]) -> Column:
    """Return ``1 / sqrt(variance + eps)``, and 0 where both are 0 (S3)."""
    with np.errstate(all="ignore"):
        square = variance + eps
        r = np.zeros_like(square)
        np.divide(1, np.sqrt(square), out=r, where=square != 0)
        overflowed = np.isinf(square) & np.isfinite(variance)
        if overflowed.any():  # a quarter of each gives a sum in range, and half the root
            r[overflowed] = 0.5 / np.sqrt(variance / 4 + eps / 4)[overflowed]
    return r


def out_of_range(v: Column, eps: float) -> NDArray[np.bool_]:
    """Find the channels whose ``v + eps`` overflowed or came near underflow (S10)."""
    square = v + v.dtype.type(eps)
    floor = np.finfo(v.dtype).smallest_normal * v.dtype.type(2.0**64)
    strayed: NDArray[np.bool_] = ~np.isfinite(square) | (square < floor)
    return strayed


def exponents(rows: Rows, eps: float) -> NDArray[np.int32]:
    """Return an exponent per row such that its values and ``sqrt(eps)``, times ``2^-exponent``, are at most 1."""
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=math.sqrt(eps))
    return np.where(np.isfinite(largest), np.frexp(largest)[1], 0).astype(np.int32)


def affine(rows: Rows, r: Column, gamma: Column | None, beta: Column | None, kept: Mask | None = None) -> None:
    """Turn centred rows into output in place (S3), 0 in deleted places (S12)."""
    rows *= r
    if gamma is not None:
        rows *= gamma
    if beta is not None:
        rows += beta
    if kept is not None:  # deleted places now hold beta, or NaN if r is not finite
        np.copyto(rows, 0, where=~kept)


def differentiate_centering(g: Rows, xhat: Rows, counts: Column, kept: Mask | None = None) -> tuple[Column, Column]:
    """Turn ``g`` into ``g - mean(g) - xhat * mean(g * xhat)`` in place, overwriting ``xhat``; return the sums (S13)."""
    sum_g, sum_gx = sums(g), dots(g, xhat)
    xhat *= (sum_gx / counts).astype(g.dtype)
    g -= xhat
    subtract(g, (sum_g / counts).astype(g.dtype), kept)
    return sum_g, sum_gx
