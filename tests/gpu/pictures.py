"""A picture of a record of ``tests.gpu.check``: ``python -m tests.gpu.pictures docs/results/cupy-NAME.json``.

It needs matplotlib and no GPU, and writes ``cupy-NAME.svg`` beside the record. Each panel is a task, and each bar the
time of a library. Lines mark the predicted time and the wanted time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TASKS = ("forward", "backward", "inference")
RIVALS = ("PyTorch", "PyTorch without cuDNN")
COLOURS = {
    "PolyBN on CuPy": "#0072B2",
    "PyTorch": "#D55E00",
    "PyTorch without cuDNN": "#B07A00",
    "PolyBN on JAX": "#009E73",
}
MARKS = {"predicted": ":", "goal": "--"}
COLUMNS = 3


class Panel(NamedTuple):
    """A task, the time in us that each library took, and the times to compare with."""

    title: str
    times: dict[str, float]
    marks: dict[str, float]


def panels(record: dict[str, Any]) -> Iterator[Panel]:
    """Yield what the record has times of: each task on each tensor, and an epoch of LeNet."""
    parts = record["parts"]
    of_jax = parts.get("jax-speed", {})
    for problem, times in parts.get("speed", {}).items():
        if not isinstance(times, dict) or "copy" not in times:
            continue
        for task in (task for task in TASKS if task in times):
            found = {"PolyBN on CuPy": times[task], "PolyBN on JAX": of_jax.get(problem, {}).get(task, {})}
            found |= {rival: times.get(f"{rival} {task}", {}) for rival in RIVALS}
            yield _panel(f"{task}\n{problem}", found)
    names = {"lenet": "PolyBN on CuPy", "torch-lenet": "PyTorch", "jax-lenet": "PolyBN on JAX"}
    epochs = {label: parts.get(part, {}).get("epoch", {}) for part, label in names.items()}
    if any(epochs.values()):
        yield _panel("an epoch of LeNet\n60,000 images", epochs)


def _panel(title: str, found: dict[str, dict[str, Any]]) -> Panel:
    ours = found["PolyBN on CuPy"]
    times = {name: found[name]["us"] for name in COLOURS if "us" in found.get(name, {})}
    return Panel(title, times, {mark: ours[mark] for mark in MARKS if mark in ours})


def draw(record: dict[str, Any]) -> Figure:
    """Draw all panels of a record."""
    shown = list(panels(record))
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(9, 1.5 * rows + 1), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel().tolist()
    for each, panel in zip(axes, shown, strict=False):
        _bars(each, panel)
    for each in axes[len(shown) :]:
        each.set_axis_off()
    emulated = " The device is emulated: times mean nothing." if record["emulated"] else ""
    figure.suptitle(
        f"{record['device']}, CuPy {record['cupy']}, CUDA {record['CUDA']}. Microseconds.{emulated}", fontsize=9
    )
    return figure


def _bars(axes: Axes, panel: Panel) -> None:
    names = list(panel.times)
    bars = axes.barh(names, [panel.times[name] for name in names], color=[COLOURS[name] for name in names])
    axes.bar_label(bars, fmt="%.4g", padding=2, fontsize=7)
    for mark, at in panel.marks.items():
        axes.axvline(at, linestyle=MARKS[mark], color="black", linewidth=1, label=f"{mark}: {at:g}")
    if panel.marks:
        axes.legend(frameon=False, fontsize=6, loc="lower right")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(labelsize=7)
    axes.set_title(panel.title, fontsize=7, loc="left")


def main(path: Path) -> None:
    """Draw the picture of one record."""
    record = json.loads(path.read_text(encoding="utf-8"))
    with mpl.rc_context({"svg.hashsalt": "polybn"}):
        draw(record).savefig(path.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
