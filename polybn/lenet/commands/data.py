"""``polybn data``, and the option and the function that all commands use to read the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from polybn.console import err, hint, out
from polybn.lenet import fashion_mnist, pictures
from polybn.lenet.fashion_mnist import Dataset

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR|sample",
        help="Directory with the four files of Fashion-MNIST, compressed or not, or 'sample' for the small subset that "
        "comes with polybn. Default: POLYBN_DATA, your cache, Debian's dataset-fashion-mnist, or a verified download.",
    ),
]


def data(
    where: DataOption = None,
    picture: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture to write: .png, .svg or .pdf.")
    ] = Path("fashion-mnist.png"),
) -> None:
    """Show where the data is, verify every byte, and draw a contact sheet of labelled images.

    [dim]polybn data
    polybn data --data sample --out sample.svg[/dim]
    """
    from polybn.lenet import contact_sheet

    pictures.check_option("data", "--out", picture)
    location = fashion_mnist.find(where)
    for place in location.places:
        mark = ("used", "bold green") if place is location.used else place.why_not or "not needed"
        out.print(Text.assemble(f"{place.origin:<16}{place.directory}: ", mark))
    dataset = load(where, explain=True)
    out.print(f"Verified: {sizes(dataset)}, from {dataset.source}")
    title = f"Fashion-MNIST: {sizes(dataset)}"
    contact_sheet.draw(dataset.train_images[:80], dataset.train_labels[:80], picture, title=title)
    out.print(f"The first 80 training images are drawn in {picture}")


def sizes(dataset: Dataset) -> str:
    """Return how many images there are, in words."""
    return f"{len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images"


def load(where: str | None, *, explain: bool = False) -> Dataset:
    """Read the data; if there is only the sample, say so in one line, or with all reasons."""
    dataset, reason = fashion_mnist.load_or_sample(where, progress=err.is_terminal)
    if reason is not None:
        short = f"no full copy can be had ({hint('data')} says why; apt install dataset-fashion-mnist brings one)"
        words = reason if explain else short
        err.print(Text.assemble(("Using the small sample that comes with polybn: ", "yellow"), words))
    return dataset
