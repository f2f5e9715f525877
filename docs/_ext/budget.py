"""The table of the costs of CUDA kernels, from the record that ``python -m tests.gpu.budget`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "results" / "cupy-budget.json"
COLUMNS = {
    "instructions a value": "instructions a value",
    "memory instructions a 16 bytes": "memory instructions per 16 bytes",
    "local or generic": "local or generic",
    "registers": "registers",
    "blocks": "resident blocks",
    "bytes a value": "bytes a value",
    "predicted us": "predicted, µs",
}


def table() -> str:
    """Return the table in Markdown, or an empty text without a record."""
    if not RECORD.exists():
        return ""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = ["| kernel | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for label, kernel in record["kernels"].items():
        lines.append(f"| {label} | " + " | ".join(f"{kernel[name]:g}" for name in COLUMNS) + " |")
    shape = " x ".join(map(str, record["shape"]))
    lines += [
        "",
        f"Compiled by {record['compiler']} for {record['target']}. Bytes and times are for {shape} on an H200.",
    ]
    return "\n".join([*lines, "", _step(record["step"])]) + "\n"


def _step(step: dict[str, Any]) -> str:
    """Say what a training step of LeNet costs."""
    costs = ", ".join(f"{cost:g} in `{kind}`" for kind, cost in step["instructions a multiply-add"].items())
    return (
        f"A step of LeNet on 256 images is {step['launches']} launches. Its inner loops take, per multiply-add, "
        f"{costs} instructions. Launches, waits for loads and these instructions add up to "
        f"{step['predicted us a step']:g} µs a step and {step['predicted ms an epoch']:g} ms for 60,000 images, "
        "perhaps wrong by a factor of 2."
    )
