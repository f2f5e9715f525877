"""``polybn agree``: give the same calls to several batch norms, and compare each with each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from polybn.atomic import write_atomic

if TYPE_CHECKING:
    from polybn.conformance.agree import Agreement, Difference

out = Console(markup=False, emoji=False, highlight=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)


def agree(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Backends that polybn info lists, or adapters such as pytorch or my_module:MyAdapter; two or more.",
        ),
    ],
    cases: Annotated[int, typer.Option(min=1, help="Number of calls.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random calls.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the matrix of all pairs: .png, .svg or .pdf.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all differences, with programs.")] = None,
    programs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a program for each pair that repeats its largest difference."),
    ] = None,
) -> None:
    """Compare several batch norms with each other, value by value.

    All are given the same calls: four dtypes, ranks 2 to 5, any channel axis, near zero and far from it, training and
    inference. Where answers are exact, correct results are equal bit by bit; elsewhere they differ by at most the sum
    of their two error bounds. The exit code is 1 if some pair differs by more.

    [dim]polybn agree numpy jax
    polybn agree numpy pytorch --picture agree.png --programs differences[/dim]
    """
    from polybn.conformance import agree_picture
    from polybn.conformance.agree import agree as compare

    if picture is not None:
        agree_picture.check_path(picture)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("calls", total=cases)
        found = compare(names, cases=cases, seed=seed, progress=lambda done: bar.update(task, completed=done))
    _print(found)
    if json is not None:
        write_atomic(json, found.to_json().encode())
    if picture is not None:
        agree_picture.draw(found, picture)
    if programs is not None:
        _write_programs(found, programs)
    raise typer.Exit(0 if found.within() else 1)


def _print(found: Agreement) -> None:
    table = Table("pair", "worst in", "share of bounds", "units in last place", "exact answers", box=None)
    for difference in _worst_pairs(found):
        table.add_row(
            f"{difference.first}, {difference.second}",
            f"{difference.quantity}, {difference.dtype}",
            f"{difference.share:.2g}",
            f"{difference.ulps:.3g}",
            "equal" if all(d.bits for d in found.differences if d[:2] == difference[:2]) else "differ",
        )
    out.print(table)
    if found.within():
        out.print(f"All pairs agree: no difference exceeds the sum of both error bounds ({found.cases} calls each).")
    else:
        out.print("A share above 1 means that at least one of the two is outside its error bound.")


def _worst_pairs(found: Agreement) -> list[Difference]:
    pairs = dict.fromkeys((difference.first, difference.second) for difference in found.differences)
    return [found.worst(*pair) for pair in pairs]


def _write_programs(found: Agreement, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for difference in _worst_pairs(found):
        name = f"{difference.first}-{difference.second}.py".replace(":", "-")
        write_atomic(directory / name, difference.program.encode())
    err.print(f"Programs that repeat the largest difference of each pair are in {directory}.")
