"""The training loop: plain SGD, the same for every backend.

Everything random depends only on the seed and the number of the epoch, so a run that was interrupted at any moment
continues to the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from polybn.dispatch import backend as find_backend
from polybn.lenet import fashion_mnist, folder, networks, runs, team
from polybn.lenet.device import on_device
from polybn.lenet.errors import DivergenceError
from polybn.lenet.fashion_mnist import Dataset
from polybn.lenet.networks import BatchNorm
from polybn.lenet.program import Program, Steps, compile
from polybn.lenet.recipe import Recipe, check_integer, check_range
from polybn.lenet.runs import Epoch, Run
from polybn.options import type_name
from polybn.spec import DTypeError

if TYPE_CHECKING:
    from polybn.atomic import StrPath
    from polybn.lenet.folder import Folder
    from polybn.lenet.networks import Network
    from polybn.lenet.runs import Saved

__all__ = ["resume", "train"]

Data: TypeAlias = "Dataset | Callable[[], Dataset] | StrPath | None"
"""A data set, or where Fashion-MNIST is, or a function that reads one, called after all other checks."""
OnSteps: TypeAlias = "Callable[[int, Steps], None]"
OnEpoch: TypeAlias = "Callable[[Epoch], None]"


class Job(NamedTuple):
    """A run that is ready to train."""

    recipe: Recipe
    """The options of the run."""
    program: Program
    """The compiled network, in the state that the run has reached."""
    data: Dataset
    """The training and test images."""
    run: Run
    """The finished epochs."""


class Watch(NamedTuple):
    """The callbacks that follow training."""

    on_steps: OnSteps
    """A function that is called with the number of the epoch and each report of the program."""
    on_epoch: OnEpoch
    """A function that is called after each epoch, when it is saved."""


def train(
    network: Network,
    backend: str = "numpy",
    *,
    data: Data = None,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 1.0,
    seed: int = 0,
    devices: int = 1,
    last_batch: Literal["keep", "drop"] = "keep",
    device: str | None = None,
    out: StrPath | None = None,
    on_steps: OnSteps = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
) -> Run:
    """Train a network by SGD, in the same order of images and from the same weights on every backend.

    Parameters
    ----------
    network : Network
        For example ``polybn.networks.lenet()``.
    backend : str, default "numpy"
        The name of the backend.
    data : Dataset, path or function, optional
        The images; or what :func:`polybn.lenet.fashion_mnist.load` takes, a directory or ``"sample"``; or a function
        that reads them. They are read after all other checks. Default: what that function finds.
    epochs : int, default 10
        Number of passes over the training images.
    batch_size : int, default 256
        Images in a training step.
    learning_rate : float, default 1.0
        The step along the gradient of the mean loss.
    seed : int, default 0
        The seed of the weights and of the order of the images.
    devices : int, default 1
        Number of devices that share each step, if the backend supports several. Sums are then taken in another order,
        so losses differ by rounding errors, which training amplifies.
    last_batch : {"keep", "drop"}
        Images left over after the last whole batch of an epoch: "keep" makes a smaller batch of them, "drop" leaves
        them out of this epoch.
    device : str, optional
        The device that trains, such as ``"gpu"`` or ``"gpu:1"``; ``polybn info`` lists those that each backend sees.
        Default: the library's own choice.
    out : path, optional
        A new or empty directory for the run, which no other process can train in until the call returns. Where several
        processes share the run, the first one writes.
        :func:`~polybn.lenet.training.resume` continues it. Without a directory nothing is written.
    on_steps : callable, optional
        Called with the number of the epoch and each report of the program.
    on_epoch : callable, optional
        Called with the metrics of each epoch, when it is saved.

    Returns
    -------
    Run

    Raises
    ------
    DTypeError
        If a number or an array has the wrong type.
    DomainError
        If a number is out of range, a label is not a class of the network, ``out`` holds files, or a batch would hold
        a single image, from which batch norm learns nothing.
    ShapeError
        If the images do not fit the network, or there is not one label per image.
    RunInUseError
        If another process trains in ``out``.
    DivergenceError
        If a loss or a weight stops being finite. The checkpoints of finished epochs stay as they are.
    BackendError
        If the backend cannot run, or lacks the batch norm, the device or the number of devices.

    Examples
    --------
    >>> import polybn
    >>> network = polybn.networks.lenet()
    >>> run = polybn.train(network, data=polybn.fashion_mnist.load("sample"), epochs=1)
    >>> 0.4 < run.epochs[0].train_accuracy < 1
    True
    """
    recipe = Recipe(network, backend, batch_size, learning_rate, seed, devices, last_batch, device)
    return begin(recipe, epochs=epochs, data=data, out=out, on_steps=on_steps, on_epoch=on_epoch)


def begin(
    recipe: Recipe,
    *,
    epochs: int,
    data: Data,
    out: StrPath | None,
    on_steps: OnSteps,
    on_epoch: OnEpoch,
) -> Run:
    """Train with options that are already checked; see :func:`polybn.train`."""
    goal = _check_epochs(epochs)
    place = folder.begin(out) if out is not None and team.writes(recipe.backend) else contextlib.nullcontext()
    with place as own, on_device(find_backend(recipe.backend), recipe.device):
        return _go_on(_prepare(recipe, None, data), goal, own, Watch(on_steps, on_epoch))


def resume(
    out: StrPath,
    *,
    epochs: int | None = None,
    data: Data = None,
    on_steps: OnSteps = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
) -> Run:
    """Continue a run from its last finished epoch; the result has the same bits as that of a run without interruption.

    Parameters
    ----------
    out : path
        The directory of the run, which holds its options.
    epochs : int, optional
        Total number of epochs, finished ones included. Default: the number that was given last.
    data : Dataset, path or function, optional
        The same images as before. Default: they are read from the same place as before.
    on_steps, on_epoch : callable, optional
        As for :func:`polybn.train`.

    Returns
    -------
    Run

    Raises
    ------
    CheckpointError
        If there is no run in ``out``, its files are damaged, or the data differ.
    RunInUseError
        If another process trains in ``out``.
    DomainError
        If ``epochs`` is negative, or is missing here and in ``config.json``.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> data = polybn.fashion_mnist.load("sample")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = polybn.train(polybn.networks.lenet(), data=data, epochs=1, out=out)
    ...     len(polybn.training.resume(out, epochs=2).epochs)
    2
    """
    with _reopened(out) as (own, saved):
        goal = _check_epochs(saved.epochs if epochs is None else epochs)
        read = (lambda: fashion_mnist.load(saved.where)) if data is None else data
        with on_device(find_backend(saved.recipe.backend), saved.recipe.device):
            job = _prepare(saved.recipe, saved.run, read)
            saved.check_same_data(job.data.source, job.run.config["data_sha256"])
            return _go_on(job, goal, own, Watch(on_steps, on_epoch))


@contextlib.contextmanager
def _reopened(out: StrPath) -> Iterator[tuple[Folder | None, Saved]]:
    """Own the directory of a run, or only read it where another process of the same run owns it."""
    runs.require(Path(out))
    saved = runs.read(Path(out))
    if not team.writes(saved.recipe.backend):
        yield None, saved
        return
    with folder.reopen(out) as found:
        yield found


def _prepare(recipe: Recipe, saved: Run | None, data: Data) -> Job:
    """Compile the network in the state that the run has reached; only then read the data, which may take long."""
    state = networks.initial_state(recipe.network, recipe.seed) if saved is None else saved.state
    program = compile(
        recipe.network, find_backend(recipe.backend), state, batch_size=recipe.batch_size, devices=recipe.devices
    )
    if not (data is None or callable(data) or isinstance(data, Dataset | str | os.PathLike)):
        raise DTypeError(
            f"polybn.train: data must be a Dataset, a directory, or a function that reads one; got {type_name(data)} "
            '(data="sample" is a small one that comes with polybn)'
        )
    dataset = data if isinstance(data, Dataset) else data() if callable(data) else fashion_mnist.load(data)
    recipe.check_data(dataset)
    config = recipe.to_config() | {"data_sha256": _fingerprint(dataset)}
    return Job(recipe, program, dataset, Run(config, *((saved.epochs, saved.losses) if saved else ([], [])), state))


def _go_on(job: Job, goal: int, own: Folder | None, watch: Watch) -> Run:
    """Train epoch by epoch until ``goal`` epochs are finished, and save each."""
    recipe, program, dataset, run = job
    if own is not None:
        own.describe(run, _notes(job, goal))
    training = program.place(dataset.train_images, dataset.train_labels)
    testing = program.place(dataset.test_images, dataset.test_labels)
    for epoch in range(len(run.epochs) + 1, goal + 1):
        start = time.perf_counter()
        steps = _train_epoch(job, training, epoch, watch.on_steps)
        correct = np.count_nonzero(program.logits(testing).argmax(axis=1) == dataset.test_labels)
        images = int(steps.images.sum())
        metrics = Epoch(
            epoch,
            float(np.dot(steps.losses, steps.images) / images),
            int(steps.correct.sum()) / images,
            int(correct) / len(dataset.test_labels),
            time.perf_counter() - start,
        )
        run = Run(run.config, [*run.epochs, metrics], [*run.losses, steps.losses.tolist()], program.state())
        _check_state(run, recipe)
        if own is not None:
            own.save(run)
        watch.on_epoch(metrics)
    return run


def _train_epoch(job: Job, images: Any, epoch: int, on_steps: OnSteps) -> Steps:
    """Run one epoch, refuse losses that are not finite, and join the reports."""
    recipe = job.recipe
    order = recipe.trained_on(networks.epoch_order(recipe.seed, epoch, len(job.data.train_labels)))
    reports: list[Steps] = []
    done = 0
    for report in job.program.train_epoch(images, order, learning_rate=recipe.learning_rate):
        bad = np.flatnonzero(~np.isfinite(report.losses))
        if bad.size:
            step = done + int(bad[0]) + 1
            raise _divergence(f"loss must stay finite; got {report.losses[bad[0]]} in step {step}", epoch, recipe)
        done += len(report.losses)
        reports.append(report)
        on_steps(epoch, report)
    return Steps(*(np.concatenate(parts) for parts in zip(*reports, strict=True)))


def _check_state(run: Run, recipe: Recipe) -> None:
    for name, values in run.state.items():
        if not np.isfinite(values).all():
            what = f"{name} must stay finite; got NaN or infinity after the last step"
            raise _divergence(what, len(run.epochs), recipe)


def _divergence(what: str, epoch: int, recipe: Recipe) -> DivergenceError:
    normalized = any(isinstance(layer, BatchNorm) for layer in recipe.network.layers)
    rate = recipe.learning_rate
    return DivergenceError(
        f"polybn.train: {what} of epoch {epoch} (the learning rate is {rate:g}: try {rate / 10:g}"
        f"{'' if normalized else ', or a network with batch norm'}; checkpoints of finished epochs are untouched)"
    )


def _notes(job: Job, goal: int) -> dict[str, Any]:
    """Return what ``config.json`` holds besides the options: the goal, the source of the data, and versions."""
    from polybn.version import __version__

    versions = {"polybn": __version__, "python": platform.python_version()}
    return {
        "epochs": goal,
        "data": {"source": job.data.source, "where": job.data.where},
        "versions": dict(find_backend(job.recipe.backend).describe()) | versions,
    }


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for array in dataset[:4]:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_epochs(epochs: int) -> int:
    check_integer("epochs", epochs)
    check_range("epochs", int(epochs), 0, "all epochs of the run, those of a resumed one included")
    return int(epochs)
