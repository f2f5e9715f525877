"""``polybn train`` in several processes: one run, one writer, an end in bounded time, and resuming it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import polybn
from polybn.lenet import runs
from polybn.lenet.team import join, team_of, writes
from polybn.spec import BackendError, DomainError
from tests.conftest import REASONS
from tests.support.xla import ELSEWHERE, compiles_quickly, environment

PATIENCE = 400
"""Seconds for a whole command on a busy machine, most of them for compiling."""

needs_jax = pytest.mark.skipif(REASONS.get("jax", "absent") is not None, reason=f"jax: {REASONS.get('jax')}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def start(processes: int, *options: Any) -> list[subprocess.Popen[str]]:
    """Start the same command in each process; nearly all of its time goes into compiling the network."""
    command = [sys.executable, "-m", "polybn", "train", "--data", "sample", *map(str, options)]
    team = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes), "--process"]
    return [
        subprocess.Popen(
            [*command, *team, str(process)],
            env=environment(1, cheap=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def finish(team: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of each; leave none running."""
    try:
        said = [worker.communicate(timeout=PATIENCE) for worker in team]
        return [(worker.returncode, *words) for worker, words in zip(team, said, strict=True)]
    finally:
        for worker in team:
            worker.kill()
            worker.wait()


@needs_jax
@pytest.mark.parametrize(
    "processes", [2, pytest.param(4, marks=pytest.mark.skipif(compiles_quickly(), reason=ELSEWHERE))]
)
def test_one_of_them_writes_and_a_run_of_them_is_resumed(processes: int, tmp_path: Path) -> None:
    """Epoch 1, then epoch 2 by ``--resume``, are the run of one process, to the rounding of sums in another order."""
    out, alone = tmp_path / "team", tmp_path / "alone"
    shared = ["--lr", "0.02", "--batch-size", "600"]
    begin = ["--backend", "jax", "--devices", processes, *shared, "--epochs", 1, "--out", out]
    for options in (begin, ["--resume", out, "--epochs", 2]):
        first, *others = finish(start(processes, *options))
        assert first[0] == 0, first
        assert "Saved in" in first[1]
        for code, said, errors in others:
            assert code == 0, errors
            assert "epoch" not in said
    polybn.train(
        polybn.networks.lenet(),
        "jax",
        data=polybn.fashion_mnist.load("sample"),
        epochs=2,
        batch_size=600,
        learning_rate=0.02,
        out=alone,
    )
    got, right = (runs.load(path) for path in (out, alone))
    assert got.config["devices"] == processes
    for a, b in zip(chain(*got.losses), chain(*right.losses), strict=True):
        assert abs(a - b) <= 2e-4


@needs_jax
def test_when_one_dies_the_other_ends_soon_with_a_word(tmp_path: Path) -> None:
    """Finished epochs stay; the sentence says what to do."""
    out = tmp_path / "run"
    survivor, victim = team = start(2, "--backend", "jax", "--devices", 2, "--epochs", 10_000, "--out", out)
    try:
        patience = time.monotonic() + PATIENCE
        while not (out / "metrics.jsonl").exists():
            assert time.monotonic() < patience
            assert survivor.poll() is None, survivor.communicate()
            time.sleep(0.1)
        victim.kill()
        _, errors = survivor.communicate(timeout=60)
    finally:
        finish(team)
    assert survivor.returncode == 1
    words = (
        r"error: polybn\.train: all 2 processes must run until the end; got .*start all of them again, with --resume"
    )
    assert re.search(words, errors), errors
    assert "stack trace" not in errors
    assert len(runs.load(out).epochs) >= 1


@needs_jax
def test_a_team_with_a_device_too_few_is_refused() -> None:
    """Else each process would train a network of its own, all in one directory."""
    for code, _, errors in finish(start(2, "--backend", "jax", "--epochs", 1)):
        assert code != 0
        assert "polybn.train: devices must be all 2 of the 2 processes; got 1 " in errors


# Options.


def test_without_options_a_process_is_alone() -> None:
    assert team_of(None, None, None) is None
    assert writes("numpy")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("host:1", None, None), r"--coordinator, --processes and --process must be given together; got .*"),
        ((None, 2, 0), r"--coordinator, --processes and --process must be given together; got .*"),
        (("host", 2, 0), r"--coordinator must be HOST:PORT; got 'host' .*"),
        (("host:1", 2, 2), r"--process must lie in 0 to 1; got 2 .*"),
        (("host:1", 2, -1), r"--process must lie in 0 to 1; got -1 .*"),
    ],
)
def test_options_that_do_not_fit(given: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(DomainError, match=rf"^polybn train: {words}"):
        team_of(*given)


def test_a_backend_of_one_process_is_refused() -> None:
    words = r"^polybn train: backend must train in several processes for --coordinator; got 'numpy' "
    with pytest.raises(BackendError, match=words):
        join("numpy", team_of("localhost:1", 2, 0))
