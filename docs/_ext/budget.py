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
    return "\n".join(lines) + "\n"


def steps() -> str:
    """Return the table of a training step of LeNet in Markdown, or an empty text without a record."""
    if not RECORD.exists():
        return ""
    step: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))["step"]
    lines = ["| launch | launching | waits | instructions | together, µs |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, parts in step["nodes"].items():
        lines.append(f"| {name} | " + " | ".join(f"{part:.1f}" for part in (*parts, sum(parts))) + " |")
    sums = [sum(column) for column in zip(*step["nodes"].values(), strict=True)]
    lines.append("| **all** | " + " | ".join(f"{part:.1f}" for part in (*sums, sum(sums))) + " |")
    costs = ", ".join(f"{cost:g} ({kind})" for kind, cost in step["instructions"].items())
    return "\n".join([
        *lines, "",
        f"{step['launches']} launches take {step['predicted us a step']:g} µs, and 60,000 images "
        f"{step['predicted ms an epoch']:g} ms; the goal is 70 µs and 20 ms. Launching takes {sums[0]:.1f} µs of it, "
        f"what batch norms wait for {step['batch norms, us']:g}, and multiply-adds {step['multiply-adds, us']:g}. "
        f"Counted instructions of the inner loops: {costs}.",
    ]) + "\n"  # fmt: skip
