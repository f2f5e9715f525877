"""Indices beyond 2^31, in the kernels' own arithmetic. Emulated only: no tensor of that size is needed."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import equal
from polybn.conformance.strategies import sample

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
if "emulated" not in cupy.__version__:
    pytest.skip("it makes arrays of memory that is not there", allow_module_level=True)

PROBE = """
struct ProbeArguments { Geometry g; Array array; Index first; Index* offset; };

__global__ void probe(const __grid_constant__ ProbeArguments a) {
    extern __shared__ uint4 memory[];
    Place& at = *reinterpret_cast<Place*>(memory);
    if (threadIdx.x == 0) place(at, a.g, 2, a.first);
    __syncthreads();
    a.offset[threadIdx.x] = offset(a.g, a.array, at, 1, int(threadIdx.x));
}
"""
SIZES = (
    (1 << 34,),
    (5, 7, 3),
    (1 << 20, 1 << 14),
    (3, (1 << 31) - 1),
    (2, (1 << 31) + 7),
    (7, (1 << 32) + 1, 3),
    (1 << 11, 11, 1 << 12, 13),
)


@pytest.mark.parametrize("sizes", SIZES)
def test_positions_are_found_in_memory(sizes: tuple[int, ...]) -> None:
    """Digits with carries are Python's integers at the start, in the middle and at the end."""
    from polybn_cupy.layout import Layout
    from polybn_cupy.plan import Tiling
    from polybn_cupy.sources import OPTIONS, source

    module = cupy.cuda.Module()
    module.load(
        cupy.cuda.compiler.compile_using_nvrtc(source("tile.cuh") + PROBE, OPTIONS, name_expressions=("probe",))[0]
    )
    kernel = module.get_function("probe")
    strides = tuple(int(s) for s in itertools.accumulate((3, *sizes[:0:-1]), lambda a, b: a * b))[::-1]
    strides = (-strides[0], *strides[1:])
    count = int(np.prod([1, *sizes], dtype=object))
    layout = Layout(9, count, sizes, (1 << 40,), (strides,))
    tiling = Tiling(1, 1, 1, 1, 0, 1)
    for first in {0, count // 2 // 512 * 512, max(0, count - 100) // 512 * 512}:
        offsets = cupy.zeros(64, np.int64)
        packed = tiling.pack(layout) + layout.pack_array(0, 0) + struct.pack("<qQ", first, offsets.data.ptr)
        kernel((1,), (64,), (np.frombuffer(packed, np.dtype((np.void, len(packed)))),), shared_mem=1024)
        for k, found in enumerate(offsets.get().tolist()):
            position, expected = first + k, 3 << 40
            if position >= count:
                break
            for size, stride in zip(sizes[:0:-1], strides[:0:-1], strict=True):
                position, digit = divmod(position, size)
                expected += digit * stride
            assert found == expected + position * strides[0], (sizes, first + k)


@pytest.mark.parametrize("training", [True, False])
def test_values_far_apart(training: bool) -> None:
    """Values that are more than 2^31 places apart give the results of a contiguous array."""
    case, step = sample(5, "float16", (2, 3, 5), training=training), (1 << 31) + 5
    room = np.empty(step + 64, np.float16)  # untouched pages take no memory
    host = np.lib.stride_tricks.as_strided(room, (2, 3, 5), (2 * step, 10, 2))
    host[...] = case.x
    near = cupy.array(case.x)
    far = near.view_of(host)
    vectors = [cupy.array(v) for v in list(case.arrays().values())[1:]]
    results = []
    for x in (near, far):
        result, pullback = polybn.batch_norm_vjp(x, *vectors, training=training)
        outputs: list[Any] = [*result, *pullback(cupy.array(case.dy))[:3]]
        results.append([a.get() for a in outputs])
    assert all(map(equal, *results))
