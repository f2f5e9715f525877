"""Interleaved timing, on a clock that the contenders turn themselves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from polybn import bench

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def _taking(clock: list[float], seconds: list[float], called: list[str], name: str) -> Callable[[], None]:
    """Take these seconds in turn, the last of them ever after."""

    def call() -> None:
        clock[0] += seconds.pop(0) if len(seconds) > 1 else seconds[0]
        called.append(name)

    return call


def test_times_and_ratios_are_medians(clock: list[float]) -> None:
    called: list[str] = []
    # The first round's calls, of 64 s, are not counted.
    slow, fast = [64.0] * 6 + [2.0], [64.0] * 3 + [0.5]
    contenders: bench.Contenders = {
        "slow": _taking(clock, slow, called, "slow"),
        "fast": _taking(clock, fast, called, "fast"),
    }
    timings = {timing.contender: timing for timing in bench.measure("task", contenders, rounds=1)}
    assert timings["slow"] == ("task", "slow", 2000.0, 1.0)
    assert timings["again"] == ("task", "again", 2000.0, 1.0)
    assert timings["fast"] == ("task", "fast", 500.0, 0.25)
    assert Counter(called) == {"slow": 2 * 2 * bench.CALLS, "fast": 2 * bench.CALLS}


def test_the_first_call_of_a_block_may_be_slow(clock: list[float]) -> None:
    cold = [8.0, 1.0, 1.0] * 4 + [1.0]
    (only, again) = bench.measure("task", {"cold": _taking(clock, cold, [], "cold")}, rounds=1)
    assert only.milliseconds == again.milliseconds == 1000.0


def test_short_calls_fill_a_block(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(bench, "BLOCK", 1.0)
    bench.measure("task", {"short": _taking(clock, [1 / 64], called, "short")}, rounds=1)
    assert len(called) == 2 * 2 * 64


def test_everybody_comes_after_everybody(clock: list[float]) -> None:
    called: list[str] = []
    names = ["a", "b", "c"]
    bench.measure("task", {name: _taking(clock, [1.0], called, name) for name in names}, rounds=40)
    blocks = called[:: bench.CALLS]
    assert {(one, other) for one, other in pairwise(blocks) if one != other} == {
        (one, other) for one in names for other in names if one != other
    }


def test_every_backend_can_be_timed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", ((7, 3, 5), (11, 2)))
    monkeypatch.setattr(bench, "BLOCK", 0.0)
    timings = list(bench.run(backend, rounds=1))
    tasks = ["forward 7x3x5", "forward and derivative 7x3x5", "forward 11x2", "forward and derivative 11x2"]
    assert list(dict.fromkeys(timing.task for timing in timings)) == [*tasks, "LeNet training step"]
    jitted = {f"{backend} in jit"} if backend == "jax" else set()
    for task in tasks:
        contenders = {timing.contender for timing in timings if timing.task == task}
        assert contenders - {"plain NumPy", "PyTorch"} == {backend, "again", *jitted}
    assert all(timing.milliseconds > 0 for timing in timings)
