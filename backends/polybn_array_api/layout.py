"""Conversion of arrays of any library to channels, and back: as rows, or unchanged if the array consists of blocks.

Vectors with one value per channel become columns, which broadcast against the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat

from polybn.spec import Arguments, Array

SHORT = 16
"""The most values that the library may add up in an order of its own."""


class Layout(NamedTuple):
    """The layout of the arrays of one call, and the dtype of the arithmetic."""

    xp: Any
    """The library's namespace of the standard."""
    shape: tuple[int, ...]
    axis: int
    wide: Any
    """The dtype of the arithmetic: float64, or float32 if the library has no float64."""
    narrow: bool
    """Whether the arithmetic has room for all products of the values (S10)."""
    blocks: bool
    """Whether the array consists of blocks, which must stay where they are."""
    device: Any

    def rows(self, array: Array) -> Array:
        """Reorder an array of the shape of ``x`` as in S1, to a contiguous one of shape ``(C, m)``."""
        if self.blocks:
            return array
        moved = self.xp.permute_dims(array, self.order)
        return self.xp.reshape(self.xp.reshape(moved, (-1,)), (self.shape[self.axis], -1))

    def values(self, array: Array, kept: Array | None) -> Array:
        """Return values as rows in the arithmetic's dtype, with 0 in deleted places (S12)."""
        return self.mask(self.xp.astype(self.rows(array), self.wide), kept)

    def kept(self, where: Array | None) -> Array | None:
        """Return a mask as rows, or None without a mask."""
        return None if where is None else self.rows(self.xp.broadcast_to(where, self.shape))

    def array(self, rows: Array, dtype: Any) -> Array:
        """Return rows in the shape of ``x``, rounded to a dtype."""
        if not self.blocks:
            moved = self.xp.reshape(rows, tuple(self.shape[k] for k in self.order))
            rows = self.xp.permute_dims(moved, tuple(self.order.index(k) for k in range(len(self.order))))
        return self.xp.astype(rows, dtype)

    def again(self, array: Array) -> Array:
        """Return the array for one more pass. In Dask its blocks are then made again, not kept from pass to pass."""
        if not hasattr(array, "__dask_graph__") or not _can_be_cloned(array.__dask_graph__()):
            return array
        from dask.graph_manipulation import clone

        return clone(array)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes with that of the channels first. PyTorch's ``vmap`` knows ``permute_dims`` and not ``moveaxis``."""
        return (self.axis, *(k for k in range(len(self.shape)) if k != self.axis))

    def column(self, vector: Array | None) -> Array:
        """Return a vector as a column that broadcasts against rows; None stays None."""
        if vector is None:
            return None
        shape = [1] * (len(self.shape) if self.blocks else 2)
        shape[self.axis if self.blocks else 0] = -1
        return self.xp.reshape(self.xp.astype(vector, self.wide), tuple(shape))

    def vector(self, column: Array, dtype: Any) -> Array:
        """Return a column as a new vector, rounded to a dtype."""
        return self.xp.astype(self.xp.reshape(column, (-1,)), dtype)

    def mask(self, rows: Array, kept: Array | None) -> Array:
        """Put 0 into deleted places."""
        return rows if kept is None else self.xp.where(kept, rows, self.number(0))

    def number(self, value: float) -> Array:
        """Return a number as an array of the arithmetic's dtype."""
        return self.xp.full((), value, dtype=self.wide, device=self.device)

    def total(self, rows: Array) -> Array:
        """Add up each channel, with an error that does not grow with the number of values."""
        return self._reduce(rows, _total)

    def largest(self, rows: Array) -> Array:
        """Return the largest magnitude of each channel."""
        return self._reduce(rows, _largest)

    def _reduce(self, rows: Array, function: Callable[..., Array]) -> Array:
        """Reduce each block, and then the blocks in a tree; without blocks, reduce the whole array."""
        if not hasattr(self.xp, "reduction"):
            return function(rows, self.others, keepdims=True)
        combine = self.xp.reduction
        return combine(rows, function, function, axis=self.others, keepdims=True, dtype=self.wide)

    @property
    def others(self) -> tuple[int, ...]:
        """The axes of a channel's values."""
        return tuple(k for k in range(len(self.shape)) if k != self.axis) if self.blocks else (1,)

    def counts(self, kept: Array | None) -> Array:
        """Return the number of kept values in each channel, as a column of integers."""
        if kept is not None:
            return self.xp.sum(self.xp.astype(kept, self.xp.int64), axis=self.others, keepdims=True)
        shape = [1] * (len(self.shape) if self.blocks else 2)
        shape[self.axis if self.blocks else 0] = self.shape[self.axis]
        m = math.prod(self.shape[: self.axis] + self.shape[self.axis + 1 :])
        return self.xp.full(tuple(shape), m, dtype=self.xp.int64, device=self.device)

    def divisor(self, counts: Array) -> Array:
        """Return the divisors of sums: the counts, at least 1."""
        return self.xp.maximum(self.xp.astype(counts, self.wide), self.number(1))


def _total(z: Array, axis: tuple[int, ...], *, keepdims: bool) -> Array:
    """Add up in a tree: halves are added to each other until one value is left."""
    xp = array_api_compat.array_namespace(z)
    for k in axis:
        while (m := z.shape[k]) > SHORT:
            half = m // 2
            low, high, rest = (_part(z, k, *ends) for ends in ((0, half), (half, 2 * half), (2 * half, m)))
            z = xp.concat((low + high, rest), axis=k) if m % 2 else low + high
        z = xp.sum(z, axis=k, keepdims=True)
    return z if keepdims else xp.squeeze(z, axis=axis)


def _largest(z: Array, axis: tuple[int, ...], *, keepdims: bool) -> Array:
    xp = array_api_compat.array_namespace(z)
    if 0 in z.shape:  # an empty block
        return xp.sum(z, axis=axis, keepdims=keepdims)
    return xp.max(xp.abs(z), axis=axis, keepdims=keepdims)


def _part(z: Array, axis: int, start: int, stop: int) -> Array:
    return z[(slice(None),) * axis + (slice(start, stop),)]


def _can_be_cloned(graph: Any) -> bool:
    """Return whether Dask can compute clones of a graph: of tasks that are written out one by one it cannot."""
    from dask.blockwise import Blockwise

    others = (layer for layer in graph.layers.values() if not isinstance(layer, Blockwise))
    return not any(hasattr(task, "func") or hasattr(task, "target") for layer in others for task in layer.values())


def layout_of(xp: Any, arguments: Arguments, like: Array) -> Layout:
    """Return the layout of a call's arrays, of which ``like`` is one."""
    device = array_api_compat.device(like)
    wide = (
        xp.float64
        if "float64" in xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
        else xp.float32
    )
    x = arguments.x
    shape = (1, *like.shape) if x is None else tuple(x.shape)
    narrow = wide == xp.float64 and arguments.dtype == "float32"
    return Layout(xp, shape, arguments.axis if x is not None else 1, wide, narrow, hasattr(like, "chunks"), device)
