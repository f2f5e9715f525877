"""Pictures of a record: the roofline, and time against N, C and H * W."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polybn.bench.record import Record
from polybn.bench.tasks import DECADES, MULTIPLY, SHAPES, Task
from polybn.bench.tasks import growth as sizes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07A00", "#56B4E9", "#7d858f", "#c0392b")
LARGEST = Task(kind="forward", shape=SHAPES[-1])


def roofline(record: Record) -> Figure:
    """Draw arithmetic a second over arithmetic a byte, under what a copy and a matrix product reach."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axes = figure.subplots()
    copy, product = record.find(LARGEST, "copy"), record.find(MULTIPLY, "copy")
    if copy and product:
        speed, peak = LARGEST.bytes / copy.median, 2 * MULTIPLY.shape[0] ** 3 / product.median
        across = [0.05, peak / speed, 100]
        axes.plot(across, [min(i * speed, peak) / 1e9 for i in across], color="#7d858f")
        axes.set_title(f"copy {speed / 1e9:.3g} GB/s, matrix product {peak / 1e9:.3g} GFLOP/s", fontsize=9, loc="left")
    for number, name in enumerate(n for n in record.contenders if n != "copy"):
        rows = [r for r in record.rows if r.contender == name and r.seconds and _plain(r.task)]
        axes.plot(
            [r.task.operations / r.task.bytes for r in rows], [r.task.operations / r.median / 1e9 for r in rows],
            "o", color=COLOURS[number % 8], markersize=4, label=name, fillstyle="none" if number > 7 else "full",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.legend(frameon=False, fontsize=7)
    return figure


def growth(record: Record) -> Figure:
    """Draw milliseconds against N, C and H * W: straight lines where time grows with the work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 7.2), layout="constrained")
    for axes, (label, place) in zip(figure.subplots(3, 1), (("N", 0), ("C", 1), ("H * W", 2)), strict=True):
        tasks = list(sizes())[place * len(DECADES) : (place + 1) * len(DECADES)]
        for number, name in enumerate(record.contenders):
            rows = [(task, record.find(task, name)) for task in tasks]
            points = [(task.shape[place], row.median * 1e3) for task, row in rows if row]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=COLOURS[number % 8], label=name, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="ms")
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def save(record: Record, folder: Path) -> list[Path]:
    """Draw what the record has figures for into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    grown = any(row.task.part == "growth" for row in record.rows)
    drawn = {folder / "roofline.svg": roofline(record)} | ({folder / "growth.svg": growth(record)} if grown else {})
    for path, figure in drawn.items():
        figure.savefig(path)
    return list(drawn)


def _plain(task: Task) -> bool:
    return task.part == "shapes" and bool(task.operations) and task == Task(kind=task.kind, shape=task.shape)
