"""The memory layout of arrays, as ``kernels/tile.cuh`` describes it: a channel axis, and positions along the others."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from polybn.spec import BackendError

MOST_AXES = 31  # of tile.cuh
WIDE = 1 << 31
LONGEST_ROW = 1 << 30  # the sum of a row and a tile fits into 31 bits
VECTOR_BYTES = 16
MOST_CHANNELS = 4
"""The number of channels for which a thread has registers."""


class Layout(NamedTuple):
    """The axes of arrays of one shape; neighbouring axes are joined where that is possible in all arrays."""

    channels: int
    count: int  # type: ignore[assignment]  # it hides tuple.count
    sizes: tuple[int, ...]
    """The sizes of the axes of positions, slowest first."""
    channel_strides: tuple[int, ...]
    """The stride of the channel axis of each array, in values."""
    strides: tuple[tuple[int, ...], ...]
    """The strides of the axes of positions of each array, in values."""

    @property
    def wide(self) -> bool:
        """Whether an axis other than the first is too long for 32-bit arithmetic."""
        return any(size >= WIDE for size in self.sizes[1:])

    @property
    def channels_inner(self) -> bool:
        """Whether neighbours in the memory of the first array belong to different channels."""
        return self.count == 1 or (self.channels > 1 and abs(self.channel_strides[0]) < abs(self.strides[0][-1]))

    @property
    def divisor(self) -> tuple[int, int, int]:
        """The last axis, a factor and a shift: n * factor >> 32 >> shift is n divided by the axis, for n below 2^31."""
        row = self.sizes[-1]
        bits = 31 + (row - 1).bit_length()
        return (row, -(-(1 << bits) // row), bits - 32) if 1 < row < WIDE else (row, 0, 0)

    def pack_array(self, index: int, pointer: int) -> bytes:
        """Pack the struct ``Array``."""
        strides = self.strides[index]
        return struct.pack(
            f"<Q{1 + MOST_AXES}q", pointer, self.channel_strides[index], *strides, *[0] * (MOST_AXES - len(strides))
        )


NO_ARRAY = bytes(8 * (2 + MOST_AXES))
NO_VECTOR = bytes(16)


def lay_out(arrays: Sequence[Any], axis: int) -> Layout:
    """Describe arrays of one shape with the channel axis at ``axis``."""
    shape = arrays[0].shape
    steps = [_steps(array) for array in arrays]
    kept = [i for i, size in enumerate(shape) if i != axis and size != 1]
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in arrays]
    for i in kept:
        if sizes and all(of[-1] == step[i] * shape[i] for of, step in zip(strides, steps, strict=True)):
            sizes[-1] *= shape[i]
            for of, step in zip(strides, steps, strict=True):
                of[-1] = step[i]
        else:
            sizes.append(shape[i])
            for of, step in zip(strides, steps, strict=True):
                of.append(step[i])
    count = 1
    for size in sizes:
        count *= size
    # There are two axes of positions at least, so that kernels have one case less.
    missing = (0,) * (2 - len(sizes))
    return Layout(
        shape[axis], count, (1,) * len(missing) + tuple(sizes), tuple(step[axis] for step in steps),
        tuple(missing + tuple(of) for of in strides),
    )  # fmt: skip


def walk(layout: Layout, arrays: Sequence[Any], *, masked: bool) -> tuple[str, int]:
    """Return how a kernel goes through memory, in the words of ``kernels/tile.cuh``, and its vector length."""
    (rows, row), *more = layout.sizes[:2], *layout.sizes[2:]
    if masked or more or not 1 < row < LONGEST_ROW:
        return "ANY", 1
    if layout.channels_inner:
        fits = rows == 1 and (layout.channels == 1 or all(step == 1 for step in layout.channel_strides))
        return ("CHANNELS", min(_vector_length(layout, arrays), MOST_CHANNELS)) if fits else ("ANY", 1)
    jumps = (abs(apart) + row for apart, _ in layout.strides)
    fits = all(along == 1 for _, along in layout.strides) and max(jumps) * arrays[0].itemsize < WIDE
    return ("ROWS", _vector_length(layout, arrays)) if fits else ("ANY", 1)


def _vector_length(layout: Layout, arrays: Sequence[Any]) -> int:
    """Return how many neighbours can be moved at once: those in 16 bytes if rows and addresses allow it, else 1."""
    length: int = VECTOR_BYTES // arrays[0].itemsize
    inner = layout.channels_inner
    if (layout.channels if inner else layout.sizes[-1]) % length:
        return 1
    for i, array in enumerate(arrays):
        along, channel = layout.strides[i], layout.channel_strides[i]
        others = along if inner else (*along[:-1], channel if layout.channels > 1 else 0)
        if any(step % length for step in others) or array.data.ptr % VECTOR_BYTES:
            return 1
    return length


def pack_vector(array: Any | None) -> bytes:
    """Pack the struct ``Vector``."""
    return NO_VECTOR if array is None else struct.pack("<Qq", array.data.ptr, _steps(array)[0])


def _steps(array: Any) -> tuple[int, ...]:
    if array.data.ptr % array.itemsize or any(step % array.itemsize for step in array.strides):
        raise BackendError(
            f"polybn: a CuPy array must be aligned to its values; got strides {array.strides} at {array.data.ptr:#x} "
            f"for {array.itemsize} bytes a value (a GPU cannot read across: copy it)"
        )
    return tuple(step // array.itemsize for step in array.strides)
