"""Moments of integers (S15): sums are exact, and each result is rounded once.

A number is cut into limbs of 16 bits. Products of two limbs, a million of them added up, stay below 2^53, so float64
adds them exactly and in any order; from there on the sums are Python's integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Moments

Array = NDArray[Any]

LIMB = 16
SLAB = 1 << 16
"""The number of values at a time, so few that their limbs stay in the cache."""


def moments(x: Array, axis: int, where: Array | None) -> Moments:
    """Measure an array of integers."""
    first = np.moveaxis(x, axis, 0)
    kept = None if where is None else np.moveaxis(np.broadcast_to(where, x.shape), axis, 0)
    count, total, squares = (np.zeros(len(first), object) for _ in range(3))
    for slab, mask in _slabs(first, kept):
        limbs = _limbs(slab, mask)
        count += slab[0].size if mask is None else mask.sum(axis=tuple(range(1, mask.ndim))).astype(object)
        for i, one in enumerate(limbs):
            total += _exact(one.sum(axis=1)) << LIMB * i
            for j, other in enumerate(limbs[: i + 1]):
                products = _exact((one[:, None, :] @ other[:, :, None])[:, 0, 0])
                squares += products << LIMB * (i + j) + (i != j)
    return _rounded(count, total, squares)


def _slabs(first: Array, kept: Array | None) -> Iterator[tuple[Array, Array | None]]:
    """Halve an array with the channels first, along its longest other axis, until its parts are small."""
    longest = int(np.argmax(first.shape[1:])) + 1
    half = first.shape[longest] // 2
    if first.size <= SLAB or not half:
        if first.size:
            yield first, kept
        return
    for part in (slice(half), slice(half, None)):
        index = (slice(None),) * longest + (part,)
        yield from _slabs(first[index], None if kept is None else kept[index])


def _limbs(slab: Array, mask: Array | None) -> list[Array]:
    """Return rows of float64 limbs, the lowest first; the highest has the sign. Deleted values are 0."""
    values = slab if mask is None else np.where(mask, slab, slab.dtype.type(0))
    rows, bits = values.reshape(len(values), -1), 8 * slab.dtype.itemsize
    low = [rows >> shift & (1 << LIMB) - 1 for shift in range(0, bits - LIMB, LIMB)]
    return [limb.astype(np.float64) for limb in (*low, rows >> max(bits - LIMB, 0))]


def _exact(sums: Array) -> Array:
    return sums.astype(np.int64).astype(object)


def _rounded(count: Array, total: Array, squares: Array) -> Moments:
    """Divide, and round to the nearest float64, as Python does for integers."""
    found = np.zeros((3, len(count)))
    for c, (n, s, q) in enumerate(zip(count, total, squares, strict=True)):
        if n:
            found[:, c] = s / n, Fraction(s, n) - Fraction(s / n), (q * n - s * s) / n
    mean, low, m2 = found
    return Moments(count.astype(np.int64), mean, m2, low)
