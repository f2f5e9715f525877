"""What docs/results keeps of a report of the conformance kit: who, when, the grades, and every verdict.

    polybn check --backend numpy --profile ci --json docs/results/check-numpy.json
    python -m docs._ext.records docs/results/check-numpy.json

The second line cuts the report down in place, to a fortieth; a record stays as it is.
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
    """Keep of a report what the documentation shows and what a later run can be compared with.

    Parameters
    ----------
    report : dict
        As ``polybn check --json`` writes it.

    Returns
    -------
    dict
        A part of it, with the same names.
    """
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
