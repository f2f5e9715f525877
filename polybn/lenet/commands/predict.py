"""``polybn predict``: the labels that a trained network gives to the test images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from polybn import dispatch
from polybn.console import out
from polybn.lenet import pictures, runs
from polybn.lenet import program as programs
from polybn.lenet.commands.data import DataOption, load
from polybn.lenet.fashion_mnist import CLASSES
from polybn.lenet.recipe import Recipe, check_images

if TYPE_CHECKING:
    from polybn.lenet.fashion_mnist import Dataset
    from polybn.lenet.runs import Run

Labels = NDArray[np.uint8]


class Score(NamedTuple):
    """A network's results on one class."""

    right: int
    """The number of images of the class with the right label."""
    of: int
    """The number of images of the class."""
    taken_for: str
    """The most frequent wrong label, and its number; empty if there was no mistake."""


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/numpy-spec-lr1-seed0.")],
    data: DataOption = None,
    count: Annotated[int, typer.Option(min=1, max=400, help="How many test images to draw.")] = 40,
    picture: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture to write: .png, .svg or .pdf.")
    ] = Path("predictions.png"),
) -> None:
    """Label the test images with a trained network, count the mistakes by class, and draw some images.

    [dim]polybn predict runs/numpy-spec-lr1-seed0[/dim]
    """
    from polybn.lenet import contact_sheet

    pictures.check_option("predict", "--out", picture)
    loaded = runs.load(run)
    dataset = load(data)
    out.print(f"{len(dataset.test_labels):,} test images, from {dataset.source}")
    labels, predictions = dataset.test_labels, _predictions(loaded, dataset)
    out.print(_table(labels, predictions, title=f"{run} after epoch {len(loaded.epochs)}"))
    right = int(np.count_nonzero(predictions == labels))
    out.print(f"{right:,} of {len(labels):,} test images right: {right / len(labels):.1%}")
    title, first = f"Test images, labelled by {run.resolve().name}", slice(count)
    contact_sheet.draw(dataset.test_images[first], labels[first], picture, title=title, predictions=predictions[first])
    out.print(f"The first {min(count, len(labels))} are drawn in {picture}")


def _predictions(run: Run, dataset: Dataset) -> Labels:
    recipe = Recipe.from_config(run.config)
    program = programs.compile(recipe.network, dispatch.backend(recipe.backend), run.state, batch_size=256)
    check_images("predict", recipe.network, dataset)
    scores = program.logits(program.place(dataset.test_images, dataset.test_labels))
    predictions: Labels = scores.argmax(axis=1).astype(np.uint8)
    return predictions


def _table(labels: Labels, predictions: Labels, *, title: str) -> Table:
    table = Table("class", "right", "most often taken for", title=title, title_justify="left")
    for index, name in enumerate(CLASSES):
        score = _score(index, labels, predictions)
        table.add_row(name, f"{score.right:,} of {score.of:,}", score.taken_for)
    return table


def _score(index: int, labels: Labels, predictions: Labels) -> Score:
    given = np.bincount(predictions[labels == index], minlength=len(CLASSES))
    right, of = int(given[index]), int(given.sum())
    given[index] = 0
    worst = int(given.argmax())
    return Score(right, of, f"{CLASSES[worst]} ({given[worst]})" if right < of else "")
