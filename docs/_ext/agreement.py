"""The matrix of agreement, from the record that ``polybn agree --json`` made.

    polybn agree numpy jax mxnet mxnet-operators --cases 200 --json docs/results/agreement.json
    python -m docs._ext.agreement docs/results/agreement.json

The second command removes the programs from a fresh report, and changes nothing in a file that it has treated before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def trim(found: dict[str, Any]) -> dict[str, Any]:
    """Return a record without its programs."""
    kept = [{key: value for key, value in row.items() if key != "program"} for row in found["differences"]]
    return found | {"differences": kept}


def table() -> str:
    """Draw the matrix: for each pair, the largest difference as a share of both bounds, and where it occurs."""
    record = json.loads((RESULTS / "agreement.json").read_text(encoding="utf-8"))
    names = record["names"]
    lines = [_line(["", *names]), _line(["---"] * (len(names) + 1))]
    lines += [_line([f"**{a}**", *(_cell(record, a, b) for b in names)]) for a in names]
    equal = all(row["bits"] for row in record["differences"])
    exact = "equal bit by bit for all pairs" if equal else "**not equal for all pairs**"
    lines += ["", f"Calls: {record['cases']} for each. Where answers are exact, results are {exact}."]
    return "\n".join(lines) + "\n"


def _cell(record: dict[str, Any], a: str, b: str) -> str:
    rows = [row for row in record["differences"] if {row["first"], row["second"]} == {a, b}]
    if not rows:
        return ""
    worst = max(rows, key=lambda row: row["share"])
    return f"{worst['share']:.2g} ({worst['quantity']}, {worst['dtype']}; {worst['ulps']:.3g} units)"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        record = trim(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
