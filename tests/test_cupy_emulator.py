"""The emulation of kernels finds missing barriers, threads that wait in vain, and writes out of bounds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
if "emulated" not in cupy.__version__:
    pytest.skip("it is of the emulation only", allow_module_level=True)

THREADS = 96
BEFORE_READ, BEFORE_WRITE = (
    "/* before it is read */ __syncthreads();",
    "/* before it is written again */ __syncthreads();",
)
NEIGHBOURS = f"""
__global__ void neighbours(int* out, const int step) {{
    extern __shared__ uint4 memory[];
    int* shared = reinterpret_cast<int*>(memory);
    for (int turn = 0; turn < 2; ++turn) {{
        shared[threadIdx.x] = int(threadIdx.x) + 1000 * turn;
        {BEFORE_READ}
        out[turn * blockDim.x + threadIdx.x] = shared[(threadIdx.x + step) % blockDim.x];
        {BEFORE_WRITE}
    }}
}}
"""
MEETING = """
__global__ void meeting(unsigned* state) {{
    if (threadIdx.x == 0) {{
        atomicAdd(state, 1u);
        while (*static_cast<volatile unsigned*>(state) < {members}) __nanosleep(32);
    }}
    __syncthreads();
}}
"""


def load(code: str, name: str) -> Any:
    from polybn_cupy.sources import OPTIONS

    module = cupy.cuda.Module()
    module.load(cupy.cuda.compiler.compile_using_nvrtc(code, OPTIONS, name_expressions=(name,))[0])
    return module.get_function(name)


def neighbours(code: str, step: int) -> list[bool]:
    """Return whether each of two launches, which visit threads in opposite orders, was right."""
    kernel, right = load(code, "neighbours"), []
    expected = [(t + step) % THREADS + 1000 * turn for turn in range(2) for t in range(THREADS)]
    for _ in range(2):
        out = cupy.zeros(2 * THREADS, np.int32)
        kernel((1,), (THREADS,), (out, np.array(step, np.int32)), shared_mem=4 * THREADS)
        right.append(out.get().tolist() == expected)
    return right


@pytest.mark.parametrize("step", [1, 5, THREADS - 1, THREADS - 33])
def test_a_missing_barrier_shows(step: int) -> None:
    """Each barrier matters, after a write or after a read: one of the two orders of threads shows its absence."""
    assert neighbours(NEIGHBOURS, step) == [True, True]
    for barrier in (BEFORE_READ, BEFORE_WRITE):
        assert not all(neighbours(NEIGHBOURS.replace(barrier, ""), step)), barrier


def test_blocks_that_wait_for_each_other_meet_if_they_are_launched_together() -> None:
    state = cupy.zeros(1, np.uint32)
    load(MEETING.format(members=5), "meeting")((5,), (64,), (state,), enable_cooperative_groups=True)
    assert state.get().tolist() == [5]


ARRIVAL = """
__global__ void arrival(unsigned* state, int* mail, int* out) {
    if (threadIdx.x == blockDim.x - 1) mail[blockIdx.x] = 7;
    /* before it is told */ __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(state, 1u);
        while (*static_cast<volatile unsigned*>(state) < gridDim.x) __nanosleep(32);
    }
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = mail[(blockIdx.x + 1) % gridDim.x];
}
"""


@pytest.mark.parametrize("barrier", [True, False])
def test_a_block_that_arrives_before_its_threads_are_done_shows(barrier: bool) -> None:
    """Without the barrier other blocks read too early, because an atomic operation lets them run first."""
    code = ARRIVAL if barrier else ARRIVAL.replace("/* before it is told */ __syncthreads();", "")
    kernel, right = load(code, "arrival"), []
    for _ in range(2):
        arrays = [cupy.zeros(1, np.uint32), cupy.zeros(3, np.int32), cupy.zeros(3, np.int32)]
        kernel((3,), (64,), tuple(arrays), enable_cooperative_groups=True)
        right.append(arrays[2].get().tolist() == [7, 7, 7])
    assert all(right) == barrier


ENDS = {
    "threads that wait in two places": ("threads wait for each other forever", """
        __global__ void bad(int* out) { if (threadIdx.x) __syncthreads(); else __shfl_xor_sync(0xffffffffu, 1, 1); }
        """),
    "a block that waits for one that never comes": ("threads sleep forever", """
        __global__ void bad(int* out) { while (!*static_cast<volatile int*>(out)) __nanosleep(32); }
        """),
    "a shuffle without all lanes": ("a shuffle whose mask leaves lanes out", """
        __global__ void bad(int* out) { out[0] = __shfl_xor_sync(0x7fffffffu, 1, 1); }
        """),
    "a barrier in a branch": ("while others wait for it", """
        __global__ void bad(int* out) { if (threadIdx.x < 40) __syncthreads(); }
        """),
    "shared memory": ("wrote beyond its shared memory", """
        __global__ void bad(int* out) {
            extern __shared__ uint4 memory[];
            reinterpret_cast<int*>(memory)[threadIdx.x + 16] = 1;
        }
        """),
    "an array": ("a kernel wrote beyond an allocation of 256 bytes", """
        __global__ void bad(int* out) { out[threadIdx.x + 1] = 1; }
        """),
}  # fmt: skip
RUN = """
import cupy, numpy as np
from tests.test_cupy_emulator import ENDS, load
out = cupy.zeros(64, np.int32)
load(ENDS[{name!r}][1], "bad")((1,), (64,), (out,), shared_mem=256)
"""


@pytest.mark.parametrize("name", ENDS)
def test_what_a_gpu_would_not_forgive_ends_the_run(name: str) -> None:
    """Run the fault in a new process, because the emulator ends its process."""
    run = subprocess.run([sys.executable, "-c", RUN.format(name=name)], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert ENDS[name][0] in run.stderr
