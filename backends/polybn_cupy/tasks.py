"""How a convolution is divided among blocks, threads and shared memory: plain arithmetic, without a GPU."""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from polybn_cupy.plan import THREADS

Shape: TypeAlias = tuple[int, ...]

ALONG, OUTS, UNITS, WARP = 4, 2, 2, 32  # of correlate.cuh
STAGE_BYTES = 40 << 10
"""The shared memory that a block should be content with, so that several blocks are resident."""
SLICES = 128
"""The most slices of a batch for the gradients of weights: enough blocks for a large device."""


class Cut(NamedTuple):
    """How shared memory and threads are divided for the outputs of a convolution, or the gradient of its input."""

    stage: int
    """The planes that are in shared memory at once."""
    pitch: int
    """The numbers in a row of a plane in shared memory."""
    shares: int
    """The number of threads that divide a sum."""
    blocks: int
    """The number of blocks for an image."""
    shared: int
    """The bytes of shared memory."""

    def pack(self) -> bytes:
        """Pack the struct ``Cut``."""
        return struct.pack("<4q", *self[:4])


def cut(planes: int, high: int, outs: int, down: int, across: int, kernel: int) -> Cut:
    """Divide the sums over planes of ``high`` rows for ``outs`` outputs of ``down`` x ``across``."""
    groups, pitch = -(-outs // OUTS), row_pitch(across, kernel)
    each = 4 * (high * pitch + kernel * kernel * groups * OUTS)
    stage = max(1, min(planes, STAGE_BYTES // each))
    units, shares = down * groups * -(-across // ALONG), 1
    while units * shares * 2 <= UNITS * THREADS and _up(planes, shares * 2) * 4 <= planes * 5 and shares < WARP:
        shares *= 2  # all shares have about as many planes
    return Cut(stage, pitch, shares, -(-units * shares // (UNITS * THREADS)), stage * each)


class Patch(NamedTuple):
    """How the gradients of a convolution's weights are divided among blocks and threads."""

    slices: int
    together: int
    """The number of images that are in shared memory at once."""
    channels: int
    features: int
    """The channels and features of a block."""
    pieces: int
    """The number of threads that divide a sum."""
    pitch: int
    dy_pitch: int
    """The numbers in a row of the input and of the output's gradient, in shared memory."""
    blocks: int
    """The number of blocks."""
    shared: int
    """The bytes of shared memory."""

    def pack(self) -> bytes:
        """Pack the fields of the struct ``Convolution``."""
        return struct.pack("<7q", *self[:7])


def patch(n: int, shape: Shape, features: int, kernel: int) -> Patch:
    """Divide the gradients of the weights of a convolution of ``n`` images of a shape."""
    channels, high, wide = shape
    down, across = high - kernel + 1, wide - kernel + 1
    pitch, dy_pitch, slices = row_pitch(across, kernel), _up(across, ALONG), min(SLICES, n)
    some, many = channels, features

    def units() -> int:
        return (some * kernel + 1) * -(-many // OUTS)

    def image() -> int:
        return 4 * (some * high * pitch + many * down * dy_pitch)

    while (units() > THREADS or 4 * pitch + image() > STAGE_BYTES) and (some > 1 or many > OUTS):
        some, many = (-(-some // 2), many) if some > 1 else (some, -(-many // 2))
    together = max(1, min(-(-n // slices), (STAGE_BYTES - 4 * pitch) // image()))
    shared = max(4 * pitch + together * image(), 4 * THREADS * OUTS * kernel)
    blocks = slices * -(-channels // some) * -(-features // many)
    return Patch(slices, together, some, many, max(1, THREADS // units()), pitch, dy_pitch, blocks, shared)


def row_pitch(across: int, kernel: int) -> int:
    """Return the length of a row in shared memory whose threads read whole vectors for ``across`` outputs."""
    return _up(across, ALONG) + _up(ALONG + kernel - 1, ALONG) - ALONG


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
