"""Batch norm in plain NumPy, the readable version of the kernels: S2 to S4 and S13, a block of channels at a time.

Values of four bytes or fewer are computed in float64, whose range holds all products of such numbers. A channel of
float64 values that leaves the range is computed again in long double (S10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Arguments, Gradients
from polybn_numpy import blocks, kernels
from polybn_numpy.call import Residuals, Results
from polybn_numpy.kernels import Column, Mask, Rows

Array = NDArray[Any]

SMALLEST, LARGEST = np.finfo(np.float64).smallest_normal, np.finfo(np.float64).max
# Between these, squares of deviations, and products with them, neither lose digits nor overflow.
TINY, HUGE = 2.0**-900, 2.0**1000


class Statistics(NamedTuple):
    """The statistics of S2 and S3, a column each."""

    m1: Column
    delta: Column
    v: Column
    r: Column


class Call(NamedTuple):
    """One call and its mask, for a block of channels at a time."""

    arguments: Arguments
    counts: NDArray[np.int64]
    mask: NDArray[np.bool_] | None
    """The mask in the shape of ``x``, with the channel axis in front."""

    def rows(self, array: Array, block: slice, dtype: type, kept: Mask | None) -> Rows:
        """Gather an array that has the shape of ``x``."""
        return blocks.gather(blocks.channels_first(array, self.arguments.axis), block, dtype, kept)

    def kept(self, block: slice) -> Mask | None:
        """Gather the mask."""
        return blocks.gather_mask(self.mask, block)

    def divisor(self, block: slice) -> Column:
        """Return the number of values per channel, at least 1."""
        return np.maximum(self.counts[block, None], 1)

    def column(self, vector: Array | None, block: slice, dtype: type, default: float) -> Column:
        """Take a block of a per-channel vector as a column."""
        if vector is None:
            return np.full((1, 1), default, dtype)
        return vector[block, None].astype(dtype)

    @property
    def eps(self) -> float:
        """Eps in the type of the statistics (S3)."""
        return float(np.dtype(self.arguments.dtype).type(self.arguments.eps))


def call_of(arguments: Arguments, counts: NDArray[np.int64] | None) -> Call:
    """Make the record that all blocks share."""
    counts = np.full(arguments.channels, arguments.m, np.int64) if counts is None else counts
    return Call(arguments, counts, blocks.mask_rows(arguments.where, arguments.x.shape, arguments.axis))


def normalize(arguments: Arguments, counts: NDArray[np.int64] | None, results: Results) -> None:
    """Run the forward pass into ``results``."""
    call = call_of(arguments, counts)
    _for_each_block(call, lambda block, dtype: _normalize(call, results, block, dtype))


def differentiate(arguments: Arguments, residuals: Residuals, dy: Array, gradients: Gradients) -> None:
    """Run the backward pass into ``gradients``."""
    call = call_of(arguments, residuals.counts)
    _for_each_block(call, lambda block, dtype: _differentiate(call, residuals.saved, dy, gradients, block, dtype))


def inverse_root(v: Array, eps: Any) -> Array:
    """Return ``1 / sqrt(v + eps)``, and 0 where both are 0 (S3)."""
    square = v + eps
    r: Array = np.divide(1, np.sqrt(square), out=np.zeros_like(square), where=square != 0)
    return r


def widest(value: Any) -> Any:
    """Convert to a type whose range holds all products of such numbers."""
    return value.astype(np.float64 if value.dtype == np.float32 else np.longdouble)


def measure(rows: Rows, counts: Column, eps: float, kept: Mask | None) -> Statistics:
    """Turn rows of ``x`` into ``x - m1 - delta`` in place; return the statistics."""
    m1, delta, v = kernels.center(rows, counts, kept)
    return Statistics(m1, delta, v, inverse_root(v, eps))


def _for_each_block(call: Call, work: Callable[[slice, type], NDArray[np.bool_]]) -> None:
    """Do the work for all channels, and again in long double for channels that it reports to have left the range."""

    def twice(block: slice) -> None:
        strayed = work(block, np.float64)
        if call.arguments.dtype == "float64":
            for channel in np.flatnonzero(strayed) + block.start:
                work(slice(channel, channel + 1), np.longdouble)

    blocks.for_each_block(twice, call.arguments.channels, call.arguments.m)


def _normalize(call: Call, results: Results, block: slice, dtype: type) -> NDArray[np.bool_]:
    arguments, kept = call.arguments, call.kept(block)
    rows = call.rows(arguments.x, block, dtype, kept)
    if arguments.training:
        s = measure(rows, call.divisor(block), call.eps, kept)
        fits = (s.v >= TINY) & (s.v * call.divisor(block) <= HUGE) | (s.v == 0) & ~rows.any(axis=1, keepdims=True)
    else:
        m1, v = (call.column(z, block, dtype, 0) for z in (arguments.running_mean, arguments.running_var))
        s = Statistics(m1, np.zeros_like(m1), v, inverse_root(v, call.eps))
        kernels.subtract(rows, m1, kept)
        fits = np.ones(v.shape, np.bool_)
    slope = widest(s.r) * call.column(arguments.gamma, block, dtype, 1)
    rows *= slope.astype(dtype)
    rows += call.column(arguments.beta, block, dtype, -0.0)  # z + -0.0 is z
    fits &= _is_normal_or_zero(slope) & np.isfinite(s.v + call.eps) & np.isfinite(rows).all(axis=1, keepdims=True)
    if kept is not None:
        np.copyto(rows, 0, where=~kept)
    if results.y is not None:
        blocks.scatter(rows, blocks.channels_first(results.y, arguments.axis), block)
    strayed = ~fits[:, 0] if dtype is np.float64 else np.ones(len(rows), np.bool_)
    _report(call, results, block, s, strayed)
    return strayed


def _report(call: Call, results: Results, block: slice, s: Statistics, strayed: NDArray[np.bool_]) -> None:
    """Store the statistics of a block, and the running statistics that follow from them (S4)."""
    arguments, counts = call.arguments, call.counts[block]
    if results.saved is not None:
        m1 = s.m1.astype(np.float64)
        saved = (m1, (s.m1 - m1) + s.delta, s.v, s.r)
        for line, values in zip(results.saved, (*(z[:, 0] for z in saved), strayed), strict=True):
            line[block] = values
    mean, v = np.where(np.isnan(s.v), s.v, s.m1 + s.delta)[:, 0], s.v[:, 0]  # S9: NaN, not infinity
    for vector, values in ((results.mean, mean), (results.m2, v * counts)):
        if vector is not None:
            vector[block] = values
    if results.running_mean is None or results.running_var is None or not arguments.training:
        return
    if arguments.unbiased:
        v = v * counts / np.maximum(counts - 1, 1)
    for new, old, batch in (
        (results.running_mean, arguments.running_mean, mean),
        (results.running_var, arguments.running_var, v),
    ):
        new[block] = np.where(counts == 0, old[block], _blend(old[block].astype(v.dtype), batch, arguments.momentum))


def _blend(old: Array, batch: Array, momentum: float) -> Array:
    if momentum in (0, 1):
        return old if momentum == 1 else batch
    return momentum * old + (1 - momentum) * batch


def _differentiate(
    call: Call, saved: NDArray[np.float64], dy: Array, gradients: Gradients, block: slice, dtype: type
) -> NDArray[np.bool_]:
    arguments, kept = call.arguments, call.kept(block)
    g, m = call.rows(dy, block, dtype, kept), call.divisor(block)
    xhat, s = centered(call, saved, block, dtype, kept)
    most, reach = (np.abs(z).max(axis=1, keepdims=True, initial=0) for z in (g, xhat))
    xhat *= s.r
    slope = widest(s.r) * call.column(arguments.gamma, block, dtype, 1)
    if arguments.training:
        sum_g, sum_gx = kernels.differentiate_centering(g, xhat, m, kept)
    else:
        sum_g, sum_gx = kernels.sums(g), kernels.dots(g, xhat)
    g *= slope.astype(dtype)
    if kept is not None:  # deleted places may now hold NaN
        np.copyto(g, 0, where=~kept)
    blocks.scatter(g, blocks.channels_first(gradients.x, arguments.axis), block)
    columns = (sum_gx, sum_g, -slope * sum_g, -slope * s.r * sum_gx / 2)
    for vector, values in zip(gradients[1:], columns, strict=True):
        if vector is not None:
            vector[block] = values[:, 0]
    finite = np.isfinite(g).all(axis=1, keepdims=True) & np.isfinite(sum(np.abs(column) for column in columns))
    along = sum_gx / m
    fits = _is_normal_or_zero(slope) & finite & _has_digits(most)
    fits &= _has_digits(reach, s.r) & _has_digits(most, reach) & _has_digits(most, reach, s.r)
    fits &= _has_digits(along, reach, s.r)
    strayed: NDArray[np.bool_] = (~fits[:, 0]) | (saved[4, block] != 0)
    return strayed


def centered(
    call: Call, saved: NDArray[np.float64], block: slice, dtype: type, kept: Mask | None
) -> tuple[Rows, Statistics]:
    """Return ``x - mean`` as rows, and the statistics: the saved ones, or new ones in long double."""
    arguments = call.arguments
    rows = call.rows(arguments.x, block, dtype, kept)
    if dtype is np.longdouble and arguments.training:
        return rows, measure(rows, call.divisor(block), call.eps, kept)
    m1, delta, v, r = (line[block, None].astype(dtype) for line in saved[:4])
    kernels.subtract(rows, m1, kept)
    if arguments.training:
        kernels.subtract(rows, delta, kept)
    return rows, Statistics(m1, delta, v, inverse_root(v, call.eps) if dtype is np.longdouble else r)


def _is_normal_or_zero(slope: Column) -> NDArray[np.bool_]:
    size = np.abs(slope)
    fits: NDArray[np.bool_] = (size == 0) | (size >= SMALLEST) & (size <= LARGEST)
    return fits


def _has_digits(*factors: Column) -> NDArray[np.bool_]:
    """Return where a product is 0 because a factor is, or so large that it loses no digits to underflow."""
    product = np.abs(math.prod(factors))
    has: NDArray[np.bool_] = (product >= TINY) | np.any([factor == 0 for factor in factors], axis=0)
    return has
