"""``polybn dialects``: the conventions of frameworks, and their differences."""

from __future__ import annotations

import json as writer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from polybn.console import check_place, folded, whole, words_beside, write

if TYPE_CHECKING:
    from polybn.dialects import Dialect


def dialects(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="None: all. One: everything about it. Two or more: what differs."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all facts, with their sources, as JSON; - prints them.")
    ] = None,
) -> None:
    """Show what each framework means by momentum, variance, eps and the rest; or how two of them differ.

    The same words mean different things: PyTorch's momentum weighs the batch, that of Keras the old value; one keeps
    the unbiased variance, the other the biased one. Who moves a model needs to know, and polybn.dialects.convert does.

    [dim]polybn dialects
    polybn dialects pytorch keras3[/dim]
    """
    from polybn.dialects import DIALECTS, find

    chosen = [find(name, function="dialects") for name in names or DIALECTS]
    if json is not None:
        check_place("dialects", "--json", json)
        write(json, writer.dumps(list(map(_record, chosen)), indent=1) + "\n")
    shown = _all(chosen) if not names else _one(chosen[0]) if len(chosen) == 1 else _differences(chosen)
    words_beside(json).print(shown)


def _record(dialect: Dialect) -> dict[str, Any]:
    facts = dialect.facts() | {"names": dict(dialect.names), "optional": sorted(dialect.optional)}
    return facts | {"source": dialect.source, "sources": dict(dialect.sources)}


def _all(chosen: list[Dialect]) -> Table:
    from polybn.dialects.words import HEADINGS, row

    first, *others = HEADINGS
    table = Table(whole(first, *(dialect.name for dialect in chosen)), *map(folded, others), box=None)
    for dialect in chosen:
        table.add_row(*row(dialect))
    return table


def _one(dialect: Dialect) -> Table:
    from polybn.dialects.words import LABELS, say

    table = Table("", folded(dialect.title), folded("source"), box=None)
    for fact, label in LABELS.items():
        if say(dialect, fact):
            source = dialect.source_of(fact)
            table.add_row(label, say(dialect, fact), source if fact in dialect.sources else "")
    table.add_row("where not said otherwise", "", dialect.source)
    return table


def _differences(chosen: list[Dialect]) -> Table | str:
    from polybn.dialects.words import LABELS, differing, say

    if not differing(chosen):
        return f"{' and '.join(dialect.name for dialect in chosen)} do not differ."
    labels = {fact: LABELS[fact] for fact in differing(chosen)}
    table = Table(folded("", *labels.values()), *(folded(dialect.name, dialect.name) for dialect in chosen), box=None)
    for fact, label in labels.items():
        table.add_row(label, *(say(dialect, fact) for dialect in chosen))
    return table
