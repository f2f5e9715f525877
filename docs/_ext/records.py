"""The part of a report of the conformance kit that docs/results keeps: the subject, the date, all grades and verdicts.

    polybn check --backend numpy --profile ci --json docs/results/check-numpy.json
    python -m docs._ext.records docs/results/check-numpy.json

The second command removes the rest from a report, in place, and leaves a fortieth of its size. It changes nothing in a
file that it has treated before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FACTS = ("format", "date", "profile", "seed", "versions")
KEPT = {
    "adapter": ("name", "version"),
    "grades": ("dtype", "letter"),
    "results": ("id", "status", "share"),
}


def trim(report: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a report that the documentation shows or that a later run can be compared with."""
    record = {name: report[name] for name in FACTS}
    for name, fields in KEPT.items():
        rows = report[name]
        record[name] = _of(rows, fields) if isinstance(rows, dict) else [_of(row, fields) for row in rows]
    return record


def _of(row: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: row[field] for field in fields}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        record = trim(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
