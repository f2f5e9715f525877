"""``polybn stats``: the channel statistics of a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from polybn.console import STANDARD_OUTPUT, check_place, err, out, write
from polybn.lenet import pictures
from polybn.lenet.errors import DataIntegrityError
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.statistics.accumulator import Statistics
    from polybn.statistics.measure import Measured, Spread
    from polybn.statistics.parts import Part

SHOWN = 20
"""The number of names of skipped files that are printed; the file of ``--json`` has all."""


def _axis(word: str) -> int | str:
    """Read an axis: an integer, or the word for a single channel."""
    if word == "none":
        return word
    try:
        return int(word)
    except ValueError:
        raise typer.BadParameter(f"{word!r} is neither an integer nor none") from None


def stats(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A folder of images or of .npy and .npz files, a file of these kinds, an IDX file as MNIST has them, "
            "compressed or not, or a Zarr store. Several are measured together.",
        ),
    ],
    axis: Annotated[
        str | None,
        typer.Option(
            metavar="N|none",
            help="Where arrays have their channels: 1 after the first axis, -1 last, none if all is one channel. It "
            "must be given for arrays of rank 3 or more; images and IDX files tell it themselves.",
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Divide by this number: 255 brings bytes to 0..1, as most training code does.")
    ] = 1.0,
    mode: Annotated[
        str | None, typer.Option(help="Convert images first, in Pillow's words: RGB, or L for one grey channel.")
    ] = None,
    array: Annotated[str | None, typer.Option(metavar="NAME", help="Which array of an .npz file or a store.")] = None,
    unbiased: Annotated[
        bool, typer.Option("--unbiased", help="Divide the variance by count - 1 instead of count.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read. The number changes no digit of the result.")
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Let a Dask cluster read instead, such as tcp://host:8786. Its workers must have PolyBN, and see the "
            "files where this machine does.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the histogram of each channel: .png, .svg or .pdf.")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers with all digits; - prints them.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save what --from and polybn.Statistics.load read, to go on later."),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Go on with what --save has saved: add to it.")
    ] = None,
) -> None:
    """Measure a data set: mean, standard deviation, count, smallest and largest value of each channel.

    The numbers are right whatever the type, the size and the order of the files: sums of integers are exact, nothing
    overflows, and nothing cancels far from zero. Large arrays are read block by block. What cannot be read is left out
    and named, and the exit code is then 1.

    [dim]polybn stats photos --scale 255 --workers 4
    polybn stats train.npy --axis -1 --picture histogram.png
    polybn stats train-images-idx3-ubyte.gz --json -[/dim]
    """
    from polybn.statistics import picture as drawing
    from polybn.statistics.accumulator import Statistics
    from polybn.statistics.measure import gather, measure
    from polybn.statistics.parts import Layout

    if not 0 < scale < float("inf"):
        raise DomainError(f"polybn stats: --scale must be a positive number; got {scale} (values are divided by it)")
    for option, target in {"--json": json_, "--save": save}.items():
        if target is not None:
            check_place("stats", option, target, *paths, *([] if from_ is None else [from_]))
    if picture is not None:
        pictures.check_option("stats", "--picture", picture, *paths)
    spread = _spread(workers, scheduler)
    layout = Layout(None if axis is None else _axis(axis), array)
    start = Statistics(axis=-1) if from_ is None else _loaded(from_, layout.axis, picture)
    before = int(start.count.sum()) if start.channels else 0
    seen = paths if scheduler is None else [path.absolute() for path in paths]
    parts = gather(seen, layout, mode)
    _note_types(parts)
    with _progress() as bar, _interruption(save):
        task = bar.add_task("reading", total=sum(part.size for part in parts))
        wanted = picture is not None
        found = measure(parts, spread, histogram=wanted, start=start, progress=lambda size: bar.advance(task, size))
    if not found.statistics.channels or found.statistics.count.sum() == before:
        reason = f"{len(parts)} parts" if not found.left_out else ": ".join(found.left_out[0])
        raise DataIntegrityError(f"polybn stats: a data set must have values that can be read; got none ({reason})")
    _report(found, scale, unbiased, json_)
    if picture is not None:
        drawing.draw(found.statistics, found.histogram, picture, scale=scale)
        err.print(f"Histograms drawn in {picture}")
    if save is not None:
        if isinstance(layout.axis, int):
            found.statistics.axis = layout.axis  # where the arrays to come have their channels
        found.statistics.save(save)
        err.print(f"Saved in {save}, before --scale")
    if found.left_out:
        raise typer.Exit(1)


def _loaded(path: Path, axis: int | str | None, picture: Path | None) -> Statistics:
    """Load statistics to go on with; refuse those that lack something, or are of arrays with another channel axis."""
    from polybn.statistics.accumulator import Statistics

    if picture is not None:
        raise DomainError(
            f"polybn stats: --picture must be left out with --from; got {picture} (a file of statistics has no "
            "histogram, so the picture would lack what came before)"
        )
    found = Statistics.load(path)
    if not found.extremes:
        raise DomainError(
            f"polybn stats: --from must name statistics with smallest and largest values; got {path} "
            "(polybn.Statistics(extremes=False) has saved it: go on with polybn.Statistics.load)"
        )
    if isinstance(axis, int) and axis != found.axis:
        raise DomainError(
            f"polybn stats: --axis must be that of --from, {found.axis}; got {axis} (if the channels are the same "
            "all the same, measure apart, and join both files with polybn.Statistics.merge)"
        )
    return found


@contextmanager
def _interruption(save: Path | None) -> Iterator[None]:
    """Say what Ctrl-C leaves behind: a part of a data set is never saved as if it were the whole."""
    try:
        yield
    except KeyboardInterrupt:
        if save is not None:
            err.print(f"Interrupted: nothing was saved, and {save} {'is as it was' if save.exists() else 'not made'}")
        raise


def _note_types(parts: list[Part]) -> None:
    """Say so if values of several types are averaged together, because their ranges may differ."""
    firsts: dict[str, str] = {}
    for part in parts:
        if part.dtype:
            firsts.setdefault(part.dtype, part.name)
    if len(firsts) > 1:
        listed = ", ".join(f"{dtype} (first {name})" for dtype, name in firsts.items())
        err.print(f"Values of several types are measured together, as they are: {listed}")


def _spread(workers: int, scheduler: str | None) -> Spread:
    """Return the function that distributes parts to readers."""
    from polybn.statistics.measure import in_processes, on_cluster

    if scheduler is None:
        return partial(in_processes, workers=workers) if workers else map
    if workers:
        raise DomainError(
            f"polybn stats: --workers must be left out with --scheduler; got {workers} (the cluster has its own)"
        )
    return partial(on_cluster, address=scheduler)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _report(found: Measured, scale: float, unbiased: bool, target: Path | None) -> None:
    numbers = _numbers(found, scale, unbiased)
    if target != STANDARD_OUTPUT:
        out.print(_table(numbers))
    if found.not_finite:
        first, number = next(iter(found.not_finite)), len(found.not_finite)
        files = "in 1 file" if number == 1 else f"in {number:,} files"
        err.print(f"NaN or infinity among the values {files}, first in {first}; means of their channels are not finite")
    for name, reason in found.left_out[:SHOWN]:
        err.print(f"Left out: {name}: {reason}")
    if len(found.left_out) > SHOWN:
        err.print(f"Left out: {len(found.left_out) - SHOWN:,} more")
    if target is not None:
        text = json.dumps({name: _plain(value) for name, value in numbers.items()}, indent=1, allow_nan=False)
        write(target, f"{text}\n")


def _numbers(found: Measured, scale: float, unbiased: bool) -> dict[str, Any]:
    s = found.statistics
    return {
        "count": s.count.tolist(),
        "mean": (s.mean / scale).tolist(),
        "std": (s.std(unbiased=unbiased) / scale).tolist(),
        "min": (s.min / scale).tolist(),
        "max": (s.max / scale).tolist(),
        "scale": scale,
        "unbiased": unbiased,
        "left_out": [one._asdict() for one in found.left_out],
    }


def _plain(value: Any) -> Any:
    """Put null in the place of NaN and infinity, which JSON lacks."""
    if not isinstance(value, list):
        return value
    return [None if isinstance(one, float) and not math.isfinite(one) else one for one in value]


def _table(numbers: dict[str, Any]) -> str:
    """Return the numbers in columns, which no width of a terminal or of a pipe may cut."""
    columns = [[name, *(f"{value:.9g}" for value in numbers[name])] for name in ("mean", "std", "min", "max")]
    counts = ["count", *(f"{count:,}" for count in numbers["count"])]
    columns = [["channel", *map(str, range(len(counts) - 1))], *columns, counts]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(" " + "  ".join(map(str.rjust, row, widths)) for row in rows)
