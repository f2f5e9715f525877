"""The tables and the pictures of docs/speed.md, from the record that ``polybn bench --json`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from polybn.bench import tables
from polybn.bench.record import Record, load

RESULTS = Path(__file__).parents[1] / "results"
RECORD = RESULTS / "bench-cpu.json"
OLDER = RESULTS / "bench-avx2.json"
"""The record of an older processor, without AVX-512."""


def table(path: Path = RECORD) -> str:
    """Return all tables in Markdown, or, without a record, the command that makes one."""
    if not path.exists():
        return (
            f"No record has been made yet: `polybn bench --busy --grow --json docs/results/{path.name}` writes one.\n"
        )
    record = load(path)
    facts = ", ".join(f"{name} {value}" for name, value in record.facts.items())
    versions = "; ".join(f"{name}: {version}" for name, version in record.contenders.items())
    found = (f"### {title.capitalize()}\n\n{tables.markdown(lines)}" for title, lines in tables.tables(record).items())
    return "\n".join([*found, f"Time over {record.against}'s. Made with {facts}; {versions}.\n"])


def means(path: Path = OLDER) -> str:
    """Return the table of geometric means alone."""
    record = load(path)
    facts = ", ".join(f"{name} {value}" for name, value in record.facts.items())
    return f"{tables.markdown(tables.means(record))}\nTime over {record.against}'s. Made with {facts}.\n"


def picture(draw: Callable[[Record], Figure | None], path: Path = RECORD) -> Figure:
    """Draw a picture of the record."""
    figure = draw(load(path))
    if figure is None:
        raise ValueError(f"{path} has no figures for this picture")
    return figure
