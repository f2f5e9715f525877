"""``polybn train``: begin a run, or continue one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from polybn.atomic import make_directory
from polybn.console import err, hint, out
from polybn.lenet import fashion_mnist, networks, runs, team, training
from polybn.lenet.commands.data import DataOption, load, sizes
from polybn.lenet.display import EpochDisplay
from polybn.lenet.editions import SAMPLE
from polybn.lenet.fashion_mnist import Dataset
from polybn.lenet.networks import BatchNorm, Network
from polybn.lenet.recipe import Recipe
from polybn.lenet.runs import Saved
from polybn.lenet.team import Team
from polybn.spec import DomainError

Norm = Literal["spec", "native", "none"]


def _no_option(directory: Path | None) -> Path | None:
    if directory is not None and str(directory).startswith("-"):
        raise typer.BadParameter(f"it takes the directory of a run, --resume DIR; got {directory}")
    return directory


def train(
    context: typer.Context,
    backend: Annotated[
        str, typer.Option(envvar="POLYBN_BACKEND", help="Library to train with; polybn info lists them.")
    ] = "numpy",
    epochs: Annotated[int, typer.Option(help="Total number of epochs, finished ones included.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images in a training step.")] = 256,
    lr: Annotated[float, typer.Option(help="Learning rate of plain SGD.")] = 1.0,
    norm: Annotated[
        Norm, typer.Option(help="Batch norm: spec is PolyBN's, native is the library's own, none leaves it out.")
    ] = "spec",
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the images.")] = 0,
    devices: Annotated[int, typer.Option(help="Devices that share each step (jax); must divide the batch size.")] = 1,
    last_batch: Annotated[
        Literal["keep", "drop"],
        typer.Option(help="Images left over after the last whole batch: keep makes a small batch of them."),
    ] = "keep",
    device: Annotated[
        str | None,
        typer.Option(help="Device that trains, such as cpu, gpu or gpu:1; polybn info lists them."),
    ] = None,
    data: DataOption = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New directory for the run. Default: runs/ and its options."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            callback=_no_option,
            help="Continue the run in this directory from its last finished epoch, with the options it began with.",
        ),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the processes of one run meet (jax): at process 0.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes share the run.")] = None,
    process: Annotated[int | None, typer.Option(help="The number of this process, from 0.")] = None,
) -> None:
    """Train LeNet on Fashion-MNIST.

    Each epoch is saved; Ctrl-C stops, and [bold]--resume[/bold] continues to exactly the same result. Only one process
    at a time can train in a directory.

    [dim]polybn train                             ten epochs with batch norm
    polybn train --norm none                 the same without
    polybn train --data sample --epochs 2    a quick look
    polybn train --resume runs/numpy-spec-lr1-seed0 --epochs 20[/dim]
    """
    own = team.team_of(coordinator, processes, process)
    if resume is not None:
        _resume(resume, context, own, epochs=epochs if _is_given(context, "epochs") else None, where=data)
        return
    network = networks.lenet(None if norm == "none" else norm)
    recipe = Recipe(network, backend, batch_size, lr, seed, devices, last_batch, device)
    team.join(backend, own)
    if not team.writes(backend):
        training.train(**vars(recipe), epochs=epochs, data=lambda: load(data))
        return
    with (
        _directory(out_dir, recipe, data) as directory,
        _displayed(directory, network, backend, epochs, data) as callbacks,
    ):
        training.begin(recipe, epochs=epochs, out=directory, **callbacks._asdict())
    _say_next(directory, epochs)
    if norm != "none" and epochs and own is None:
        out.print(f"{hint('train', *_given(context), '--norm', 'none')} trains the same without batch norm")


class Callbacks(NamedTuple):
    """The functions that the command passes to :func:`polybn.train`, to show progress."""

    data: Callable[[], Dataset]
    """A function that reads the data, and prints what will be trained."""
    on_steps: training.OnSteps
    """A function that moves the progress bar."""
    on_epoch: training.OnEpoch
    """A function that prints the line of an epoch."""


def _resume(
    directory: Path, context: typer.Context, own: Team | None, *, epochs: int | None, where: str | None
) -> None:
    runs.require(directory)
    saved = runs.read(directory)
    _check_same_options(saved, context)
    goal, finished = saved.epochs if epochs is None else epochs, len(saved.run.epochs) if saved.run else 0
    if goal <= finished:
        more = hint("train", "--resume", directory, "--epochs", finished + 10)
        done = "1 finished epoch" if finished == 1 else f"{finished} finished epochs"
        out.print(f"{directory} has {done}, and {goal} were asked for; {more} adds ten")
        return
    recipe = saved.recipe
    team.join(recipe.backend, own)
    if not team.writes(recipe.backend):
        training.resume(directory, epochs=goal, data=lambda: load(where or saved.where))
        return
    with _displayed(directory, recipe.network, recipe.backend, goal, where or saved.where) as callbacks:
        training.resume(directory, epochs=goal, **callbacks._asdict())
    _say_next(directory, goal)


def _check_same_options(saved: Saved, context: typer.Context) -> None:
    """Refuse options that differ from those of the run."""
    if context.params["out_dir"] is not None:
        raise DomainError(
            f"polybn train: --resume must be given without --out; got --out {context.params['out_dir']} "
            "(--resume DIR names the directory of the run)"
        )
    recipe = saved.recipe
    has = {name: getattr(recipe, name) for name in ("backend", "batch_size", "seed", "devices", "last_batch", "device")}
    has |= {"lr": recipe.learning_rate, "norm": _norm_of(recipe.network)}
    others = [
        f"--{name.replace('_', '-')} {context.params[name]} where it has {value}"
        for name, value in has.items()
        if _is_given(context, name) and context.params[name] != value
    ]
    if others:
        raise DomainError(
            f"polybn train: options must be those of the run in {saved.path}; got {', '.join(others)} "
            "(leave them out to go on with that run, or leave --resume out to begin another one)"
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source: Any = context.get_parameter_source(name)
    return bool(source.name == "COMMANDLINE")


def _given(context: typer.Context) -> list[str]:
    """Return the options on the command line that another run can have, too."""
    own = ("norm", "out_dir")
    given = [p for p in context.command.params if p.name not in own and _is_given(context, str(p.name))]
    return [word for p in given for word in (p.opts[0], str(context.params[str(p.name)]))]


def _say_next(directory: Path, epochs: int) -> None:
    """Say where the run is, and the command to go on with: without an epoch there is no curve to draw."""
    draws = f"{hint('compare', directory)} draws its curves"
    trains = f"{hint('train', '--resume', directory, '--epochs', 10)} trains it"
    out.print(f"Saved in {directory}; {draws if epochs else trains}")


@contextlib.contextmanager
def _displayed(directory: Path, network: Network, backend: str, epochs: int, where: str | None) -> Iterator[Callbacks]:
    """Show the progress of training, and after Ctrl-C how to continue."""
    shown = EpochDisplay(out, epochs)

    def read() -> Dataset:
        dataset = load(where)
        values = f"{networks.count_parameters(network):,}"
        out.print(f"LeNet, {values} trainable values, batch norm: {_norm_of(network)}; backend {backend}")
        out.print(f"{sizes(dataset)}, from {dataset.source}")
        shown.start(len(dataset.train_labels))
        return dataset

    try:
        with shown:
            yield Callbacks(read, shown.on_steps, shown.on_epoch)
    except KeyboardInterrupt:
        if (directory / "config.json").exists():
            go_on = hint("train", "--resume", directory)
            err.print(f"Stopped; finished epochs are saved. To go on: {go_on}")
        else:
            err.print("Stopped before anything was written.")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _directory(wanted: Path | None, recipe: Recipe, where: str | None) -> Iterator[Path]:
    """Yield the wanted directory, or a new one in runs/ that no other process can take at the same time."""
    if wanted is not None:
        yield wanted
        return
    made = make_directory(Path("runs"))
    name = _name_of(recipe, where)
    for number in itertools.count(1):
        path = Path("runs", name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # a directory that holds a run is not empty, and stays
            for empty in (path, *reversed(made)):
                empty.rmdir()


def _name_of(recipe: Recipe, where: str | None) -> str:
    """Name a run by its options; rarely used options appear only if they differ from the default."""
    plain = Recipe(recipe.network)
    used = fashion_mnist.find(where).used
    rare = {
        f"batch{recipe.batch_size}": recipe.batch_size != plain.batch_size,
        f"devices{recipe.devices}": recipe.devices != plain.devices,
        f"{recipe.device}".replace(":", ""): recipe.device is not None,
        "drop": recipe.last_batch != plain.last_batch,
        "sample": used is None or used.edition is SAMPLE,
    }
    rate = f"{recipe.learning_rate!r}".removesuffix(".0")
    parts = [recipe.backend, _norm_of(recipe.network), f"lr{rate}", f"seed{recipe.seed}"]
    return "-".join([*parts, *(word for word, given in rare.items() if given)])


def _norm_of(network: Network) -> str:
    kinds = {layer.implementation for layer in network.layers if isinstance(layer, BatchNorm)}
    return " and ".join(sorted(kinds)) or "none"
