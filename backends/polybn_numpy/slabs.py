"""An array in slabs: few values at a time, in the order in which they lie in memory, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SLAB = 1 << 16
"""The most values of a slab, so few that they stay in the cache."""


def in_memory_order(x: Array, axis: int, where: Array | None) -> tuple[Array, Array | None, int]:
    """Return views of an array and its mask whose last axis is the densest, and where the channel axis is in them."""
    # Axes along which values repeat lie nowhere in memory; they go first, where slabs are cut.
    order = sorted(range(x.ndim), key=lambda k: -abs(x.strides[k]) if x.strides[k] else -np.inf)
    kept = None if where is None else np.broadcast_to(where, x.shape).transpose(order)
    return x.transpose(order), kept, order.index(axis)


def cuts(shape: tuple[int, ...], place: int) -> Iterator[tuple[slice, ...]]:
    """Cut along the outer axes first, and never along that of the channels."""
    sizes, left = list(shape), math.prod(shape)
    if not left:
        return
    for k in range(len(shape)):
        if k != place and left > SLAB:
            left //= sizes[k]
            sizes[k] = max(1, SLAB // left)
            left *= sizes[k]
    for low in np.ndindex(*(-(-size // step) for size, step in zip(shape, sizes, strict=True))):
        yield tuple(slice(k * step, (k + 1) * step) for k, step in zip(low, sizes, strict=True))
