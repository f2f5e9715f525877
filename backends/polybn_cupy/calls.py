"""One call, from arrays to a launch of ``forward.cu``, ``backward.cu``, ``second.cu`` or ``inference.cu``."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import cupy

from polybn.arguments import Problem
from polybn.spec import BackendError
from polybn_cupy import launch, plan
from polybn_cupy.layout import NO_ARRAY, Layout, lay_out, pack_vector, vector_length
from polybn_cupy.sources import STORED

Array = Any

PASSES = {
    "forward": plan.Pass(tiles=1, node_bytes=40, channel_bytes=64),
    "backward": plan.Pass(tiles=2, node_bytes=16, channel_bytes=80),
    "second": plan.Pass(tiles=3, node_bytes=40, channel_bytes=144),
}
"""What each kernel keeps in shared memory, by name: its structs, rounded up."""
SLOPE_BYTES = 32
"""The same for a channel of inference.cu."""


class Call(NamedTuple):
    """One forward call: what it was given, and what it leaves for the pullback."""

    x: Array
    gamma: Array | None
    beta: Array | None
    where: Array | None
    """Of the shape of x."""
    normalizers: Array | None
    """Of shape (4, C): m1, delta, r and exponent of S2, S3 and S10."""
    counts: Array | None
    """Values that took part, by channel; None where all did."""
    problem: Problem
    training: bool


def is_array(value: object) -> bool:
    """Tell an ndarray from the subclasses that change its meaning."""
    return type(value) is cupy.ndarray


def check_device(function: str, **arrays: Array | None) -> Any:
    """Return the one device that all arrays are on."""
    given = {name: array for name, array in arrays.items() if array is not None}
    numbers = {name: array.device.id for name, array in given.items()}
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{name}: device {number}" for name, number in numbers.items())
        raise BackendError(
            f"polybn.{function}: all arrays must be on one device; got {listed} "
            "(nothing is moved between devices: do so before the call)"
        )
    return next(iter(given.values())).device


Vectors = tuple[Array | None, Array | None, Array | None, Array | None]
_NONE: Vectors = (None, None, None, None)


def train(
    x: Array,
    y: Array | None,
    mask: Array | None,
    problem: Problem,
    *,
    vectors: Vectors = _NONE,
    outputs: Mapping[str, Array | None],
    eps: float = 0.0,
    momentum: float = 0.0,
    unbiased: bool = False,
    sigmoid: bool = False,
) -> None:
    """Launch ``forward`` of forward.cu; ``y`` None measures only. The outputs are named as in its arguments."""
    together = [array for array in (x, y, mask) if array is not None]
    layout = lay_out(together, problem.axis)
    length = vector_length(layout, [array for array in (x, y) if array is not None])
    compiled = launch.kernel("forward.cu", f"forward<{STORED[x.dtype.name]}, {length}>")
    tiling = plan.divide(
        layout, x.itemsize, PASSES["forward"], launch.device(), compiled.resident, masked=mask is not None
    )  # fmt: skip
    names = ("new_mean", "new_var", "normalizers", "count", "mean", "m2")
    arguments = b"".join((
        tiling.pack(layout), *pack_arrays(layout, (x, y, mask)), *map(pack_vector, vectors),
        pointers(*(outputs.get(name) for name in names)),
        struct.pack("<3d2q", eps, momentum, 1 - momentum, unbiased, sigmoid), post(tiling, PASSES["forward"]),
    ))  # fmt: skip
    launch.run(compiled, tiling, arguments)


def infer(
    x: Array,
    y: Array,
    mask: Array | None,
    problem: Problem,
    *,
    vectors: Vectors,
    outputs: Mapping[str, Array | None],
    eps: float,
    sigmoid: bool = False,
) -> None:
    """Launch ``inference`` of inference.cu."""
    layout = lay_out([array for array in (x, y, mask) if array is not None], problem.axis)
    length = vector_length(layout, (x, y))
    compiled = launch.kernel("inference.cu", f"inference<{STORED[x.dtype.name]}, {length}>")
    tiling = plan.stretch(layout, x.itemsize, SLOPE_BYTES, launch.device())
    arguments = b"".join((
        tiling.pack(layout), *pack_arrays(layout, (x, y, mask)), *map(pack_vector, vectors),
        pointers(*(outputs.get(name) for name in ("new_mean", "new_var", "normalizers"))),
        struct.pack("<dq", eps, sigmoid),
    ))  # fmt: skip
    compiled(tiling.blocks, arguments, shared=tiling.shared_bytes)


def post(tiling: plan.Tiling, kept: plan.Pass) -> bytes:
    """Return the struct ``Group``."""
    if tiling.members == 1:
        return pointers(None, None)
    return pointers(launch.mail(tiling.blocks * 2 * tiling.channels * kept.node_bytes // 8), launch.barriers())


def pack_arrays(layout: Layout, arrays: tuple[Array | None, ...]) -> list[bytes]:
    """Return a struct ``Array`` for each; the layout describes those that are not None, in this order."""
    packed, index = [], 0
    for array in arrays:
        packed.append(NO_ARRAY if array is None else layout.pack_array(index, array.data.ptr))
        index += array is not None
    return packed


def pointers(*arrays: Array | None) -> bytes:
    """Return the addresses of contiguous arrays, 0 for None."""
    return struct.pack(f"<{len(arrays)}Q", *(0 if array is None else array.data.ptr for array in arrays))


def sweep(call: Call, name: str, inputs: tuple[Array, ...], outputs: tuple[Array, ...], tail: bytes) -> None:
    """Launch a kernel of ``kernels/sums.cuh``; the tail is what its struct holds after the arrays."""
    x, mask = call.x, () if call.where is None else (call.where,)
    layout = lay_out((*inputs, *outputs, *mask), call.problem.axis)
    length = vector_length(layout, (*inputs, *outputs))
    compiled = launch.kernel(f"{name}.cu", f"{name}<{STORED[x.dtype.name]}, {length}>")
    kept = PASSES[name]
    tiling = plan.divide(layout, x.itemsize, kept, launch.device(), compiled.resident, masked=bool(mask))
    packed = pack_arrays(layout, (*inputs, *outputs, call.where))
    arguments = b"".join((
        tiling.pack(layout), *packed[: len(inputs)], packed[-1], pack_vector(call.gamma), pointers(call.normalizers),
        pack_vector(call.counts), post(tiling, kept), *packed[len(inputs) : -1], tail,
    ))  # fmt: skip
    launch.run(compiled, tiling, arguments)
