"""What a data set on disk is made of: parts that a process can read on its own. Large arrays are cut into such.

A part yields arrays with the channels last, and names what it must leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.lenet.errors import DataIntegrityError
from polybn.spec import ShapeError

Array: TypeAlias = NDArray[Any]

LIMIT = 1 << 26
"""Bytes that a part holds in memory at a time."""


class LeftOut(NamedTuple):
    """What could not be read."""

    name: str
    """A file, or a range of one."""
    reason: str


class Part(NamedTuple):
    """A share of a data set, small enough to be read by one process."""

    name: str
    size: int
    """Bytes, for a progress bar."""
    read: Callable[[], Iterator[Array | LeftOut]]
    """Reads it in steps; it can be pickled."""


class Layout(NamedTuple):
    """Where the channels of arrays are, and which array of a file is meant."""

    axis: int | str | None = None
    """The channel axis, ``"none"`` for a single channel, None if nothing was said."""
    array: str | None = None
    """The name of an array in a file or a store that holds several."""

    def channel_axis(self, name: str, shape: tuple[int, ...], *, default: str | None = None) -> int | None:
        """Return the channel axis of an array, counted from the front; None if all is one channel."""
        axis: int | str | None = default if self.axis is None else self.axis
        if axis is None and len(shape) <= 2:
            axis = 1 if len(shape) == 2 else "none"
        if axis is None:
            raise ShapeError(
                f"polybn stats: --axis must say where the channels are; got nothing ({name} has shape {shape}: "
                "--axis -1 if they come last, --axis 1 after the first axis, --axis none for a single channel)"
            )
        if axis == "none":
            return None
        assert isinstance(axis, int)
        if not -len(shape) <= axis < len(shape):
            raise ShapeError(
                f"polybn stats: --axis must lie in [{-len(shape)}, {len(shape)}); got {axis} ({name} has shape {shape})"
            )
        return axis % len(shape)


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse what has no mean in float64."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataIntegrityError(
            f"polybn stats: {name} must hold integers or floating-point numbers of up to 64 bits; got {dtype}"
        )


def channels_last(array: Array, axis: int | None) -> Array:
    """View an array with its channels last, and at least one axis before them."""
    last = array[..., None] if axis is None else np.moveaxis(array, axis, -1)
    return last if last.ndim > 1 else last[None]


def blocks(array: Array, axis: int | None, index: tuple[slice, ...] = ()) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of at most ``LIMIT`` bytes, along the axes whose steps in memory are the longest."""
    index = index or tuple(slice(0, size) for size in array.shape)
    sizes = [part.stop - part.start for part in index]
    free = [k for k, size in enumerate(sizes) if size > 1 and k != axis]
    if not all(sizes):
        return
    if int(np.prod(sizes, dtype=object)) * array.itemsize <= LIMIT or not free:
        yield index
        return
    longest = max(free, key=lambda k: abs(array.strides[k]))
    low, high = index[longest].start, index[longest].stop
    for part in (slice(low, (low + high) // 2), slice((low + high) // 2, high)):
        yield from blocks(array, axis, (*index[:longest], part, *index[longest + 1 :]))
