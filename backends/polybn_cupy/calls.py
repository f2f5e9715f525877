"""Launching a kernel that works tile by tile: ``forward``, ``inference``, ``backward`` or ``second``."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import cupy

from polybn.spec import Arguments
from polybn_cupy import launch, plan
from polybn_cupy.layout import NO_ARRAY, lay_out, walk
from polybn_cupy.plan import Pass
from polybn_cupy.sources import STORED

Array = Any

# The sizes of the structs that each kernel keeps in shared memory, rounded up.
FORWARD = Pass("forward", tiles=1, node_bytes=32, channel_bytes=32)
INFERENCE = Pass("inference", tiles=0, node_bytes=0, channel_bytes=32)
BACKWARD = Pass("backward", tiles=2, node_bytes=16, channel_bytes=80)
SECOND = Pass("second", tiles=3, node_bytes=40, channel_bytes=120)


def sweep(kernel: Pass, values: Sequence[Array | None], arguments: Arguments, tail: bytes) -> None:
    """Launch a kernel over all values of arrays of one shape; the first array is ``x``.

    Every struct of arguments begins with the geometry, the arrays in order, the mask, and the group of blocks; ``tail``
    is the rest.
    """
    x, where = arguments.x, arguments.where
    mask = None if where is None else cupy.broadcast_to(where, x.shape)
    given = [array for array in values if array is not None]
    layout = lay_out(given if mask is None else [*given, mask], arguments.axis)
    along, length = walk(layout, given, masked=mask is not None)
    compiled = launch.kernel(f"{kernel.name}.cu", f"{kernel.name}<{STORED[x.dtype.name]}, {along}, {length}>")
    packed, index = b"", 0
    for array in (*values, mask):
        packed += NO_ARRAY if array is None else layout.pack_array(index, array.data.ptr)
        index += array is not None
    while True:
        tiling = plan.cut(layout, x.itemsize, kernel, launch.device(), compiled.resident, masked=mask is not None)
        together = kernel.tiles > 0 and tiling.members > 1
        post = _post(tiling, kernel) if kernel.tiles else b""
        whole = tiling.pack(layout) + packed + post + tail
        try:
            return compiled(tiling.blocks, whole, shared=tiling.shared_bytes, together=together)
        except cupy.cuda.driver.CUDADriverError as error:
            launch.take_less(error)


def pointers(*arrays: Array | None) -> bytes:
    """Return the addresses of contiguous arrays, 0 for None."""
    return struct.pack(f"<{len(arrays)}Q", *(0 if array is None else array.data.ptr for array in arrays))


def _post(tiling: plan.Tiling, kernel: Pass) -> bytes:
    """Return the struct ``Group``."""
    if tiling.members == 1:
        return pointers(None, None)
    return pointers(launch.mail(tiling.blocks * 2 * tiling.channels * kernel.node_bytes // 8), launch.barriers())
