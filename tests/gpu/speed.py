"""Times of batch norm for ``tests.gpu.check``: replays of CUDA graphs, beside a copy and PyTorch in the same run.

A measurement is a dict: ``us``, the median of replays for one call; ``predicted`` and ``goal`` where there are any,
``of_copy``, the least bytes per time that a call must move, as a share of the bytes per time of a copy.
Predictions come from the counts in machine code, ``instructions``, of a thread per value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import polybn
from tests.gpu import budget, peers
from tests.gpu.record import Result, emulated, say

REPLAYS, WARM = 40, 3
MOVED = {"copy": 2, "forward": 2, "backward": 3, "inference": 2}
"""The least number of times that the bytes of a tensor must be moved."""

COPY_LATENCY = 2.0  # us


class Problem(NamedTuple):
    """A tensor to normalize."""

    shape: tuple[int, ...]
    dtype: str
    layout: str

    @property
    def label(self) -> str:
        """Return a text for this tensor, as a key of the record."""
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"


LARGE = (256, 64, 56, 56)
LENET_SHAPES = ((256, 6, 24, 24), (256, 16, 8, 8), (256, 120))
GOALS = {
    ("forward", "float32"): 106.0, ("backward", "float32"): 160.0,
    ("forward", "float16"): 54.0, ("backward", "float16"): 80.0,
    ("forward", "bfloat16"): 54.0, ("backward", "bfloat16"): 80.0,
}  # fmt: skip
"""Goals at the large shape, in us, for a device that copies 4.3 TB/s. Inference should reach 95 % of a copy's speed,
and the forward pass of a LeNet layer should take 6 us."""
INFERENCE_SHARE, SMALL_GOAL = 0.95, 6.0


def problems() -> Iterator[Problem]:
    """List what is timed; in emulation, whose times mean nothing, these are tiny tensors."""
    for shape in ((5, 3, 7, 2), (7, 3)) if emulated() else (LARGE, *LENET_SHAPES):
        for dtype in ("float32", "float16", "bfloat16") if shape == LARGE else ("float32", "float16"):
            for layout in ("NCHW", "NHWC") if len(shape) == 4 else ("NC",):
                yield Problem(shape, dtype, layout)


def batch_norm() -> Iterator[Result]:
    """Time batch norm, and then PyTorch's."""
    import cupy

    found: Result = {"ok": True, "unit": "us: median of graph replays, per call", "PyTorch": peers.torch_versions()}
    found["large copy, TB/s"] = round(_large_copy(cupy, 1 << 12 if emulated() else 1 << 31), 3)
    yield found
    for problem in problems():
        times = found[problem.label] = {}
        for task, microseconds in _ours(cupy, problem):
            times[task] = _judged(problem, task, microseconds, times, found["large copy, TB/s"])
            yield found
        for task, outcome in peers.of_torch(*problem):
            times[task] = outcome
            yield found
        cupy.get_default_memory_pool().free_all_blocks()
        say(f"speed {problem.label}: { ({task: t.get('us', t) for task, t in times.items()}) }")


def _judged(problem: Problem, task: str, microseconds: float, times: Result, copied: float) -> Result:
    """Return a time with its prediction, its goal and its share of a copy's speed.

    Both are scaled to the TB/s that a large copy reaches on this device.
    """
    result: Result = {"us": round(microseconds, 2)}
    if emulated():
        return result
    itemsize = 4 if problem.dtype == "float32" else 2
    values = math.prod(problem.shape)
    memory = MOVED[task] * values * itemsize / (copied * 1e6)
    latency = COPY_LATENCY if task == "copy" else budget.LATENCY[task]
    instructions = _instructions(problem, task)
    result["predicted"] = round(latency + max(memory, instructions * values / budget.ISSUED), 1)
    if task == "copy":
        return result
    result["instructions"] = instructions
    result["of_copy"] = round(times["copy"]["us"] * MOVED[task] / MOVED["copy"] / microseconds, 3)
    if problem.shape != LARGE:
        return result | ({"goal": SMALL_GOAL, "met": microseconds <= SMALL_GOAL} if task == "forward" else {})
    if task == "inference":
        return result | {"goal_of_copy": INFERENCE_SHARE, "met": result["of_copy"] >= INFERENCE_SHARE}
    goal = round(GOALS[task, problem.dtype] * budget.COPY_BYTES / (copied * 1e6), 1)
    return result | {"goal": goal, "met": microseconds <= goal}


def _instructions(problem: Problem, task: str) -> float:
    """Return instructions per value, as counted in machine code; bfloat16 counts as float16."""
    if task == "copy":
        return 0.0
    dtype = "float32" if problem.dtype == "float32" else "float16"
    kernels = json.loads(budget.RECORD.read_text(encoding="utf-8"))["kernels"]
    counted: float = kernels[f"{task} {dtype} {'NHWC' if problem.layout == 'NC' else problem.layout}"][
        "instructions a value"
    ]
    return counted


def _ours(cupy: Any, problem: Problem) -> Iterator[tuple[str, float]]:
    module, (shape, dtype, layout) = polybn.backend("cupy"), problem
    random = np.random.default_rng(0)
    named = dtype_of(dtype)
    one = [random.normal(1, 1, shape[1:]).astype(named) for _ in range(2)]  # every member of the batch is the same
    x, dy = (cupy.empty(shape, named) for _ in range(2))
    if layout == "NHWC":
        x, dy = (cupy.empty((shape[0], *shape[2:], shape[1]), named).transpose(0, 3, 1, 2) for _ in range(2))
    for array, host in zip((x, dy), one, strict=True):
        for start in range(0, shape[0], 32):
            array[start : start + 32] = module.asarray(np.broadcast_to(host, array[start : start + 32].shape).copy())
    source, target = (cupy.empty(x.size, named) for _ in range(2))
    source[...] = cupy.asarray(np.resize(one[0], x.size))
    repeats = 4 if x.nbytes > 1 << 24 else 20
    yield "copy", replay(cupy, lambda: cupy.copyto(target, source), repeats)
    vectors = [module.asarray(np.full(shape[1], value, np.float32)) for value in (1.5, 0.5, 0.25, 2.0)]
    _, pullback = polybn.batch_norm_vjp(x, *vectors, training=True)
    yield "forward", replay(cupy, lambda: polybn.batch_norm(x, *vectors, training=True), repeats)
    yield "backward", replay(cupy, lambda: pullback(dy), repeats)
    yield "inference", replay(cupy, lambda: polybn.batch_norm(x, *vectors, training=False), repeats)


def _large_copy(cupy: Any, size: int) -> float:
    """Return the bytes that a copy of a tensor far beyond any cache reads and writes, in TB/s."""
    source, target = (cupy.zeros(size, np.uint8) for _ in range(2))
    microseconds = replay(cupy, lambda: cupy.copyto(target, source), 1)
    return 2 * size / microseconds / 1e6


def replay(cupy: Any, call: Callable[[], object], repeats: int) -> float:
    """Return the median time of one of several calls in a graph that is replayed, in microseconds."""
    cupy.cuda.Device().synchronize()  # the new stream does not wait for the default one
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        call()  # allocates the memory that the stream keeps
        stream.synchronize()
        stream.begin_capture()
        try:
            kept = [call() for _ in range(repeats)]
        finally:
            graph = stream.end_capture()
        replays = 2 if emulated() else REPLAYS
        events = [[cupy.cuda.Event() for _ in range(2)] for _ in range(WARM + replays)]
        for start, stop in events:
            start.record(stream)
            graph.launch(stream)
            stop.record(stream)
        stream.synchronize()
        del kept
    milliseconds = [cupy.cuda.get_elapsed_time(*pair) for pair in events[WARM:]]
    return float(np.median(milliseconds)) * 1e3 / repeats


def dtype_of(name: str) -> Any:
    """Return a NumPy dtype; bfloat16 is one of ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)
