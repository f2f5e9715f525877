"""Divide a problem into tiles, and these among blocks: plain arithmetic, without a GPU.

The division changes the speed of a call but no bit of its result, because sums are always cut along the branches of
the same tree (``kernels/reduce.cuh``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from polybn_cupy.layout import MOST_AXES, Layout

CHUNK = 512  # of tile.cuh
THREADS = 256  # of types.cuh
# Three blocks with tiles of this size fit into the 227 KB of a multiprocessor: one waits for its group, two move data.
TILE_BYTES = 70 << 10
# An NHWC tensor is read in rows of ROW bytes, which memory transfers at once, or at least in rows of a cache sector. In
# inference rows need not fit into shared memory, and may have up to LONGEST bytes.
ROW, SECTOR, LONGEST = 64, 32, 1024
STRETCH_BYTES = 32 << 10
"""The number of bytes that a block moves in inference."""
# One block moves about 30 KB per us, and a barrier of a group takes 1 or 2 us, so smaller tiles get one block.
ALONE = 16 << 10


class Tiling(NamedTuple):
    """The size of a tile, and how tiles are divided among blocks; see ``Geometry`` in ``kernels/tile.cuh``."""

    channels: int
    chunks: int
    rounds: int
    members: int
    shared_bytes: int
    blocks: int
    """The number of blocks to launch."""

    def pack(self, layout: Layout) -> bytes:
        """Pack the struct ``Geometry``."""
        sizes = layout.sizes
        return struct.pack(
            f"<{3 + MOST_AXES + 9}q", layout.channels, layout.count, len(sizes), *sizes,
            *[0] * (MOST_AXES - len(sizes)), layout.wide, self.channels, self.chunks, self.rounds, self.members,
            layout.channels_inner, *layout.divisor,
        )  # fmt: skip


class Device(NamedTuple):
    """The properties of a device that a plan depends on."""

    multiprocessors: int
    shared_bytes: int
    """The largest shared memory of one block."""


class Pass(NamedTuple):
    """A kernel, and the sizes of what it keeps in shared memory."""

    name: str
    tiles: int
    """The number of arrays that are kept; 0 for a kernel whose blocks are independent."""
    node_bytes: int
    channel_bytes: int


PLACE_BYTES = 8 * (2 + MOST_AXES)


def cut(
    layout: Layout,
    itemsize: int,
    kernel: Pass,
    device: Device,
    resident: Callable[[int], int],
    *,
    masked: bool,
) -> Tiling:
    """Divide a problem; ``resident`` returns how many blocks with so much shared memory a multiprocessor can hold."""
    if not kernel.tiles:
        return stretch(layout, itemsize, kernel.channel_bytes, device)
    return divide(layout, itemsize, kernel, device, resident, masked=masked)


def divide(
    layout: Layout,
    itemsize: int,
    kept: Pass,
    device: Device,
    resident: Callable[[int], int],
    *,
    masked: bool,
) -> Tiling:
    """Divide a problem for the training kernels; with a mask, one more byte per value is kept."""
    total = power_of_two(-(-layout.count // CHUNK))
    value_bytes = kept.tiles * itemsize + masked
    budget = min(TILE_BYTES, device.shared_bytes - (8 << 10))
    channels, chunks = _tile(layout, itemsize, value_bytes, total, budget, device)

    def shape(channels: int, chunks: int, rounds: int) -> Tiling:
        values = channels * chunks * CHUNK
        shared = (kept.tiles * itemsize + masked) * values + PLACE_BYTES
        shared += channels * ((chunks + rounds.bit_length()) * kept.node_bytes + kept.channel_bytes)
        members = -(-layout.count // (CHUNK * chunks * rounds))
        return Tiling(channels, chunks, rounds, members, shared, 0)

    def capacity(tiling: Tiling) -> int:
        return max(1, resident(tiling.shared_bytes)) * device.multiprocessors

    plan = shape(channels, chunks, 1)
    while plan.members > capacity(plan):
        if layout.channels_inner and channels * itemsize > SECTOR and chunks < total:
            channels, chunks = channels // 2, chunks * 2
            plan = shape(channels, chunks, 1)
        else:
            plan = shape(channels, chunks, plan.rounds * 2)
    while plan.shared_bytes > device.shared_bytes and plan.channels > 1:  # many rounds need many nodes
        plan = shape(plan.channels // 2, plan.chunks, plan.rounds)
    while plan.rounds == 1 and plan.chunks > 1:
        tiles, finer = -(-layout.channels // plan.channels), shape(plan.channels, plan.chunks // 2, 1)
        alone = plan.channels * plan.chunks * CHUNK * value_bytes <= ALONE
        if alone or tiles * finer.members > capacity(finer):
            break
        plan = finer
    tiles = -(-layout.channels // plan.channels)
    groups = tiles if plan.members == 1 else min(tiles, capacity(plan) // plan.members)
    return plan._replace(blocks=groups * plan.members)


def stretch(layout: Layout, itemsize: int, channel_bytes: int, device: Device) -> Tiling:
    """Divide a problem for inference: each block takes one tile, independently of the others."""
    total = power_of_two(-(-layout.count // CHUNK))
    fits, few = STRETCH_BYTES // (CHUNK * itemsize), 4 * device.multiprocessors

    def shape(channels: int, chunks: int) -> Tiling:
        members = -(-layout.count // (CHUNK * chunks))
        blocks = members * -(-layout.channels // channels)
        return Tiling(channels, chunks, 1, members, PLACE_BYTES + channels * channel_bytes, blocks)

    if layout.channels_inner:
        plan = shape(min(power_of_two(layout.channels), LONGEST // itemsize), 1)
        while plan.channels * itemsize > ROW and plan.blocks < few:
            plan = shape(plan.channels // 2, 1)
        return plan
    plan = shape(1, min(total, fits))
    while plan.channels * plan.chunks < fits and plan.channels < layout.channels and plan.blocks > few:
        plan = shape(plan.channels * 2, plan.chunks)
    while plan.chunks > 1 and plan.blocks < few:
        plan = shape(plan.channels, plan.chunks // 2)
    return plan


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _tile(layout: Layout, itemsize: int, value_bytes: int, total: int, budget: int, device: Device) -> tuple[int, int]:
    """Choose the channels and chunks of a tile: whole rows if channels are neighbours, else one or few channels."""
    fits = max(1, budget // (CHUNK * value_bytes))
    if layout.channels_inner:
        channels = min(power_of_two(layout.channels), ROW // itemsize)
        while channels > 1 and channels > fits:
            channels //= 2
        while channels * itemsize > SECTOR and -(-layout.channels // channels) * 2 <= device.multiprocessors:
            channels //= 2
        chunks = fits // channels
    else:
        channels, chunks = 1, fits
        while channels * 2 * total <= fits // 2 and -(-layout.channels // channels) > 4 * device.multiprocessors:
            channels *= 2
        chunks = fits // channels
    return channels, min(total, 1 << max(chunks, 1).bit_length() - 1)
