"""The parts of a data set on disk, which processes can read independently. Large arrays are cut into several parts.

A part yields arrays with the channels last, and the names of files that it cannot read.
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
"""The most bytes that a part has in memory at a time."""


class LeftOut(NamedTuple):
    """A file, or a range of one, that could not be read."""

    name: str
    """The file, or the range."""
    reason: str


class NotFinite(NamedTuple):
    """A file with NaN or infinity among its values, which are measured all the same."""

    name: str


class Kind(NamedTuple):
    """What all images of a data set must share."""

    channels: int
    dtype: str


class Part(NamedTuple):
    """A share of a data set, small enough to be read by one process."""

    name: str
    size: int
    """The number of bytes, for a progress bar."""
    read: Callable[[], Iterator[Array | LeftOut | NotFinite]]
    """A picklable function that reads the part in steps."""
    dtype: str = ""
    """The name of the dtype of its values, as they are in the file."""
    images: Kind | None = None
    """The kind of its images, if it has some."""


class Layout(NamedTuple):
    """The user's options: the channel axis of arrays, and the name of an array in a file."""

    axis: int | str | None = None
    """The channel axis, ``"none"`` for a single channel, or None if it was not given."""
    array: str | None = None
    """The name of one array in a file or a store with several."""

    def channel_axis(self, name: str, shape: tuple[int, ...], *, default: str | None = None) -> int | None:
        """Return the channel axis of an array, counted from the front; None for a single channel."""
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
    """Refuse dtypes without a mean in float64."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataIntegrityError(
            f"polybn stats: {name} must hold integers or floating-point numbers of up to 64 bits; got {dtype}"
        )


def noted(name: str, array: Array) -> Iterator[Array | NotFinite]:
    """Yield an array, after a note if some of its values are not finite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        yield NotFinite(name)
    yield array


def channels_last(array: Array, axis: int | None) -> Array:
    """Return a view with the channels last, and at least one axis before them."""
    last = array[..., None] if axis is None else np.moveaxis(array, axis, -1)
    return last if last.ndim > 1 else last[None]


def blocks(array: Array, axis: int | None, index: tuple[slice, ...] = ()) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of at most ``LIMIT`` bytes, along the axes with the longest strides."""
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
