"""The directory of a run during training: one process owns it, and only this process writes into it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polybn.atomic import StrPath, make_directory, write_atomic
from polybn.lenet import checkpoints, lock, runs
from polybn.lenet.errors import RunInUseError
from polybn.spec import DomainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polybn.lenet.lock import Lock
    from polybn.lenet.runs import Run, Saved

LOCK = ".lock"


class Folder:
    """A run's directory, owned by this process; see :func:`begin` and :func:`reopen`."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path, self._lock = path, lock

    def describe(self, run: Run, notes: dict[str, Any]) -> None:
        """Write the files for people: the options of a run with notes on this process, and its metrics."""
        self._check_owned()
        text = json.dumps(run.config | notes, indent=2) + "\n"
        write_atomic(self.path / "config.json", text.encode())
        if run.epochs:
            self._write_metrics(run)

    def save(self, run: Run) -> None:
        """Save a run after an epoch: first its checkpoint, then its metrics."""
        self._check_owned()
        meta = {"config": run.config, "epochs": [epoch._asdict() for epoch in run.epochs], "losses": run.losses}
        checkpoints.save(self.path / "checkpoints", run.state, meta, epoch=len(run.epochs))
        self._write_metrics(run)

    def _write_metrics(self, run: Run) -> None:
        lines = "".join(json.dumps(epoch._asdict()) + "\n" for epoch in run.epochs)
        write_atomic(self.path / "metrics.jsonl", lines.encode())

    def _check_owned(self) -> None:
        if not self._lock.is_in_place():
            raise RunInUseError(
                f"polybn: {self.path} must stay where it is while it is trained; got another directory or none "
                "(it was moved or deleted, and nothing is written into what may be there now)"
            )


@contextlib.contextmanager
def begin(path: StrPath) -> Iterator[Folder]:
    """Own a new or empty directory within this block; if nothing is written into it, it is removed again."""
    directory = Path(path)
    made = make_directory(directory)
    if not (directory / LOCK).exists():  # before a lock is written: a foreign directory must not change
        _check_empty(directory)
    with lock.hold(directory / LOCK) as held:
        _check_empty(directory)
        try:
            yield Folder(directory, held)
        finally:
            with contextlib.suppress(OSError):  # it is already removed, or used by another process
                if not _contents(directory):
                    held.remove()
                    for path in reversed(made):
                        path.rmdir()


@contextlib.contextmanager
def reopen(path: StrPath) -> Iterator[tuple[Folder, Saved]]:
    """Own the directory of a run within this block, and read what is saved there."""
    directory = Path(path)
    runs.require(directory)
    with lock.hold(directory / LOCK) as held:
        yield Folder(directory, held), runs.read(directory)


def _check_empty(directory: Path) -> None:
    contents = _contents(directory)
    if contents:
        raise DomainError(
            f"polybn.train: --out must be a new or empty directory; got {directory}, which holds "
            f"{', '.join(contents[:3])} (nothing is overwritten: choose another name, or go on with that run by "
            "--resume)"
        )


def _contents(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != LOCK)
