"""A run: its metrics, and reading its directory.

The directory holds::

    config.json       the options, and notes on data and versions
    metrics.jsonl     one line per finished epoch
    checkpoints/      state, history and configuration after each of the last two epochs
    .lock             the lock of the process that trains here; empty when there is none

The newest undamaged checkpoint is authoritative; :mod:`polybn.lenet.folder` writes the other files from it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.atomic import StrPath, read_whole
from polybn.lenet import checkpoints, networks
from polybn.lenet.errors import CheckpointError
from polybn.lenet.networks import State
from polybn.lenet.recipe import Recipe
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    from polybn.lenet.checkpoints import Checkpoint

# The public names; commands and training use the others, too.
__all__ = ["Epoch", "Run", "load", "read_config", "read_metrics"]

_MOST_BYTES = 2**26  # for config.json and metrics.jsonl; a line of the latter has about 150
_MALFORMED = (ValueError, TypeError, KeyError, RecursionError)


class Epoch(NamedTuple):
    """The metrics of one epoch: a line of ``metrics.jsonl``."""

    epoch: int
    """The number of the epoch; the first is 1."""
    loss: float
    """Mean cross-entropy over the epoch's training steps, in nats; each step with the weights before it."""
    train_accuracy: float
    """Share of training images that were labelled right during the epoch, with batch statistics."""
    test_accuracy: float
    """Share of test images that are labelled right after the epoch, with running statistics."""
    seconds: float
    """Time spent on training and testing, in seconds."""


class Run(NamedTuple):
    """The result of :func:`polybn.train`."""

    config: dict[str, Any]
    """The options of the run, and the SHA-256 of its data."""
    epochs: list[Epoch]
    """The metrics of each finished epoch."""
    losses: list[list[float]]
    """The loss of every step, by epoch."""
    state: State
    """Every parameter and running statistic, by name, as float32 host arrays."""


class Saved(NamedTuple):
    """The contents of the directory of a run."""

    path: Path
    """The directory."""
    recipe: Recipe
    """The options of the run."""
    run: Run | None
    """The run up to its last finished epoch; None before the first."""
    config: dict[str, Any]
    """All of ``config.json``; empty if this file is lost, but a checkpoint has the options."""

    @property
    def epochs(self) -> int:
        """The number of epochs of the latest :func:`polybn.train` or resume."""
        epochs = self.config.get("epochs")
        if isinstance(epochs, bool) or not isinstance(epochs, int):
            raise DomainError(
                f"polybn.training.resume: epochs must be given; got None ({self.path}/config.json does not say it)"
            )
        return epochs

    @property
    def where(self) -> str | None:
        """The place of the data that was named, or None."""
        data = self.config.get("data")
        where = data.get("where") if isinstance(data, dict) else None
        return where if isinstance(where, str) else None

    def check_same_data(self, source: str, sha256: str) -> None:
        """Refuse data that differ from those that the run was trained on."""
        before = (self.run.config if self.run else self.config).get("data_sha256")
        if before == sha256:
            return
        data = self.config.get("data")
        words = data.get("source") if isinstance(data, dict) else "unknown"
        raise CheckpointError(
            f"polybn.training.resume: data must be those of the run in {self.path}: {words} (SHA-256 {before!s:.12}); "
            f"got {source} (SHA-256 {sha256:.12})"
        )


def read(directory: Path) -> Saved:
    """Read the options and the last finished epoch of a run."""
    run = _newest(directory)
    lost = run is not None and not (directory / "config.json").exists()
    config = {} if lost else read_config(directory)
    return Saved(directory, _recipe(config if run is None else run.config, directory), run, config)


def load(path: StrPath) -> Run:
    """Read the newest undamaged checkpoint of a run.

    Parameters
    ----------
    path : path
        The directory of the run.

    Returns
    -------
    Run

    Raises
    ------
    CheckpointError
        If there is no undamaged checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=1, out=out)
    ...     polybn.runs.load(out).losses == run.losses
    True
    """
    run = _newest(Path(path))
    if run is None:
        got = f"none in {path}/checkpoints" if Path(path).exists() else "no such directory"
        raise CheckpointError(
            f"polybn: {path} must hold a checkpoint; got {got} (one is written after each epoch of `polybn train`)"
        )
    return run


def read_config(path: StrPath) -> dict[str, Any]:
    """Read the options of a run.

    Parameters
    ----------
    path : path
        The directory of the run.

    Returns
    -------
    dict
        The contents of ``config.json``.

    Raises
    ------
    CheckpointError
        If the directory holds no ``config.json`` that PolyBN wrote.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=0, out=out)
    ...     polybn.runs.read_config(out)["batch_size"]
    256
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(read_whole(file, _MOST_BYTES))
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}")
    except (OSError, *_MALFORMED) as error:
        raise CheckpointError(f"polybn: {file} must hold the options of a run; got {_words(error)}") from error
    return config


def read_metrics(path: StrPath) -> list[Epoch]:
    """Read the finished epochs of a run.

    Parameters
    ----------
    path : path
        The directory of the run.

    Returns
    -------
    list of Epoch

    Raises
    ------
    CheckpointError
        If the directory holds no ``metrics.jsonl``, or a line of it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=1, out=out)
    ...     polybn.runs.read_metrics(out) == run.epochs
    True
    """
    file = Path(path) / "metrics.jsonl"
    try:
        lines = read_whole(file, _MOST_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"polybn: {path} must be a run with a finished epoch; got {_words(error)} "
            f"({file.name} is written after each epoch of `polybn train`)"
        ) from error
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(_epoch(json.loads(line), number))
        except _MALFORMED as error:
            raise CheckpointError(
                f"polybn: line {number} of {file} must hold the metrics of epoch {number}; got {line!r:.200} "
                f"({_words(error)}; going on with the run, --resume, writes the file again)"
            ) from error
    return epochs


def read_epochs(directory: Path) -> list[Epoch]:
    """Read the finished epochs of a run, which may have none yet; if metrics.jsonl is missing, from a checkpoint."""
    require(directory)
    try:
        return read_metrics(directory)
    except CheckpointError:
        run = _newest(directory)
        if run is None and (directory / "metrics.jsonl").exists():
            raise
        return [] if run is None else run.epochs


def _epoch(fields: dict[str, Any], number: int) -> Epoch:
    epoch = Epoch(**fields)
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in epoch):
        raise TypeError("a value that is no number")
    if not all(map(math.isfinite, epoch)) or epoch.epoch != number:
        raise ValueError("another epoch, or a value that is not finite")
    return epoch


def _newest(directory: Path) -> Run | None:
    found = checkpoints.latest(directory / "checkpoints")
    if found is None:
        return None
    path, checkpoint = found
    run = _run(checkpoint, path)
    network = _recipe(run.config, path).network
    checkpoints.require(checkpoint, expected=networks.initial_state(network, 0), path=path)
    return run


def _run(checkpoint: Checkpoint, path: Path) -> Run:
    try:
        meta = checkpoint.meta
        epochs = [_epoch(fields, number) for number, fields in enumerate(meta["epochs"], 1)]
        losses = [[float(loss) for loss in steps] for steps in meta["losses"]]
        if len(losses) != len(epochs):
            raise ValueError("losses of another number of epochs")
        return Run(dict(meta["config"]), epochs, losses, checkpoint.arrays)
    except _MALFORMED as error:
        raise CheckpointError(
            f"polybn: {path} must hold the configuration, the metrics and the losses of a run; got {_words(error)}"
        ) from error


def _recipe(config: dict[str, Any], source: Path) -> Recipe:
    try:
        return Recipe.from_config(config)
    except (*_MALFORMED, DomainError, DTypeError, ShapeError) as error:
        raise CheckpointError(f"polybn: {source} must hold the options of a run; got {_words(error)}") from error


def is_run(directory: Path) -> bool:
    """Return whether a run was begun in a directory."""
    return any((directory / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints"))


def require(directory: Path) -> None:
    """Refuse a directory in which no run was begun."""
    if not is_run(directory):
        found = "one without config.json and checkpoints" if directory.is_dir() else "no such directory"
        raise CheckpointError(
            f"polybn: {directory} must be the directory of a run; got {found} (`polybn train` begins one)"
        )


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"none of {error.args[0]!r}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}"
