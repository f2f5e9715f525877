"""The command line: ``polybn train | compare | predict | data | info | check | bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polybn import __version__, atomic, cli_agree, cli_check, dispatch
from polybn.lenet import fashion_mnist, networks, training
from polybn.lenet import program as programs
from polybn.lenet.display import EpochDisplay
from polybn.lenet.errors import CheckpointError, DataIntegrityError, DivergenceError
from polybn.lenet.fashion_mnist import CLASSES, Dataset
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError

EXPECTED = (
    BackendError, CheckpointError, DataIntegrityError, DivergenceError, DomainError, DTypeError, ShapeError,
    OSError, ImportError,
)  # fmt: skip

app = typer.Typer(
    name="polybn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Batch normalization you can trust on any array.\n\n"
    "Begin with [bold]polybn train[/bold]: it trains LeNet on Fashion-MNIST and shows each epoch. Then train again "
    "with [bold]--norm none[/bold] and let [bold]polybn compare runs/*[/bold] draw what batch norm is good for.",
)
# Without markup: a directory may well be called "runs/[lr=1]".
out = Console(soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR|sample",
        help="Directory with the four .gz files of Fashion-MNIST, or 'sample' for the small subset that comes with "
        "polybn. Default: POLYBN_DATA, your cache, Debian's dataset-fashion-mnist, or a verified download.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/numpy-spec-0.")]


@app.command()
def train(
    backend: Annotated[
        str, typer.Option(envvar="POLYBN_BACKEND", help="Library to train with; polybn info lists them.")
    ] = "numpy",
    epochs: Annotated[int, typer.Option(help="Epochs in all, those of a resumed run included.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images in a training step.")] = 256,
    lr: Annotated[float, typer.Option(help="Learning rate of plain SGD.")] = 1.0,
    norm: Annotated[
        Literal["spec", "native", "none"],
        typer.Option(help="Batch norm: spec is PolyBN's, native is the library's own, none leaves it out."),
    ] = "spec",
    seed: Annotated[int, typer.Option(help="Draws the weights and the order of the images.")] = 0,
    devices: Annotated[int, typer.Option(help="Devices that share each step (jax); they divide the batch size.")] = 1,
    data: DataOption = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Directory for the run. Default: runs/BACKEND-NORM-SEED, or -2, -3 ..."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run from its last finished epoch.")] = False,
) -> None:
    """Train LeNet on Fashion-MNIST.

    Each epoch is saved; Ctrl-C stops, and [bold]--resume[/bold] goes on to exactly the same result.

    [dim]polybn train                             ten epochs with batch norm
    polybn train --norm none                 the same without
    polybn train --resume --epochs 20        ten more epochs
    polybn train --data sample --epochs 2    a quick look[/dim]
    """
    dispatch.backend(backend)  # before anything is downloaded
    network = networks.lenet(None if norm == "none" else norm)
    directory = _choose_directory(out_dir, f"{backend}-{norm}-{seed}", resume)
    dataset = _load(data)
    values = f"{networks.count_parameters(network):,}"
    out.print(f"LeNet, {values} trainable values, batch norm: {norm}; backend {backend}", highlight=False)
    out.print(f"{len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images", highlight=False)
    shown = EpochDisplay(out, epochs, len(dataset.train_labels))
    try:
        with shown:
            training.train(
                network, backend, data=dataset, epochs=epochs, batch_size=batch_size, learning_rate=lr, seed=seed,
                devices=devices, out=directory, resume=resume, on_steps=shown.on_steps, on_epoch=shown.on_epoch,
            )  # fmt: skip
    except KeyboardInterrupt:
        err.print(f"Stopped; finished epochs are saved. Go on with --resume --out {directory}", highlight=False)
        raise typer.Exit(130) from None
    out.print(f"Saved in {directory}; polybn compare {directory} draws its curves", highlight=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, such as runs/*.")],
    out_png: Annotated[Path, typer.Option("--out", metavar="PNG", help="The picture to write.")] = Path(
        "comparison.png"
    ),
) -> None:
    """Draw the learning curves of several runs, and print them side by side.

    [dim]polybn compare runs/*
    polybn compare runs/numpy-spec-0 runs/numpy-none-0 --out curves.png[/dim]
    """
    from polybn.lenet import curves

    named = dict(zip(_short_names(runs), map(training.read_metrics, runs), strict=True))
    table = Table("epoch", title="training loss, training accuracy, test accuracy", title_justify="left")
    for name in named:
        table.add_column(name, justify="right", overflow="fold")
    for number in range(1, max(map(len, named.values())) + 1):
        table.add_row(str(number), *(_cells(epochs, number) for epochs in named.values()))
    out.print(table)
    curves.draw(named, out_png)
    out.print(f"Curves drawn in {out_png}", highlight=False)


@app.command()
def predict(
    run: RunArgument,
    data: DataOption = None,
    count: Annotated[int, typer.Option(min=1, max=400, help="How many test images to draw.")] = 40,
    out_png: Annotated[Path, typer.Option("--out", metavar="PNG", help="The picture to write.")] = Path(
        "predictions.png"
    ),
) -> None:
    """Label the test images with a trained network, count the mistakes by class, and draw some images.

    [dim]polybn predict runs/numpy-spec-0[/dim]
    """
    from polybn.lenet import contact_sheet

    loaded = training.load_run(run)
    network = networks.from_plain(loaded.config["network"])
    dataset = _load(data)
    module = dispatch.backend(loaded.config["backend"])
    program = programs.compile(network, module, loaded.state, batch_size=256)
    scores = program.logits(program.place(dataset.test_images, dataset.test_labels))
    labels, predictions = dataset.test_labels, scores.argmax(axis=1).astype(np.uint8)
    table = Table(
        "class", "right", "most often taken for", title=f"{run} after epoch {len(loaded.epochs)}", title_justify="left"
    )
    for index, name in enumerate(CLASSES):
        score = _score(index, labels, predictions)
        table.add_row(name, f"{score.right:,} of {score.of:,}", score.taken_for)
    out.print(table)
    right = int(np.count_nonzero(predictions == labels))
    out.print(f"{right:,} of {len(labels):,} test images right: {right / len(labels):.1%}", highlight=False)
    contact_sheet.draw(
        dataset.test_images[:count], labels[:count], out_png, title=f"Test images, labelled by {run.name}",
        predictions=predictions[:count],
    )  # fmt: skip
    out.print(f"The first {min(count, len(labels))} are drawn in {out_png}", highlight=False)


@app.command()
def data(
    where: DataOption = None,
    out_png: Annotated[Path, typer.Option("--out", metavar="PNG", help="The picture to write.")] = Path(
        "fashion-mnist.png"
    ),
) -> None:
    """Show where the data is, verify every byte of it, and draw a contact sheet of labelled images.

    [dim]polybn data
    polybn data --data sample[/dim]
    """
    from polybn.lenet import contact_sheet

    location = fashion_mnist.find(where)
    for place in location.places:
        mark = ("used", "bold green") if place is location.used else place.why_not or "not needed"
        out.print(Text.assemble(f"{place.origin:<16}{place.directory}: ", mark))
    dataset = _load(where, explain=True)
    sizes = f"{len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images"
    out.print(f"Verified: {sizes}, from {dataset.source}", highlight=False)
    contact_sheet.draw(dataset.train_images[:80], dataset.train_labels[:80], out_png, title=f"Fashion-MNIST: {sizes}")
    out.print(f"The first 80 training images are drawn in {out_png}", highlight=False)


@app.command()
def info() -> None:
    """List the backends with their versions and devices, or why one cannot run here; a bug report begins with this."""
    out.print(f"polybn {__version__}, Python {sys.version.split()[0]}", highlight=False)
    table = Table("backend", "runs here", "versions and device, or why not")
    for name, reason in dispatch.backends().items():
        if reason is None:
            facts = ", ".join(f"{key} {value}" for key, value in dispatch.backend(name).describe().items())
            table.add_row(name, Text("yes", "green"), facts)
        else:
            table.add_row(name, "no", reason)
    out.print(table)


@app.command()
def bench(
    backend: Annotated[str, typer.Option(envvar="POLYBN_BACKEND", help="The backend to time.")] = "numpy",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every contender runs for 20 ms or 3 calls.")] = 9,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
) -> None:
    """Time batch norm and LeNet's training step beside plain NumPy, and PyTorch where it is installed.

    All contenders run round by round, in another order each time, and the ratios are medians over the rounds: on a
    busy machine they hold where times do not. The row "again" is the backend against itself: its distance from 1 is
    the noise. JAX is timed inside and outside of jax.jit.

    [dim]polybn bench --backend numpy --rounds 15[/dim]
    """
    from polybn import bench as timing

    table = Table("task", "contender", "median ms", f"time / {backend}'s")
    rows = []
    for row in timing.run(backend, rounds=rounds):
        rows.append(row)
        if err.is_terminal:
            err.print(f"{row.task}: {row.contender} {row.milliseconds:.3f} ms, ratio {row.ratio:.2f}", highlight=False)
        table.add_row(row.task, row.contender, f"{row.milliseconds:.3f}", f"{row.ratio:.2f}")
    out.print(table)
    if json_out is not None:
        facts = {"polybn": __version__, **dispatch.backend(backend).describe()}
        figures = {"facts": facts, "timings": [row._asdict() for row in rows]}
        atomic.write_atomic(json_out, (json.dumps(figures, indent=2) + "\n").encode())
        out.print(f"Figures written to {json_out}", highlight=False)


app.command()(cli_check.check)
app.command()(cli_agree.agree)


def main() -> None:
    """Run the command line; PolyBN's own errors are told in their words, without a traceback."""
    try:
        app()
    except EXPECTED as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(1 if isinstance(error, DivergenceError) else 2)


class Score(NamedTuple):
    """How a network did on one class."""

    right: int
    of: int
    taken_for: str
    """The wrong label that it gave most often, and how often; empty if it made no mistake."""


def _score(index: int, labels: NDArray[np.uint8], predictions: NDArray[np.uint8]) -> Score:
    given = np.bincount(predictions[labels == index], minlength=len(CLASSES))
    right, of = int(given[index]), int(given.sum())
    given[index] = 0
    worst = int(given.argmax())
    return Score(right, of, f"{CLASSES[worst]} ({given[worst]})" if right < of else "")


def _choose_directory(wanted: Path | None, name: str, resume: bool) -> Path:
    """Return the run's directory: the one asked for, else runs/NAME, with a number where that is taken."""
    if wanted is not None:
        return wanted
    first = Path("runs") / name
    paths = [first, *(first.with_name(f"{name}-{number}") for number in range(2, 1000))]
    taken = [path for path in paths if path.exists()]
    if resume:
        return taken[-1] if taken else first
    return next(path for path in paths if path not in taken)


def _load(where: str | None, *, explain: bool = False) -> Dataset:
    """Read the data, and say so where it is only the sample: in one line, or in full."""
    dataset, reason = fashion_mnist.load_or_sample(where, progress=err.is_terminal)
    if reason is not None:
        short = "no full copy can be had (polybn data says why; apt install dataset-fashion-mnist brings one)"
        err.print(
            Text.assemble(("Using the small sample that comes with polybn: ", "yellow"), reason if explain else short)
        )
    return dataset


def _short_names(runs: list[Path]) -> list[str]:
    """Return the last parts of the paths where they tell the runs apart, else the paths."""
    names = [path.resolve().name for path in runs]
    return names if len(set(names)) == len(names) else [str(path) for path in runs]


def _cells(epochs: list[training.Epoch], number: int) -> str:
    if number > len(epochs):
        return ""
    epoch = epochs[number - 1]
    return f"{epoch.loss:.4f}  {epoch.train_accuracy:.3f}  {epoch.test_accuracy:.3f}"


if __name__ == "__main__":
    main()
