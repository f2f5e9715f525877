"""The one training loop: plain SGD, epoch by epoch, the same for every backend and exact to resume.

A run lives in one directory::

    config.json       what was asked for, and what it ran on
    metrics.jsonl     one line per finished epoch
    checkpoints/      state, history and configuration after each of the last two epochs

The newest checkpoint that verifies is the truth; the other files are written from it. Everything random
depends on the seed and the epoch's number alone, so a run that was interrupted, at whatever moment,
goes on to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.atomic import write_atomic
from polybn.dispatch import backend as find_backend
from polybn.lenet import checkpoints, fashion_mnist, networks
from polybn.lenet.errors import CheckpointError, DivergenceError
from polybn.lenet.networks import State
from polybn.lenet.program import Program, Steps, compile
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from polybn.lenet.fashion_mnist import Dataset
    from polybn.lenet.networks import Network


class Epoch(NamedTuple):
    """One line of ``metrics.jsonl``."""

    epoch: int
    """From 1."""
    loss: float
    """Mean cross-entropy over the epoch's training steps, in nats, each at the weights of its moment."""
    train_accuracy: float
    """Share of training images labelled right, likewise, with batch statistics."""
    test_accuracy: float
    """Share of test images labelled right at the end of the epoch, with running statistics."""
    seconds: float
    """Wall time of training and testing."""


class Run(NamedTuple):
    """What :func:`train` returns."""

    config: dict[str, Any]
    epochs: list[Epoch]
    losses: list[list[float]]
    """Loss of every step, by epoch."""
    state: State
    """Every parameter and running statistic, by name, as float32 host arrays."""


def train(
    network: Network,
    backend: str = "numpy",
    *,
    data: Dataset | None = None,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 1.0,
    seed: int = 0,
    devices: int = 1,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_steps: Callable[[int, Steps], None] = lambda *_: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Run:
    """Train a network by SGD, in the same order of images and from the same weights on every backend.

    Parameters
    ----------
    network : Network
        For example ``polybn.networks.lenet()``.
    backend : str, default "numpy"
    data : Dataset, optional
        Default: :func:`polybn.lenet.fashion_mnist.load`.
    epochs : int, default 10
        In all, those of a resumed run included.
    batch_size : int, default 256
        The last batch of an epoch is what is left over.
    learning_rate : float, default 1.0
    seed : int, default 0
    devices : int, default 1
        How many devices share each step, where the backend can (jax). Sums are then taken in another order, so losses
        agree to rounding, which training amplifies; a run resumes on the number that it began with.
    out : path, optional
        Directory for the run; without it nothing is written.
    resume : bool, default False
        Go on with the run in ``out`` from its last finished epoch, or begin it if there is none.
    on_steps : callable, optional
        Called with the epoch and what the program reports, as it goes.
    on_epoch : callable, optional
        Called after each epoch, once it is saved.

    Returns
    -------
    Run

    Raises
    ------
    DTypeError
        If ``epochs``, ``batch_size``, ``seed`` or ``devices`` is no integer.
    DomainError
        If a number is out of range, a label names no class of the network, ``out`` holds files and ``resume`` was
        not asked for, or there is no ``out`` to resume.
    ShapeError
        If the images do not fit the network, or there is not one label for each.
    CheckpointError
        If ``out`` holds another run than the one asked for, or damaged checkpoints only.
    DivergenceError
        If a loss or a weight stops being finite. The checkpoints of finished epochs stay as they are.
    BackendError
        If the backend cannot run, has no such batch norm, or not so many devices.

    Examples
    --------
    >>> import polybn
    >>> network = polybn.networks.lenet()
    >>> run = polybn.train(network, data=polybn.fashion_mnist.load("sample"), epochs=1)
    >>> 0.4 < run.epochs[0].train_accuracy < 1
    True
    """
    _check_numbers(epochs, batch_size, learning_rate, seed, devices)
    epochs, batch_size, learning_rate, seed = int(epochs), int(batch_size), float(learning_rate), int(seed)
    spread = {} if devices == 1 else {"devices": int(devices)}
    if resume and out is None:
        raise DomainError("polybn.train: out must name the run to resume; got None (nothing was written without it)")
    module = find_backend(backend)
    dataset = fashion_mnist.load() if data is None else data
    _check_data(network, dataset)
    config = {
        "backend": backend,
        "network": networks.to_plain(network),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "data_sha256": _fingerprint(dataset),
        **spread,
    }
    run = Run(config, [], [], networks.initial_state(network, seed))
    directory = None if out is None else Path(out)
    if directory is not None and resume:
        run = _resume(directory, run)
    program = compile(network, module, run.state, batch_size=batch_size, **spread)
    if directory is not None:
        notes = {"epochs": epochs, "data": dataset.source, "versions": dict(module.describe()) | _versions()}
        _prepare(directory, run, notes, resume=resume)
    training = program.place(dataset.train_images, dataset.train_labels)
    testing = program.place(dataset.test_images, dataset.test_labels)
    for epoch in range(len(run.epochs) + 1, epochs + 1):
        start = time.perf_counter()
        order = networks.epoch_order(seed, epoch, len(dataset.train_labels))
        steps = _train_epoch(program, training, order, learning_rate, epoch, on_steps)
        correct = np.count_nonzero(program.logits(testing).argmax(axis=1) == dataset.test_labels)
        images = int(steps.images.sum())
        metrics = Epoch(
            epoch,
            float(np.dot(steps.losses, steps.images) / images),
            int(steps.correct.sum()) / images,
            int(correct) / len(dataset.test_labels),
            time.perf_counter() - start,
        )
        run = Run(config, [*run.epochs, metrics], [*run.losses, steps.losses.tolist()], program.state())
        _check_state(run.state, epoch, learning_rate)
        if directory is not None:
            _save(directory, run)
        on_epoch(metrics)
    return run


def read_metrics(directory: str | os.PathLike[str]) -> list[Epoch]:
    """Read the finished epochs of a run.

    Parameters
    ----------
    directory : path

    Returns
    -------
    list of Epoch

    Raises
    ------
    CheckpointError
        If the directory holds no ``metrics.jsonl`` or not one that PolyBN wrote.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=1, out=out)
    ...     polybn.training.read_metrics(out) == run.epochs
    True
    """
    path = Path(directory) / "metrics.jsonl"
    try:
        return [Epoch(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"polybn: {directory} must be a run with a finished epoch; got {type(error).__name__}: {error} "
            f"({path.name} is written after each epoch of `polybn train --out {directory}`)"
        ) from error


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run's newest checkpoint that verifies.

    Parameters
    ----------
    directory : path

    Returns
    -------
    Run

    Raises
    ------
    CheckpointError
        If there is none.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=1, out=out)
    ...     polybn.training.load_run(out).losses == run.losses
    True
    """
    found = checkpoints.latest(Path(directory) / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"polybn: {directory} must hold a checkpoint; got none in {directory}/checkpoints "
            "(one is written after each epoch of `polybn train`)"
        )
    path, checkpoint = found
    run = _from_checkpoint(checkpoint)
    expected = networks.initial_state(networks.from_plain(run.config["network"]), 0)
    checkpoints.require(checkpoint, expected=expected, path=path)
    return run


def _train_epoch(
    program: Program,
    data: Any,
    order: NDArray[np.int64],
    learning_rate: float,
    epoch: int,
    on_steps: Callable[[int, Steps], None],
) -> Steps:
    """Run one epoch, refuse losses that are not finite, and join the reports."""
    reports: list[Steps] = []
    done = 0
    for report in program.train_epoch(data, order, learning_rate=learning_rate):
        bad = np.flatnonzero(~np.isfinite(report.losses))
        if bad.size:
            step = done + int(bad[0]) + 1
            raise _divergence(
                f"loss must stay finite; got {report.losses[bad[0]]} in step {step}", epoch, learning_rate
            )
        done += len(report.losses)
        reports.append(report)
        on_steps(epoch, report)
    return Steps(*(np.concatenate(parts) for parts in zip(*reports, strict=True)))


def _check_state(state: State, epoch: int, learning_rate: float) -> None:
    for name, values in state.items():
        if not np.isfinite(values).all():
            raise _divergence(f"{name} must stay finite; got NaN or infinity after the last step", epoch, learning_rate)


def _divergence(what: str, epoch: int, learning_rate: float) -> DivergenceError:
    return DivergenceError(
        f"polybn.train: {what} of epoch {epoch} (the learning rate is {learning_rate:g}: try "
        f"--lr {learning_rate / 10:g}, or --norm spec; checkpoints of finished epochs are untouched)"
    )


def _resume(directory: Path, run: Run) -> Run:
    """Return the saved run, after checking that it is the one that was asked for."""
    found = checkpoints.latest(directory / "checkpoints")
    if found is None:
        return run
    path, checkpoint = found
    saved = _from_checkpoint(checkpoint)
    before = {"devices": 1} | saved.config
    for key, wanted in ({"devices": 1} | run.config).items():
        if before.get(key) != wanted:
            raise CheckpointError(
                f"polybn.train: {key} must be that of the run in {directory} to resume it; got {wanted!r:.200}, "
                f"expected {before.get(key)!r:.200} ({path.name} was written with it; choose another --out)"
            )
    checkpoints.require(checkpoint, expected=run.state, path=path)
    return saved


def _prepare(directory: Path, run: Run, notes: dict[str, Any], *, resume: bool) -> None:
    """Make the directory, and bring its readable files in line with the run, which may be new."""
    if not resume and directory.exists() and any(directory.iterdir()):
        raise DomainError(
            f"polybn.train: --out must be a new or empty directory; got {directory}, which holds "
            f"{', '.join(sorted(path.name for path in directory.iterdir())[:3])} "
            "(nothing is overwritten: add --resume to go on with that run, or choose another name)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.config | notes, indent=2) + "\n"
    write_atomic(directory / "config.json", text.encode())
    if run.epochs:
        _write_metrics(directory, run)


def _save(directory: Path, run: Run) -> None:
    meta = {"config": run.config, "epochs": [epoch._asdict() for epoch in run.epochs], "losses": run.losses}
    checkpoints.save(directory / "checkpoints", run.state, meta, epoch=len(run.epochs))
    _write_metrics(directory, run)


def _write_metrics(directory: Path, run: Run) -> None:
    lines = "".join(json.dumps(epoch._asdict()) + "\n" for epoch in run.epochs)
    write_atomic(directory / "metrics.jsonl", lines.encode())


def _from_checkpoint(checkpoint: checkpoints.Checkpoint) -> Run:
    meta = checkpoint.meta
    return Run(meta["config"], [Epoch(**epoch) for epoch in meta["epochs"]], meta["losses"], checkpoint.arrays)


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for array in dataset[:4]:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    from polybn import __version__

    return {"polybn": __version__, "python": platform.python_version()}


def _check_numbers(epochs: int, batch_size: int, learning_rate: float, seed: int, devices: int) -> None:
    for name, number in {"epochs": epochs, "batch_size": batch_size, "seed": seed, "devices": devices}.items():
        if not isinstance(number, Integral):
            raise DTypeError(f"polybn.train: {name} must be an integer; got {number!r} ({type(number).__name__})")
    rules = {
        "epochs": (epochs >= 0, epochs, "be 0 or more", "all epochs of the run, resumed ones included"),
        "batch_size": (batch_size >= 1, batch_size, "be 1 or more", "images in a training step"),
        "learning_rate": (
            2.0**-126 <= learning_rate < 2.0**127, learning_rate, "lie between 2^-126 and 2^127",
            "the step along the gradient of the mean loss, in float32",
        ),
        "seed": (seed >= 0, seed, "be 0 or more", "it draws the weights and the order of the images"),
        "devices": (devices >= 1, devices, "be 1 or more", "they share each training step"),
    }  # fmt: skip
    for name, (holds, value, rule, reason) in rules.items():
        if not holds:
            raise DomainError(f"polybn.train: {name} must {rule}; got {value!r} ({reason})")


def _check_data(network: Network, dataset: Dataset) -> None:
    classes = networks.rows(network)[-1].output_shape[0]
    parts = {"train": (dataset.train_images, dataset.train_labels), "test": (dataset.test_images, dataset.test_labels)}
    for part, (images, labels) in parts.items():
        if images.shape != (*labels.shape[:1], *network.input_shape) or labels.ndim != 1 or not len(labels):
            raise ShapeError(
                f"polybn.train: {part}_images must have shape (N, {', '.join(map(str, network.input_shape))}), and "
                f"{part}_labels (N,), N >= 1; got {images.shape} and {labels.shape} (the network's input)"
            )
        if labels.max() >= classes:
            raise DomainError(
                f"polybn.train: {part}_labels must lie in 0 to {classes - 1}; got {labels.max()} (the network's output)"
            )
