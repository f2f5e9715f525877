"""``polybn compare``: learning curves side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from polybn.console import err, out
from polybn.lenet import pictures
from polybn.lenet import runs as saved
from polybn.lenet.errors import CheckpointError
from polybn.lenet.runs import Epoch

CELL = "0.0000  0.000  0.000"
"""As wide as a run's numbers of an epoch."""


class LeftOut(NamedTuple):
    """A run that cannot be shown."""

    path: Path
    """The path that was given, or the directory of the run."""
    reason: str
    """Why the run is not shown."""
    is_fault: bool = True
    """Whether something is wrong; False for a run that has no finished epoch yet."""


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, or directories that hold runs.")
    ],
    picture: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture to write: .png, .svg or .pdf.")
    ] = Path("comparison.png"),
) -> None:
    """Draw the learning curves of several runs, and print them side by side.

    A run that cannot be shown is named, with the reason. The exit code is 1 if a run is missing or damaged.

    [dim]polybn compare runs
    polybn compare runs/numpy-spec-lr1-seed0 --out curves.svg[/dim]
    """
    from polybn.lenet import curves

    pictures.check_option("compare", "--out", picture)
    shown, left_out = _read(dict.fromkeys(run for path in runs for run in _expand(path)))
    if not shown:
        reasons = "; ".join(f"{path}: {reason}" for path, reason, _ in left_out)
        raise CheckpointError(f"polybn compare: one run must have a finished epoch; got none ({reasons})")
    named = dict(zip(_short_names(list(shown)), shown.values(), strict=True))
    for table in _tables(named, out.width):
        out.print(table)
    for path, reason, _ in left_out:
        err.print(f"Left out: {path}: {reason}")
    curves.draw(named, picture)
    out.print(f"Curves drawn in {picture}")
    if any(left.is_fault for left in left_out):
        raise typer.Exit(1)


def _expand(path: Path) -> list[Path]:
    """Return the runs in a directory, or the path itself if it is a run or holds none."""
    if saved.is_run(path) or not path.is_dir():
        return [path]
    return sorted(inner for inner in path.iterdir() if saved.is_run(inner)) or [path]


def _read(paths: dict[Path, None]) -> tuple[dict[Path, list[Epoch]], list[LeftOut]]:
    shown, left_out = dict[Path, list[Epoch]](), []
    for path in paths:
        try:
            shown[path] = saved.read_epochs(path)
        except (CheckpointError, OSError) as error:
            left_out.append(LeftOut(path, f"{error}"))
            continue
        if not shown[path]:
            del shown[path]
            left_out.append(LeftOut(path, "no epoch is finished yet", is_fault=False))
    return shown, left_out


def _short_names(runs: list[Path]) -> list[str]:
    """Return the last parts of the paths if they differ, else the whole paths."""
    names = [path.resolve().name for path in runs]
    return names if len(set(names)) == len(names) else [str(path) for path in runs]


def _tables(named: dict[str, list[Epoch]], width: int) -> Iterator[Table]:
    """Set the runs side by side, as many in a table as fit into the width."""
    runs, across = list(named.items()), max(1, (width - len("| epoch |")) // len(f" {CELL} |"))
    for start in range(0, len(runs), across):
        chosen = runs[start : start + across]
        table = Table("epoch", title="training loss, training accuracy, test accuracy", title_justify="left")
        for name, _ in chosen:
            table.add_column(name, justify="right", overflow="fold", min_width=len(CELL))
        for number in range(1, max(len(epochs) for _, epochs in chosen) + 1):
            table.add_row(str(number), *(_cell(epochs, number) for _, epochs in chosen))
        yield table


def _cell(epochs: list[Epoch], number: int) -> str:
    if number > len(epochs):
        return ""
    epoch = epochs[number - 1]
    return f"{epoch.loss:.4f}  {epoch.train_accuracy:.3f}  {epoch.test_accuracy:.3f}"
