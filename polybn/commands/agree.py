"""``polybn agree``: give the same calls to several batch norms, and compare each with each."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from polybn.atomic import write_atomic
from polybn.console import check_folder, check_place, err, progress, whole, words_beside, write
from polybn.spec import DomainError

if TYPE_CHECKING:
    from rich.console import Console

    from polybn.conformance.agree import Agreement, Difference


def agree(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Backends that polybn info lists, or adapters such as pytorch or my_module:MyAdapter; two or more.",
        ),
    ],
    cases: Annotated[int, typer.Option(min=1, help="How many calls; 20 of a kind give each dtype exact answers.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random calls.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the matrix of all pairs: .png, .svg or .pdf.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all differences, with programs; - prints them.")
    ] = None,
    programs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write programs that repeat the largest differences of each pair."),
    ] = None,
) -> None:
    """Compare several batch norms with each other, value by value.

    All are given the same calls, as far as they declare to serve them: four dtypes, ranks 2 to 5, any channel axis,
    near zero and far from it, training and inference. Where answers are exact, correct results are equal bit by bit;
    elsewhere they differ by at most the sum of their two error bounds. The table has the largest difference of each
    pair as a share of that sum, where 1 is the most that is right, and in units in the last place, and a line for each
    other result whose share is above 1. The exit code is then 1.

    [dim]polybn agree numpy jax
    polybn agree numpy pytorch --picture agree.png --programs differences[/dim]
    """
    from polybn.conformance import agree_picture
    from polybn.conformance.adapters.here import sources
    from polybn.conformance.agree import agree as compare
    from polybn.conformance.runner import CallError, KitAdapterError

    if picture is not None:
        agree_picture.check_path(picture)
        check_place("agree", "--picture", picture, *sources(*names))
    if json is not None:
        check_place("agree", "--json", json, *sources(*names))
    if programs is not None:
        check_folder("agree", "--programs", programs)
    out = words_beside(json)
    # What a batch norm prints must not come between the brackets of the JSON.
    aside = contextlib.redirect_stdout(sys.stderr) if out is err else contextlib.nullcontext()
    with progress(out) as bar, aside:
        task = bar.add_task("importing", total=cases)
        try:
            found = compare(
                names,
                cases=cases,
                seed=seed,
                progress=lambda what, done, _: bar.update(task, description=what, completed=done, refresh=True),
            )
        except (CallError, KitAdapterError) as error:
            raise DomainError(
                f"polybn agree: every call that is declared must return a result; got: {error} "
                "(polybn check says more about each)"
            ) from error
    _print(found, out)
    if json is not None:
        write(json, found.to_json())
    if picture is not None:
        agree_picture.draw(found, picture)
    if programs is not None:
        _write_programs(found, programs)
    raise typer.Exit(0 if found.within() else 1)


def _print(found: Agreement, out: Console) -> None:
    names = (name for difference in found.differences for name in (f"{difference.first},", difference.second))
    results = (f"{difference.quantity}, {difference.dtype}" for difference in found.differences)
    table = Table(
        whole("pair", *names),
        whole("worst in", *results),
        "share of bounds",
        "units in last place",
        "exact answers",
        box=None,
    )
    for first, second in _pairs(found):
        # The names of a pair stand on two lines, beside the first two quantities.
        shown = found.beyond(first, second)
        for place, d in enumerate(shown):
            alone = len(shown) == 1
            table.add_row(
                f"{first},\n{second}" if alone else (f"{first},", second, "")[min(place, 2)],
                f"{d.quantity}, {d.dtype}",
                f"{d.share:.2g}",
                f"{d.ulps:.3g}",
                _exact([e for e in found.differences if e[:2] == (first, second) and (alone or e[2] == d.quantity)]),
            )
    out.print(table)
    fewest, *_, most = sorted([found.calls(*pair) for pair in _pairs(found)] * 2)
    calls = f"{most if fewest == most else f'{fewest} to {most}'} calls each"
    if found.within():
        out.print(f"All pairs agree: no difference exceeds the sum of both error bounds ({calls}).")
    else:
        out.print(f"A share above 1 means that at least one of the two is outside its error bound ({calls}).")
    if any(not math.isfinite(d.share) for d in found.differences):
        out.print("inf: one of the two has NaN or infinity where the other has a number; --programs shows the call.")


def _exact(differences: list[Difference]) -> str:
    """Say how the exact answers of a pair compare, if there were any to compare."""
    if not any(d.exact for d in differences):
        return "none asked"
    return "equal" if all(d.bits for d in differences) else "differ"


def _pairs(found: Agreement) -> list[tuple[str, str]]:
    return [*dict.fromkeys((difference.first, difference.second) for difference in found.differences)]


def _write_programs(found: Agreement, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for first, second in _pairs(found):
        for place, difference in enumerate(found.beyond(first, second)):
            name = f"{first}-{second}{f'-{difference.quantity}' if place else ''}.py".replace(":", "-")
            write_atomic(directory / name, difference.program.encode())
    err.print(f"Programs that repeat the largest differences of each pair are in {directory}.")
