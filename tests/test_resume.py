"""A run that is interrupted at any moment and resumed has the bits of one without interruption."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from polybn.lenet import checkpoints, fashion_mnist, networks, runs
from polybn.lenet.errors import CheckpointError
from polybn.lenet.fashion_mnist import Dataset
from polybn.lenet.program import Steps
from polybn.lenet.runs import Epoch, Run
from polybn.lenet.training import resume, train
from polybn.spec import DomainError
from tests.support import training_worker
from tests.support.training_worker import OPTIONS, slice_of_sample

SPEC = networks.lenet()
DATA = slice_of_sample()


class Result(NamedTuple):
    """The whole result of a run, except its times, as values that compare bit by bit."""

    state: dict[str, bytes]
    losses: list[list[str]]
    metrics: list[tuple[float, ...]]
    files: list[tuple[float, ...]]
    """The metrics in ``metrics.jsonl``."""
    config: dict[str, Any]


def result(directory: Path) -> Result:
    run = runs.load(directory)
    return Result(
        {name: value.tobytes() for name, value in run.state.items()},
        [[loss.hex() for loss in epoch] for epoch in run.losses],
        [epoch[:4] for epoch in run.epochs],
        [epoch[:4] for epoch in runs.read_metrics(directory)],
        run.config,
    )


# On busy cores, several threads of OpenBLAS are slower than one.
ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1"}


def start(data: Path, directory: Path, epochs: int, deadly_sync: int = 0) -> subprocess.Popen[str]:
    arguments = [str(data), str(directory), str(epochs), str(deadly_sync)]
    command = [sys.executable, "-m", "tests.support.training_worker", *arguments]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=ENVIRONMENT)


def finish(data: Path, directory: Path, epochs: int) -> list[str]:
    """Train to the end; return the lines that the process printed."""
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


def test_forty_kills_of_two_trainers_that_fight_for_one_directory(data: Path, tmp_path: Path) -> None:
    """The owner of the run is killed, often while an epoch is tested and saved, and the other one takes over at once.

    Two processes never train at once, no epoch that was reported as saved is trained again, and in the end every bit
    is that of an uninterrupted run.
    """
    rng, directory, saved = random.Random(7), tmp_path / "killed", 0
    fighters = [Fighter(data, directory), Fighter(data, directory)]
    try:
        for kill in range(40):
            owner = next_owner(fighters)
            (other,) = (fighter for fighter in fighters if fighter is not owner)
            awaited, patience = ("trained", 0.03) if kill % 2 else (rng.choice(["begins", "saved"]), 0.05)
            owner.wait_for(awaited)
            time.sleep(rng.uniform(0, patience))
            assert not other.trains(), "two trained at the same time"
            epochs = saved_in(owner.kill())
            first = epochs[0] if epochs else saved + 1  # the last saved epoch may be unreported
            assert first > saved, "an epoch was trained again though it was saved"
            assert epochs == list(range(first, first + len(epochs)))
            saved = max([saved, *epochs])
            fighters = [other, Fighter(data, directory)]
    finally:
        saved = max([saved, *(epoch for fighter in fighters for epoch in saved_in(fighter.kill()))])
    survived = len(runs.load(directory).epochs)
    assert survived >= saved, "an epoch that was reported as saved is lost"
    said = finish(data, directory, survived + 2)
    assert said[-1] == f"saved {survived + 2}"
    assert len(said) == 5, "epochs were trained again, or left out"
    finish(data, tmp_path / "left alone", survived + 2)
    assert result(directory) == result(tmp_path / "left alone")
    assert {path.name for path in directory.rglob("*")} == {
        ".lock", "checkpoints", "config.json", "metrics.jsonl",
        f"epoch-{survived + 1:04d}.npz", f"epoch-{survived + 2:04d}.npz",
    }  # fmt: skip


def saved_in(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("saved ")]


class Fighter:
    """A process that trains in a directory, or waits until it may, with the lines that it has printed."""

    def __init__(self, data: Path, directory: Path) -> None:
        self._process = start(data, directory, 1_000_000)
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("waits"):
                self._lines.append(line)
            else:
                assert "must be a directory in which nobody trains; got one in use by " in line

    def trains(self) -> bool:
        return bool(self._lines)

    def wait_for(self, word: str) -> None:
        seen = len(self._lines) if word != "begins" else 0
        until(lambda: any(line.startswith(word) for line in self._lines[seen:]))

    def kill(self) -> list[str]:
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._lines


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened for too long"
        time.sleep(0.002)


def next_owner(fighters: list[Fighter]) -> Fighter:
    until(lambda: any(fighter.trains() for fighter in fighters))
    (owner,) = (fighter for fighter in fighters if fighter.trains())
    return owner


def test_a_kill_in_any_sync_changes_nothing(data: Path, tmp_path: Path) -> None:
    """A run syncs every file and its directory; here it is killed in the first sync, then in the second, and so on."""
    directory, deadly = tmp_path / "killed", 0
    while True:
        deadly += 1
        process = start(data, directory, 3, deadly)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert deadly > 6  # syncs of config.json, a new directory, a checkpoint and metrics.jsonl
    finish(data, tmp_path / "left alone", 3)
    assert result(directory) == result(tmp_path / "left alone")


def test_control_c_ends_in_words_and_the_run_goes_on(tmp_path: Path) -> None:
    """Run the real command on the real sample; it may be in the second epoch or later when the signal comes."""

    def train(out: str, epochs: int, *options: str) -> subprocess.Popen[str]:
        # Tests in the background of a shell ignore Ctrl-C, which Python must not inherit.
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
    words, command = told.rstrip().split(": ", 1)
    assert words == "Stopped; finished epochs are saved. To go on"
    assert shlex.split(command)[-3:] == ["train", "--resume", str(tmp_path / "run")]
    done = len(runs.read_metrics(tmp_path / "run"))
    assert 1 <= done < 99
    pasted = subprocess.run(
        f"{command} --epochs {done + 1}", shell=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, check=True
    )
    said = pasted.stdout
    assert re.findall(r"^epoch +(\d+),", said, re.MULTILINE) == [str(done + 1)]
    said = train("at once", done + 1).communicate()[0]
    assert len(re.findall(r"^epoch +(\d+),", said, re.MULTILINE)) == done + 1
    assert result(tmp_path / "run") == result(tmp_path / "at once")


def short_run(directory: Path, epochs: int = 2, **changes: Any) -> Run:
    return train(SPEC, data=DATA, out=directory, epochs=epochs, **(OPTIONS | changes))


def go_on(directory: Path, epochs: int | None = None, data: Dataset = DATA, **told: Any) -> Run:
    return resume(directory, epochs=epochs, data=data, **told)


def test_a_finished_run_is_returned_and_left_alone(tmp_path: Path) -> None:
    run = short_run(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("checkpoints/*")}
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.json*")}
    for epochs in (2, 1, None):
        steps: list[Any] = []
        again = go_on(tmp_path, epochs, on_steps=lambda *said: steps.append(said))  # noqa: B023
        assert again[:3] == run[:3]
        assert all(np.array_equal(again.state[name], value) for name, value in run.state.items())
        assert not steps
        assert before == {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("checkpoints/*")}
        assert (tmp_path / "metrics.jsonl").read_bytes() == files["metrics.jsonl"]
    assert json.loads(files["config.json"]) | {"epochs": 1} == json.loads((tmp_path / "config.json").read_text())


def test_a_run_knows_how_many_epochs_were_asked_for(tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "stopped", 3, on_epoch=stop)
    assert len(go_on(tmp_path / "stopped").epochs) == 3
    short_run(tmp_path / "plain", 3)
    assert result(tmp_path / "stopped") == result(tmp_path / "plain")


def test_a_run_that_was_stopped_before_its_first_epoch_goes_on(tmp_path: Path) -> None:
    def stop(epoch: int, steps: Steps) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "stopped", on_steps=stop)
    assert not (tmp_path / "stopped" / "checkpoints").exists()
    go_on(tmp_path / "stopped")
    short_run(tmp_path / "plain")
    assert result(tmp_path / "stopped") == result(tmp_path / "plain")


@pytest.mark.parametrize("name", ["typo", "empty", "file"])
def test_what_is_no_run_is_not_begun(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    words = rf"^polybn: {tmp_path / name} must be the directory of a run; got .*`polybn train` begins one\)$"
    with pytest.raises(CheckpointError, match=words):
        go_on(tmp_path / name, 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_every_option_is_restored(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 64, "learning_rate": 0.25, "seed": 5, "last_batch": "drop"}
    for name, epochs in (("in parts", 1), ("at once", 2)):
        train(networks.lenet(None), data=DATA, out=tmp_path / name, epochs=epochs, **options)
    go_on(tmp_path / "in parts", 2)
    assert result(tmp_path / "in parts") == result(tmp_path / "at once")
    assert len(runs.load(tmp_path / "at once").losses[0]) == 300 // 64


def test_the_data_are_read_again_from_where_they_were(tmp_path: Path) -> None:
    data = fashion_mnist.load("sample")
    train(SPEC, data=data, out=tmp_path, epochs=0)
    assert len(resume(tmp_path, epochs=1).epochs) == 1


def test_files_that_lag_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    """Files may lag behind after a kill between the two writes, also if the run is finished."""
    short_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole.splitlines(keepends=True)[0])
    (tmp_path / "config.json").unlink()
    go_on(tmp_path, 2)
    assert metrics.read_bytes() == whole
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == OPTIONS["seed"]


OTHER_DATA = DATA._replace(test_labels=DATA.test_labels[::-1])


def test_other_data_are_refused(tmp_path: Path) -> None:
    short_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = (
        rf"^polybn\.training\.resume: data must be those of the run in {tmp_path}: slice \(SHA-256 \w{{12}}\); "
        r"got another \(SHA-256 \w{12}\)$"
    )
    with pytest.raises(CheckpointError, match=words):
        go_on(tmp_path, 3, data=OTHER_DATA._replace(source="another"))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_epochs_must_be_given_where_nothing_says_how_many(tmp_path: Path) -> None:
    short_run(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DomainError, match=r"^polybn\.training\.resume: epochs must be given; got None "):
        go_on(tmp_path)
    assert len(go_on(tmp_path, 3).epochs) == 3


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(tmp_path: Path) -> None:
    short_run(tmp_path / "damaged", 3)
    damage(tmp_path / "damaged" / "checkpoints" / "epoch-0003.npz")
    seen: list[int] = []
    with pytest.warns(UserWarning, match=r"falling back to .*epoch-0002\.npz: .*epoch-0003\.npz must "):
        go_on(tmp_path / "damaged", 4, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [3, 4]
    short_run(tmp_path / "whole", 4)
    with warnings.catch_warnings(action="error"):
        assert result(tmp_path / "damaged") == result(tmp_path / "whole")


def test_damaged_checkpoints_only(tmp_path: Path) -> None:
    """A run without an undamaged checkpoint is refused, because a new start would delete what may be rescued."""
    short_run(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="must hold an undamaged checkpoint"):
        go_on(tmp_path, 3)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_checkpoint_with_a_value_that_no_run_leaves_behind(tmp_path: Path) -> None:
    run = short_run(tmp_path)
    run.state["norm1.running_var"][0] = -1
    meta = {"config": run.config, "epochs": [epoch._asdict() for epoch in run.epochs], "losses": run.losses}
    checkpoints.save(tmp_path / "checkpoints", run.state, meta, epoch=2)
    with pytest.raises(CheckpointError, match=r"finite values, 0 or more, as 'norm1\.running_var'; got -1\.0"):
        go_on(tmp_path, 3)


def test_images_stay_where_they_are(tmp_path: Path) -> None:
    """A run may be resumed with the same bytes from another place."""
    short_run(tmp_path)
    images, labels, test_images, test_labels = (array.copy() for array in DATA[:4])
    moved = Dataset(images, labels, test_images, test_labels, "elsewhere")
    assert len(go_on(tmp_path, 3, data=moved).epochs) == 3
    assert json.loads((tmp_path / "config.json").read_text())["data"]["source"] == "elsewhere"
