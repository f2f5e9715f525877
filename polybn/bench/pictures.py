"""Pictures of a record: speed compared with a copy of memory, and time against N, C and H * W."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.bench.contenders import fastest
from polybn.bench.peers import PEERS
from polybn.bench.record import Record, Row
from polybn.bench.tasks import DECADES, KINDS, Task, shapes
from polybn.bench.tasks import growth as sizes
from polybn.lenet import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#B07A00",
    "#56B4E9",
    "#c0392b",
    "#808080",
)  # on light and on dark ground


class Panel(NamedTuple):
    """One of the three parts of a picture."""

    title: str
    """The title above the panel."""
    tasks: Sequence[Task]
    """The tasks that are the points of the panel."""
    x: Callable[[Task], float]
    """A function that returns the place of a task on the horizontal axis."""


def roofline(record: Record) -> Figure | None:
    """Draw the memory throughput of each contender, and that of a copy, the upper limit for batch norm."""
    panels = [Panel(f"{kind}, GB/s against MB of x", shapes(kind), lambda task: task.size / 1e6) for kind in KINDS]
    return _draw(record, panels, lambda row: _bytes(row) / row.median / 1e9)


def growth(record: Record) -> Figure | None:
    """Draw milliseconds against N, C and H * W: straight lines where time grows with the work."""
    tasks, count = list(sizes()), len(DECADES)
    panels = [
        Panel(f"ms against {label}", tasks[i * count : (i + 1) * count], lambda task, i=i: task.shape[i])  # type: ignore[misc]
        for i, label in enumerate(("N", "C", "H * W"))
    ]
    return _draw(record, panels, lambda row: row.median * 1e3)


def save(record: Record, folder: Path) -> list[Path]:
    """Draw the pictures for which the record has figures, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{draw.__name__}.svg": draw(record) for draw in (roofline, growth)}
    for path, figure in drawn.items():
        if figure is not None:
            pictures.save(figure, path)
    return [path for path, figure in drawn.items() if figure is not None]


def _draw(record: Record, panels: Sequence[Panel], y: Callable[[Row], float]) -> Figure | None:
    """Draw a line for each contender in each panel: dashed for peers, wide for the copy.

    Return None if there are no figures.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    panels = [panel for panel in panels if any(record.find(task, record.against) for task in panel.tasks)]
    if not panels:
        return None
    names = [*record.contenders]
    shown = [*(["copy"] if "copy" in names else []), *fastest(names), *(name for name in PEERS if name in names)]
    figure = Figure(figsize=(5.4, 0.6 + 2.2 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        colours = itertools.cycle(COLOURS)
        for name in shown:
            rows = [row for task in panel.tasks for row in [record.find(task, name)] if row]
            points = sorted((panel.x(row.task), y(row)) for row in rows)
            style: dict[str, Any] = {"color": "#a0a6ad", "alpha": 0.6, "linewidth": 5, "zorder": 0}
            if name != "copy":
                style = {"color": next(colours), "marker": ".", "linestyle": "--" if name in PEERS else "-"}
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
        axes.set_title(panel.title, fontsize=9, loc="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _bytes(row: Row) -> int:
    return 2 * row.task.size if row.contender == "copy" else row.task.bytes
