"""The tables of dialects, from polybn.dialects and from the record of conversions.

    python -m tests.support.conversions

writes the record, docs/results/conversions.json, if all of its frameworks are installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polybn.dialects import DIALECTS, Dialect
from polybn.dialects.words import HEADINGS, LABELS, row, say

RECORD = Path(__file__).parents[1] / "results" / "conversions.json"


def table() -> str:
    """Return the main facts of all dialects."""
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    lines += [_line((f"`{name}`", *cells)) for name, *cells in map(row, DIALECTS.values())]
    return "\n".join(lines) + "\n"


def facts() -> str:
    """Return a section for each dialect: every fact, with its source if it differs from the dialect's."""
    return "\n\n".join("\n".join(_section(dialect)) for dialect in DIALECTS.values()) + "\n"


def _section(dialect: Dialect) -> Iterator[str]:
    yield f"## {dialect.name}\n\n{dialect.title}. Source: {_linked(dialect.source)}.\n"
    yield from (_line(["fact", "", "source, if it is another one"]), _line(["---"] * 3))
    for fact, label in LABELS.items():
        if say(dialect, fact):
            source = _linked(dialect.sources[fact]) if fact in dialect.sources else ""
            yield _line([label, say(dialect, fact), source])


def _linked(source: str) -> str:
    """Turn an address at the beginning of a source into a link; the rest of the source names the place."""
    address, comma, place = source.partition(", ")
    return f"<{address}>{comma}{place}" if address.startswith("https://") and " " not in address else source


def conversions() -> str:
    """Return the table of conversions, from the row's framework to the column's."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    verdicts = {(pair["source"], pair["target"]): pair["verdict"] for pair in record["pairs"]}
    names = list(record["versions"])
    lines = [_line(["from, to", *(f"`{name}`" for name in names)]), _line(["---"] * (len(names) + 1))]
    lines += [_line([f"`{a}`", *(verdicts.get((a, b), "") for b in names)]) for a in names]
    return "\n".join([*lines, "", _made(record)]) + "\n"


def _made(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    largest = max(pair["inference"] for pair in record["pairs"])
    return (
        f"Each one: {record['before']} training steps, the conversion, inference, and {record['after']} more steps on "
        f"both sides, {record['values']} values per channel. Inference agrees everywhere, within {largest:.2g} of the "
        f"bound that is proven for float32. Recorded {record['date']}: {versions}."
    )


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
