"""The table of exports, from the record of a trained network in all frameworks.

    python -m tests.support.export_record

writes the record, docs/results/exports.json, if all of its frameworks are installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "results" / "exports.json"
HEAD = "| | format | labels that differ | largest error of a score | share of the bound |\n|---|---|---|---|---|\n"


def table() -> str:
    """Return a paragraph about the run, and a row for each format."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = "\n".join(_row(row, record["images"]) for row in record["rows"])
    return (
        f"After {record['epochs']} epochs on all of Fashion-MNIST the network labels {record['accuracy']:.1%} of the "
        f"{record['images']:,} test images right. Each export was given all of them, and compared with the exact "
        f"scores, in float64. The least distance between the two best scores of an image is {record['gap']:.1e}. The "
        f"bound is that of float32's errors in this network, value by value, for the first {record['bounded']} images. "
        f"All exports came back with the same bits. Recorded {record['date']}.\n\n{HEAD}{rows}\n"
    )


def _row(row: dict[str, Any], images: int) -> str:
    format = f"`{row['format']}`" if row["format"] else ""
    figures = f"{row['differ']} of {images:,} | {row['error']:.1e} | {row['share']:.0%}"
    return f"| {row['name']} | {format} | {figures} |"
