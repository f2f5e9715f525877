"""Runs that are interrupted, at whatever moment, go on to the bits of one that is not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from polybn import dispatch
from polybn.lenet import checkpoints, networks, training
from polybn.lenet.errors import CheckpointError
from polybn.lenet.fashion_mnist import Dataset
from polybn.lenet.training import Run, train
from tests import training_worker
from tests.training_worker import OPTIONS, slice_of_sample

SPEC = networks.lenet()
DATA = slice_of_sample()


class Result(NamedTuple):
    """All that a run leaves behind but its times, as values that compare bit by bit."""

    state: dict[str, bytes]
    losses: list[list[str]]
    metrics: list[tuple[float, ...]]
    files: list[tuple[float, ...]]
    """The metrics in ``metrics.jsonl``."""
    config: dict[str, Any]


def result(directory: Path) -> Result:
    run = training.load_run(directory)
    return Result(
        {name: value.tobytes() for name, value in run.state.items()},
        [[loss.hex() for loss in epoch] for epoch in run.losses],
        [epoch[:4] for epoch in run.epochs],
        [epoch[:4] for epoch in training.read_metrics(directory)],
        run.config,
    )


# Threads of OpenBLAS that wait for a core which another test has taken cost more than they give.
ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1"}


def start(data: Path, directory: Path, epochs: int, deadly_sync: int = 0) -> subprocess.Popen[str]:
    arguments = [str(data), str(directory), str(epochs), str(deadly_sync)]
    command = [sys.executable, "-m", "tests.training_worker", *arguments]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=ENVIRONMENT)


def finish(data: Path, directory: Path, epochs: int) -> list[str]:
    """Train to the end, and return what the process said."""
    process = start(data, directory, epochs)
    said, _ = process.communicate()
    assert process.returncode == 0
    return said.splitlines()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    training_worker.store(DATA, path)
    return path


def test_k_epochs_and_k_more_are_2k_epochs(data: Path, tmp_path: Path) -> None:
    finish(data, tmp_path / "at once", 6)
    finish(data, tmp_path / "in parts", 3)
    said = finish(data, tmp_path / "in parts", 6)
    assert said == ["begins", "trained 4", "saved 4", "trained 5", "saved 5", "trained 6", "saved 6"]
    assert result(tmp_path / "in parts") == result(tmp_path / "at once")
    assert len(result(tmp_path / "at once").files) == 6


def test_twenty_kills_at_random_moments_change_nothing(data: Path, tmp_path: Path) -> None:
    """Half of them soon after the last step of an epoch, when it is tested and saved; the others anywhere."""
    rng, directory = random.Random(7), tmp_path / "killed"
    for kill in range(20):
        process = start(data, directory, 1_000_000)
        assert process.stdout is not None
        awaited, patience = ("trained", 0.03) if kill % 2 else (rng.choice(["begins", "saved"]), 0.1)
        while not next(process.stdout).startswith(awaited):
            pass
        time.sleep(rng.uniform(0, patience))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    survived = len(training.load_run(directory).epochs)
    assert survived > 0
    epochs = survived + 2
    said = finish(data, directory, epochs)
    assert said[-1] == f"saved {epochs}"
    assert len(said) == 5, "epochs were trained again, or left out"
    finish(data, tmp_path / "left alone", epochs)
    assert result(directory) == result(tmp_path / "left alone")
    assert {path.name for path in directory.rglob("*")} == {
        "checkpoints", "config.json", "metrics.jsonl", f"epoch-{epochs - 1:04d}.npz", f"epoch-{epochs:04d}.npz",
    }  # fmt: skip


def test_a_kill_in_any_sync_changes_nothing(data: Path, tmp_path: Path) -> None:
    """Every file that a run writes is synced, and its directory: here it dies in the first sync, then in the second."""
    directory, deadly = tmp_path / "killed", 0
    while True:
        deadly += 1
        process = start(data, directory, 3, deadly)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert deadly > 6  # of config.json, a new directory, a checkpoint and metrics.jsonl
    finish(data, tmp_path / "left alone", 3)
    assert result(directory) == result(tmp_path / "left alone")


def test_control_c_ends_in_words_and_the_run_goes_on(tmp_path: Path) -> None:
    """The real command on the real sample. It may be in the second epoch or later when the signal comes."""

    def train(out: str, epochs: int, *options: str) -> subprocess.Popen[str]:
        # A shell that starts tests in the background lets them ignore Ctrl-C; Python must not inherit that.
        code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); from polybn.cli import main; main()"
        arguments = ["train", "--data", "sample", "--out", str(tmp_path / out), "--epochs", str(epochs), *options]
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)

    process = train("run", 99)
    assert process.stdout is not None
    while not next(process.stdout).startswith("epoch"):
        pass
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told == f"Stopped; finished epochs are saved. Go on with --resume --out {tmp_path / 'run'}\n"
    done = len(training.read_metrics(tmp_path / "run"))
    assert 1 <= done < 99
    said = train("run", done + 1, "--resume").communicate()[0]
    assert re.findall(r"^epoch +(\d+),", said, re.MULTILINE) == [str(done + 1)]
    said = train("at once", done + 1).communicate()[0]
    assert len(re.findall(r"^epoch +(\d+),", said, re.MULTILINE)) == done + 1
    assert result(tmp_path / "run") == result(tmp_path / "at once")


def short_run(directory: Path, epochs: int = 2, **changes: Any) -> Run:
    return train(SPEC, data=DATA, out=directory, epochs=epochs, **(OPTIONS | changes))


def test_a_finished_run_is_returned_and_left_alone(tmp_path: Path) -> None:
    run = short_run(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("checkpoints/*")}
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.json*")}
    for epochs in (2, 1):
        steps: list[Any] = []
        again = short_run(tmp_path, epochs, resume=True, on_steps=lambda *said: steps.append(said))  # noqa: B023
        assert again[:3] == run[:3]
        assert all(np.array_equal(again.state[name], value) for name, value in run.state.items())
        assert not steps
        assert before == {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("checkpoints/*")}
        assert (tmp_path / "metrics.jsonl").read_bytes() == files["metrics.jsonl"]
    assert json.loads(files["config.json"]) | {"epochs": 1} == json.loads((tmp_path / "config.json").read_text())


def test_resume_begins_a_run_that_is_not_there(tmp_path: Path) -> None:
    short_run(tmp_path / "new", resume=True)
    short_run(tmp_path / "plain")
    assert result(tmp_path / "new") == result(tmp_path / "plain")


def test_files_that_lag_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    """As after a kill between the two; also where the run is finished."""
    short_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole.splitlines(keepends=True)[0])
    (tmp_path / "config.json").unlink()
    short_run(tmp_path, resume=True)
    assert metrics.read_bytes() == whole
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == OPTIONS["seed"]


OTHER_DATA = DATA._replace(test_labels=DATA.test_labels[::-1])


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("learning_rate", {"learning_rate": 0.25}),
        ("seed", {"seed": 4}),
        ("batch_size", {"batch_size": 64}),
        ("network", {"network": networks.lenet(None)}),
        ("data_sha256", {"data": OTHER_DATA}),
        ("backend", {"backend": "other"}),
    ],
)
def test_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, changes: dict[str, Any]
) -> None:
    short_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(training, "find_backend", lambda name: dispatch.backend("numpy"))
    options = {"network": SPEC, "data": DATA, **OPTIONS} | changes
    words = rf"^polybn\.train: {key} must be that of the run in {tmp_path} to resume it; got .*epoch-0002\.npz was"
    with pytest.raises(CheckpointError, match=words):
        train(**options, out=tmp_path, epochs=3, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(tmp_path: Path) -> None:
    short_run(tmp_path / "damaged", 3)
    damage(tmp_path / "damaged" / "checkpoints" / "epoch-0003.npz")
    seen: list[int] = []
    with pytest.warns(UserWarning, match=r"falling back to .*epoch-0002\.npz: .*epoch-0003\.npz must "):
        short_run(tmp_path / "damaged", 4, resume=True, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [3, 4]
    short_run(tmp_path / "whole", 4)
    with warnings.catch_warnings(action="error"):
        assert result(tmp_path / "damaged") == result(tmp_path / "whole")


def test_damaged_checkpoints_only(tmp_path: Path) -> None:
    """Beginning again would throw away what can perhaps be rescued."""
    short_run(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="must hold an undamaged checkpoint"):
        short_run(tmp_path, 3, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_checkpoint_with_a_value_that_no_run_leaves_behind(tmp_path: Path) -> None:
    run = short_run(tmp_path)
    run.state["norm1.running_var"][0] = -1
    meta = {"config": run.config, "epochs": [epoch._asdict() for epoch in run.epochs], "losses": run.losses}
    checkpoints.save(tmp_path / "checkpoints", run.state, meta, epoch=2)
    with pytest.raises(CheckpointError, match=r"finite values, 0 or more, as 'norm1\.running_var'; got -1\.0"):
        short_run(tmp_path, 3, resume=True)


def test_images_stay_where_they_are(tmp_path: Path) -> None:
    """A resumed run with the same bytes from elsewhere is the same run."""
    short_run(tmp_path)
    images, labels, test_images, test_labels = (array.copy() for array in DATA[:4])
    moved = Dataset(images, labels, test_images, test_labels, "elsewhere")
    run = train(SPEC, data=moved, out=tmp_path, epochs=3, resume=True, **OPTIONS)
    assert len(run.epochs) == 3
    assert json.loads((tmp_path / "config.json").read_text())["data"] == "elsewhere"
