"""The smallest and the largest value of each channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 1 << 10
"""How many values are compared side by side, because NumPy's inner loops are slow if three channels come last."""


def extremes(
    x: NDArray[Any], axis: int, where: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest values; infinities in a channel without any."""
    axis %= x.ndim
    if where is None and x.size and x.flags.c_contiguous:
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        if x.shape[axis] * inner < WIDTH:
            return _side_by_side(x.reshape(outer, x.shape[axis], inner))
    return _one_by_one(x, axis, where)


def _side_by_side(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reduce many steps along the first axis to a few, and then these."""
    outer, channels, inner = x.shape
    fold = min(outer, WIDTH // (channels * inner))
    whole = outer // fold * fold
    columns = x[:whole].reshape(-1, fold * channels * inner)
    found = []
    for reduce in (np.minimum.reduce, np.maximum.reduce):
        few = reduce(columns, axis=0).reshape(fold, channels, inner)
        found.append(reduce(np.concatenate([few, x[whole:]]), axis=(0, 2)).astype(np.float64))
    return found[0], found[1]


def _one_by_one(
    x: NDArray[Any], axis: int, where: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.moveaxis(x, axis, 0)
    kept = [None] * len(rows) if where is None else np.moveaxis(np.broadcast_to(where, x.shape), axis, 0)
    found = np.full((2, len(rows)), [[np.inf], [-np.inf]])
    for c, (row, mask) in enumerate(zip(rows, kept, strict=True)):
        values = row if mask is None else row[mask]
        if values.size:
            found[:, c] = values.min(), values.max()
    return found[0], found[1]
