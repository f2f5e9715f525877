"""Random launches on several streams at once, whose results must have the bits of the same launches one by one.

A call whose channels are shared by several blocks waits at a barrier in global memory (``reduce.cuh``). Only a GPU can
show whether what one block wrote is visible to the others, and whether streams disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import polybn
from tests.gpu.record import Result, emulated, say
from tests.gpu.speed import dtype_of

STREAMS, WINDOW = 4, 40
"""Streams that run at once, and launches between two comparisons. Each window makes its streams anew."""
GRAPHS = 4
"""One call in so many is captured, and its graph is launched twice."""
SHAPES = ((16, 3, 5003), (5, 2, 60_013), (64, 7, 31, 33), (3, 1, 700_001), (256, 6, 24, 24), (2, 40, 9973))
SMALL = ((3, 2, 5003), (1, 3, 20_011))
DTYPES = ("float32", "float16", "float64")

Call = Callable[[], list[Any]]


class Case(NamedTuple):
    """A call, and the bits of its results."""

    call: Call
    expected: list[bytes]


def stress(launches: int | None = None) -> Iterator[Result]:
    """Launch, compare, and report how many results differed."""
    import cupy

    launches = launches or (24 if emulated() else 1000)
    random = np.random.default_rng(0)
    cases = [_case(cupy, random, shape, dtype) for shape in (SMALL if emulated() else SHAPES) for dtype in DTYPES]
    found: Result = {"ok": True, "launches": 0, "streams": STREAMS, "different": []}
    while found["launches"] < launches:
        count = min(WINDOW, launches - found["launches"])
        found["different"] += _window(cupy, random, cases, count)
        found["launches"] += count
        found["ok"] = not found["different"]
        yield found
    say(f"stress: {found['launches']} calls on {STREAMS} streams, {len(found['different'])} differ")


def _case(cupy: Any, random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Case:
    """Make a call, forward and backward, and record the bits that it gives alone."""
    wide = "float64" if dtype == "float64" else "float32"
    x, dy = (cupy.array(random.normal(300, 7, shape).astype(dtype_of(dtype))) for _ in range(2))
    vectors = [cupy.array(random.uniform(0.5, 2, shape[1]).astype(wide)) for _ in range(4)]

    def call() -> list[Any]:
        result, pullback = polybn.batch_norm_vjp(x, *vectors, training=True)
        return [*result, *pullback(dy)[:3]]

    results = call()
    cupy.cuda.Device().synchronize()
    return Case(call, _bits(results))


def _window(cupy: Any, random: np.random.Generator, cases: list[Case], count: int) -> list[str]:
    """Run some calls on new streams without waiting for any; return a line for each result that differs."""
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(STREAMS)]
    started, graphs = [], list[Any]()  # a graph must not be deleted before it has run
    for number in range(count):
        case, stream = int(random.integers(len(cases))), int(random.integers(STREAMS))
        with streams[stream]:
            captured = number % GRAPHS == 0
            results = _captured(streams[stream], cases[case].call, graphs) if captured else cases[case].call()
        started.append((case, stream, results))
    for each in streams:
        each.synchronize()
    lines = []
    for case, stream, results in started:
        names = ("y", "running_mean", "running_var", "dx", "dgamma", "dbeta")
        pairs = zip(names, _bits(results), cases[case].expected, strict=True)
        lines += [f"case {case}, stream {stream}: {name}" for name, ours, expected in pairs if ours != expected]
    return lines


def _captured(stream: Any, call: Call, graphs: list[Any]) -> list[Any]:
    """Capture a call, after one that allocates, and launch the graph twice."""
    call()
    stream.begin_capture()
    try:
        results = call()
    finally:
        graphs.append(stream.end_capture())
    for _ in range(2):
        graphs[-1].launch(stream)
    return results


def _bits(arrays: list[Any]) -> list[bytes]:
    return [array.get().tobytes() for array in arrays]
