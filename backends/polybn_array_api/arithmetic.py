"""Clauses S2, S3 and S10 on rows: the statistics, and products that leave the range only if their result does."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from polybn.spec import Array
from polybn_array_api.layout import Layout


class Statistics(NamedTuple):
    """The statistics of S2 and S3, one column each; all except ``unit`` describe ``x * scale``."""

    scale: Array
    """A power of two for each channel; None if all would be 1."""
    m1: Array
    delta: Array
    v: Array
    r: Array
    unit: Array
    """``r * unit`` is the ``r`` of the values themselves; None for 1, as with running statistics."""


def measure(a: Layout, rows: Array, kept: Array | None, n: Array, eps: float) -> Statistics:
    """Measure a batch (S2)."""
    scale = power(a, rows, math.sqrt(eps))
    rows = rows if scale is None else a.again(rows) * scale
    m1 = a.total(rows) / n
    d = a.mask(a.again(rows) - m1, kept)
    delta = a.total(d) / n
    v = a.xp.maximum(a.total(d * d) / n - delta * delta, a.number(0))
    unit = None if scale is None else a.xp.where(v == 0, a.number(1), scale)
    return Statistics(scale, m1, delta, v, inverse_root(a, v, times(times(a.number(eps), unit), unit)), unit)


def given(a: Layout, mean: Array, variance: Array, eps: float) -> Statistics:
    """Use running statistics instead of the batch's (S5). A difference from a mean of any size stays finite."""
    scale = None if a.narrow else a.xp.where(a.xp.abs(mean) > _room(a).close, a.number(0.5), a.number(1))
    root = inverse_root(a, variance, a.number(eps))
    return Statistics(scale, times(mean, scale), a.number(0), variance, root, None)


def halving(a: Layout, beta: Array | None) -> Array | None:
    """Return 1/2 where beta is large: ``xhat * gamma`` may then leave the range and beta bring it back; else 1."""
    if a.narrow or beta is None:
        return None
    return a.xp.where(a.xp.abs(beta) > _room(a).close, a.number(0.5), a.number(1))


def center(a: Layout, rows: Array, s: Statistics, kept: Array | None) -> Array:
    """Return ``x * scale - m1 - delta``."""
    return a.mask(times(a.again(rows), s.scale) - s.m1 - s.delta, kept)


def inverse_root(a: Layout, variance: Array, eps: Array) -> Array:
    """Return ``1 / sqrt(variance + eps)``, or 0 if both are 0 (S3)."""
    one = a.number(1)
    share = a.xp.where(variance > 1, a.number(0.25), one)  # a quarter of each does not overflow
    square = variance * share + eps * share
    root = a.xp.sqrt(a.xp.where(square == 0, one, square))
    return a.xp.where(square == 0, a.number(0), a.xp.sqrt(share) / root)


def power(a: Layout, rows: Array, least: float = 0.0) -> Array:
    """Return the power of two that scales each channel, or ``least``, so that squares and their sum fit."""
    if a.narrow:
        return None
    edge, far, _ = _room(a)
    size = a.xp.maximum(a.largest(rows), a.number(least))
    one = a.number(1)
    up = a.xp.where((size < 1 / edge) & (size > 0), a.number(far), one)
    return a.xp.where(size > edge, a.number(1 / far), up)


def times(z: Array, factor: Array) -> Array:
    """Return a product; a factor of None means 1."""
    return factor if z is None else z if factor is None else z * factor


def multiply(a: Layout, z: Array, gamma: Array, *powers: Array) -> Array:
    """Return ``z * gamma`` times powers of two; intermediate products leave the range only if the result does."""
    factors = [factor for factor in (gamma, *powers) if factor is not None]
    for factor in factors if a.narrow else _balanced(a, factors):
        z = z * factor
    return z


def unscaled(a: Layout, z: Array, *scales: Array) -> Array:
    """Divide by powers of two."""
    return multiply(a, z, None, *(None if scale is None else 1 / scale for scale in scales))


def split(a: Layout, r: Array) -> tuple[Array, Array]:
    """Return ``r`` as a number near 1 and a power of two: products with the first stay in the range."""
    if a.narrow:
        return r, None
    xp, one = a.xp, a.number(1)
    inverse = 1 / xp.where(r == 0, one, r)
    size, power = xp.where(r < 1, inverse, r), xp.ones_like(r)
    step = math.frexp(float(xp.finfo(a.wide).max))[1] // 2
    while step:
        larger = power * 2.0**step
        power, step = xp.where(size >= larger, larger, power), step // 2
    power = xp.where(r < 1, 1 / power, power)
    return r / power, power


def normal(a: Layout, gamma: Array | None) -> tuple[Array | None, Array | None]:
    """Return ``gamma`` as a number that is not subnormal and a power of two: products with the first keep digits."""
    if a.narrow or gamma is None:
        return gamma, None
    one, room = a.number(1), 2.0**64
    small = a.xp.where(a.xp.abs(gamma) < room * float(a.xp.finfo(a.wide).smallest_normal), a.number(room), one)
    return gamma * small, 1 / small


def _balanced(a: Layout, factors: list[Array]) -> list[Array]:
    """Return factors with the same product, in each channel all at least 1 or all at most 1.

    All but the first are powers of two, so that no digit is lost.
    """
    one, xp = a.number(1), a.xp
    for _ in range(len(factors) - 1):
        for i, k in itertools.combinations(range(len(factors)), 2):
            first, second = xp.abs(factors[i]), xp.abs(factors[k])
            apart = ((first > 1) & (second < 1)) | ((first < 1) & (second > 1))
            factors[i] = xp.where(apart, factors[i] * factors[k], factors[i])
            factors[k] = xp.where(apart, one, factors[k])
    return factors


class _Room(NamedTuple):
    """Limits that depend on the range of the arithmetic."""

    edge: float
    """Values larger than this, or smaller than its inverse, are scaled."""
    far: float
    """The power of two that scales these values."""
    close: float
    """Differences between numbers up to this size do not overflow."""


def _room(a: Layout) -> _Room:
    bits = math.frexp(float(a.xp.finfo(a.wide).max))[1]
    return _Room(2.0 ** (3 * bits // 8 - 3), 2.0 ** (3 * bits // 4 - 6), 2.0 ** (bits // 2))
