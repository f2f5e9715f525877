"""Moments of integers (S15): sums are exact, and each result is rounded once.

A number is cut into limbs of 16 bits, as many as the values of a slab need: one for bytes. Products of two limbs stay
below 2^32, so float64 adds those of a slab exactly and in any order, as fast as floating-point numbers are added;
int64 adds the sums of thousands of slabs, and from there on they are Python's integers.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Moments
from polybn_numpy.slabs import cuts, in_memory_order

Array = NDArray[Any]

LIMB = 16
MOST = 4
"""The number of limbs of the widest integers."""
WIDTH = 1 << 10
"""How many sums are made side by side: enough for long inner loops, also where three channels come last."""
RUN = 1 << 8
"""The most values that are added to one sum at first: so many products of bytes are exact in float32, too."""
OFTEN = 1 << 10
"""How many slabs int64 can add: of four products below 2^32 for each value, of which a slab has at most 2^16."""


def moments(x: Array, axis: int, where: Array | None) -> Moments:
    """Measure an array of integers."""
    channels = x.shape[axis]
    exact = np.zeros((2, 2 * MOST - 1, channels), object)
    recent = np.zeros(exact.shape, np.int64)
    """Sums of limbs, and sums of products, in units of ``2**(16 * k)``."""
    ordered, kept, place = in_memory_order(x, axis, where)
    for number, index in enumerate(cuts(ordered.shape, place)):
        mask = None if kept is None else kept[index]
        _add(recent, [_laid_out(limb, mask, place) for limb in _limbs(ordered[index])])
        if number % OFTEN == OFTEN - 1:
            exact += recent.astype(object)
            recent[:] = 0
    exact += recent.astype(object)
    total, squares = (sum(part[k] << LIMB * k for k in range(len(part))) for part in exact)
    return _rounded(_counts(x.shape, axis, where), total, squares)


def _counts(shape: tuple[int, ...], axis: int, where: Array | None) -> list[int]:
    """Count what a mask keeps, without the copies that it stands for."""
    if where is None:
        return [math.prod(shape) // shape[axis]] * shape[axis] if shape[axis] else []
    mask = where.reshape((1,) * (len(shape) - where.ndim) + where.shape)
    others = tuple(k for k in range(len(shape)) if k != axis)
    repeated = math.prod(shape[k] // mask.shape[k] for k in others if mask.shape[k])
    found = np.broadcast_to(mask.sum(axis=others), shape[axis])
    return [count * repeated for count in found.tolist()]


def _limbs(slab: Array) -> list[Array]:
    """Return views of the limbs, the lowest first; the highest has the sign."""
    if slab.dtype.itemsize <= 2:
        return [slab]
    number = _number(slab)
    return [slab.view(_limb(slab.dtype, k, last=k == number - 1))["limb"] for k in range(number)]


def _number(slab: Array) -> int:
    """Return how many limbs the values of a slab need."""
    low, high = int(slab.min()), int(slab.max())
    bits = max((~low if low < 0 else low).bit_length(), high.bit_length())
    return max(1, -(-bits // LIMB))


@cache
def _limb(dtype: np.dtype[Any], k: int, *, last: bool) -> np.dtype[Any]:
    """Return the dtype whose field is the ``k``-th limb; the last one is wider where there is room, for the sign."""
    kind, size = ("i", 4) if last and 2 * k + 4 <= dtype.itemsize else (dtype.kind if last else "u", 2)
    if size == dtype.itemsize:
        kind = dtype.kind
    order = dtype.str[0]
    offset = 2 * k if order == "<" else dtype.itemsize - size - 2 * k
    fields = {"names": ["limb"], "formats": [f"{order}{kind}{size}"], "offsets": [offset], "itemsize": dtype.itemsize}
    found: np.dtype[Any] = np.dtype(fields)  # type: ignore[call-overload]
    return found


def _laid_out(limb: Array, mask: Array | None, place: int) -> Array:
    """Convert to floating point, with zeros for deleted values, and added to the shape of :func:`_whole`."""
    outer, channels, inner = math.prod(limb.shape[:place]), limb.shape[place], math.prod(limb.shape[place + 1 :])
    found = np.empty(_whole(outer, channels, inner), np.float32 if limb.dtype.itemsize == 1 else np.float64)
    found[outer:] = 0
    found[:, :, inner:] = 0
    values = found[:outer, :, :inner].reshape(limb.shape)
    if mask is None:
        values[...] = limb
    else:
        np.multiply(limb, mask, out=values, casting="same_kind")
    return found


def _fold(outer: int, channels: int, inner: int) -> int:
    """Return how many steps along the outer axis are added side by side."""
    return min(outer, max(1, WIDTH // (channels * inner)))


def _whole(outer: int, channels: int, inner: int) -> tuple[int, int, int]:
    """Return the shape that divides into runs along the inner axis if it is long, or else along the outer one."""
    if inner >= WIDTH:
        return outer, channels, -(-inner // RUN) * RUN
    fold = _fold(outer, channels, inner)
    return -(-outer // fold) * fold, channels, inner


def _add(sums: Array, limbs: list[Array]) -> None:
    """Add the sums of a slab's limbs, and of their products."""
    for i, one in enumerate(limbs):
        sums[0, i] += _sums(one, None)
        for j, other in enumerate(limbs[: i + 1]):
            sums[1, i + j] += _sums(one, other) << (i != j)


def _sums(a: Array, b: Array | None) -> Array:
    """Add up the values of each channel, or their products."""
    # Not by BLAS, whose threads would wait for each other longer than they compute on so few values.
    outer, channels, inner = a.shape
    if inner >= WIDTH:
        runs = a.reshape(-1, RUN)
        found = runs.sum(axis=1) if b is None else np.einsum("ij,ij->i", runs, b.reshape(runs.shape))
        left, inner = outer, inner // RUN
    else:
        left = _fold(outer, channels, inner)
        columns = a.reshape(outer // left, -1)
        found = columns.sum(axis=0) if b is None else np.einsum("ij,ij->j", columns, b.reshape(columns.shape))
    rows = found.reshape(-1, inner).astype(np.int64)
    each = rows.sum(axis=1) if inner > 1 else rows
    total: Array = each.reshape(left, channels).sum(axis=0)
    return total


def _rounded(count: list[int], total: Array, squares: Array) -> Moments:
    """Divide, and round to the nearest float64, as Python does for integers."""
    found = np.zeros((3, len(count)))
    for c, (n, s, q) in enumerate(zip(count, total, squares, strict=True)):
        if n:
            mean = s / n
            top, bottom = mean.as_integer_ratio()
            found[:, c] = mean, (s * bottom - top * n) / (n * bottom), (q * n - s * s) / n
    mean, low, m2 = found
    return Moments(np.array(count, np.int64), mean, m2, low)
