"""The table and the picture of docs/array-api.md, from the record that docs/examples/dask_scaling.py writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

RECORD = Path(__file__).parents[1] / "results" / "dask-scaling.json"
BEYOND = [1, 2, 4, 8, 16]
"""The numbers of workers that the picture shows."""


def table() -> str:
    """List time, throughput, memory and differences for each number of workers."""
    record = _load()
    lines = [
        "| workers | seconds | GB/s | peak memory of a worker | mean differs by | m2 differs by |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in record["runs"]:
        speed, peak = record["bytes"] / run["seconds"] / 1e9, run["peak_bytes"] / 1e9
        figures = [f"{run['seconds']:.0f}", f"{speed:.3f}", f"{peak:.2f} GB", f"{run['mean']:.2f}", f"{run['m2']:.2f}"]
        lines.append(f"| {run['workers']} | {' | '.join(figures)} |")
    facts = (
        f"{record['bytes'] / 1e9:.1f} GB of float32 in blocks of 16 MiB, which are made as they are read; "
        f"{record['limit']} for each worker, {record['cpus']} processors in all, Dask {record['dask']}, "
        f"{record['date']}. Differences are relative, from NumPy's moments of all blocks in float64, in units of 2^-24."
    )
    return "\n".join([*lines, "", facts]) + "\n"


def serial(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the seconds that no worker shortens and those that workers share, from the first and the last run."""
    one, more = runs[0], runs[-1]
    shared = (one["seconds"] - more["seconds"]) / (1 / one["workers"] - 1 / more["workers"])
    return one["seconds"] - shared / one["workers"], shared


def picture(theme: Any) -> Figure:
    """Draw the measured times, and what they lead us to expect of more workers, each with a processor of its own."""
    runs = _load()["runs"]
    rest, shared = serial(runs)
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(BEYOND, [max(rest, 0) + shared / n for n in BEYOND], "--", color=theme.colours[0], label="expected")
    axes.loglog(
        BEYOND, [runs[0]["seconds"] * runs[0]["workers"] / n for n in BEYOND], ":", color=theme.faint, label="ideal"
    )
    axes.loglog(
        [r["workers"] for r in runs], [r["seconds"] for r in runs], "o", color=theme.colours[1], label="measured"
    )
    axes.set_xticks(BEYOND, [str(n) for n in BEYOND])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("workers")
    axes.set_title("seconds for the moments", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _load() -> Any:
    return json.loads(RECORD.read_text(encoding="utf-8"))
