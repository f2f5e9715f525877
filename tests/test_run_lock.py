"""The directory of a run has one owner at a time, until its process ends in any way."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import polybn
from polybn.lenet import folder, lock, networks, runs
from polybn.lenet.errors import CheckpointError, RunInUseError
from polybn.lenet.training import resume, train
from polybn.spec import DomainError
from tests.support.training_worker import slice_of_sample

DATA = slice_of_sample(20, 10)
IN_USE = "must be a directory in which nobody trains; got one in use by "


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def begin(directory: Path, **told: Any) -> runs.Run:
    return train(networks.lenet(), data=DATA, epochs=1, batch_size=8, out=directory, **told)


def test_a_second_owner_is_refused_while_there_is_a_first(tmp_path: Path) -> None:
    """A second owner of a new directory or of a run is refused, even in the same process; the first is undisturbed."""
    refusals = []

    def disturb(*_: Any) -> None:
        owner = f"^polybn: {tmp_path} {IN_USE}process {os.getpid()} on "
        with pytest.raises(RunInUseError, match=owner) as caught:
            begin(tmp_path)
        refusals.append(caught)
        with pytest.raises(RunInUseError, match=owner) as caught:
            resume(tmp_path, epochs=2, data=DATA)
        refusals.append(caught)

    run = begin(tmp_path, on_steps=disturb, on_epoch=disturb)
    assert len(refusals) == 8
    assert runs.load(tmp_path).epochs == run.epochs
    assert (tmp_path / ".lock").read_bytes() == b""
    assert len(resume(tmp_path, epochs=2, data=DATA).epochs) == 2


HOLD = """
import sys, time
from pathlib import Path
from polybn.lenet import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process_even_if_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    environment = os.environ | {"PYTHONPATH": str(Path(polybn.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunInUseError, match=f"{IN_USE}process {holder.pid} on "), lock.hold(tmp_path / ".lock"):
            pass
        holder.kill()
    assert (tmp_path / ".lock").read_bytes() != b"", "a killed process empties no file"
    with lock.hold(tmp_path / ".lock"):
        pass


def test_of_threads_that_begin_together_one_trains(tmp_path: Path) -> None:
    """One thread trains a whole run, and the others are refused."""
    told: list[Exception | None] = []
    barrier = threading.Barrier(4)

    def contend() -> None:
        barrier.wait()
        try:
            begin(tmp_path / "run")
        except (RunInUseError, DomainError) as error:
            told.append(error)
        else:
            told.append(None)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 4
    assert told.count(None) == 1
    assert names(tmp_path / "run") == [".lock", "checkpoints", "config.json", "metrics.jsonl"]


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_nothing_is_written_into_what_comes_after_a_directory(tmp_path: Path, how: str) -> None:
    """A run whose directory is moved away ends, and writes nothing to a new one of that name."""

    def take_away(*_: Any) -> None:
        if how == "moved":
            (tmp_path / "run").rename(tmp_path / "moved")
        else:
            shutil.rmtree(tmp_path / "run")
        if how == "replaced":
            others.append(begin(tmp_path / "run"))

    others: list[runs.Run] = []
    words = f"^polybn: {tmp_path / 'run'} must stay where it is while it is trained; got another directory or none"
    with pytest.raises(RunInUseError, match=words):
        train(networks.lenet(), data=DATA, epochs=1, batch_size=20, out=tmp_path / "run", on_steps=take_away)
    assert all(runs.load(tmp_path / "run")[:3] == other[:3] for other in others)
    assert (tmp_path / "run").exists() == (how == "replaced")


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder.begin(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with folder.begin(tmp_path / "mine"):
        pass
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == []


def test_a_lock_file_that_was_removed_by_its_last_owner_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was opened before its removal, and locked after it, so that nobody else would find the lock."""
    path, real, calls = tmp_path / ".lock", fcntl.flock, list[int]()

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.hold(path) as held:
        assert held.is_in_place()
    assert len(calls) == 2


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"^polybn: {tmp_path} is on a file system without locks"):
        begin(tmp_path)
    assert len(runs.load(tmp_path).epochs) == 1


def test_another_failure_of_the_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken"):
        begin(tmp_path / "run")


def test_an_open_that_is_refused_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "some/internal/file")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as caught, lock.hold(tmp_path / ".lock"):
        pass
    assert caught.value.filename == str(tmp_path)


def test_an_abandoned_lock_is_no_run(tmp_path: Path) -> None:
    """A directory with only a lock, of a process that was killed early, counts as empty and not as a run."""
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with pytest.raises(CheckpointError, match="must be the directory of a run"):
        resume(tmp_path, epochs=1, data=DATA)
    assert len(begin(tmp_path).epochs) == 1
