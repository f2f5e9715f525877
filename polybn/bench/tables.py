"""Tables of a record: a line for each contender, with ratios to the reference."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import zip_longest

from polybn.bench.record import AGAIN, Record
from polybn.bench.tasks import BUSY, KINDS, LENET, OTHERS, Task, shapes

Lines = list[list[str]]
"""Cells, line by line; the first line is the heading."""
TITLES = {"derivative": "forward and derivative"}


def tables(record: Record) -> dict[str, Lines]:
    """Return all tables for which the record has figures, by title."""
    found = {"geometric means of all shapes": means(record)}
    found |= {TITLES.get(kind, kind): ratios(record, shapes(kind)) for kind in KINDS}
    found["forward and derivative, channels last and other dtypes"] = ratios(record, OTHERS)
    found["a training step of LeNet"] = lenet(record)
    return {title: lines for title, lines in found.items() if len(lines) > 1}


def means(record: Record) -> Lines:
    """Make a table of the geometric means of ratios over all shapes, and of the ratios of LeNet's step."""
    columns = {TITLES.get(kind, kind): shapes(kind) for kind in KINDS} | {"LeNet step": [LENET]}
    columns = {
        name: tasks for name, tasks in columns.items() if all(record.find(task, record.against) for task in tasks)
    }
    lines = [["time", *columns]] if columns else []
    for name in _order(record):
        cells = [_mean(record, name, tasks) for tasks in columns.values()]
        if any(cells):
            lines.append([name, *cells])
    return lines


def _mean(record: Record, name: str, tasks: Sequence[Task]) -> str:
    """Format the geometric mean of a contender's ratios; the cell is empty if it could not run all tasks."""
    found = [row and record.ratio(row) for row in (record.find(task, name) for task in tasks)]
    medians = [ratio.median for ratio in found if ratio]
    return f"{statistics.geometric_mean(medians):.2f}" if len(medians) == len(tasks) else ""


def ratios(record: Record, tasks: Sequence[Task]) -> Lines:
    """Make a table of the ratios of each contender to the reference."""
    tasks = [task for task in tasks if record.find(task, record.against)]
    lines = [["time", *map(_heading, tasks)]]
    for name in _order(record):
        found = [row and record.ratio(row) for task in tasks for row in [record.find(task, name)]]
        if any(found):
            lines.append([name, *(str(ratio or "") for ratio in found)])
    reference = [row.median for task in tasks for row in [record.find(task, record.against)] if row]
    return [*lines, *[[f"{record.against}, ms", *map(_milliseconds, reference)]] * bool(tasks)]


def lenet(record: Record) -> Lines:
    """Make a table of the time of a training step, with and without busy processes beside it."""
    lines = [["time", "ms/step", f"/{record.against}", "busy/quiet"]]
    for name in [record.against, *_order(record)]:
        quiet, busy = record.find(LENET, name), record.find(BUSY, name)
        if quiet:
            factor = f"{busy.median / quiet.median:.1f}" if busy else ""
            lines.append([name, _milliseconds(quiet.median), str(record.ratio(quiet) or ""), factor])
    return lines


def markdown(lines: Lines) -> str:
    """Write a table as Markdown; quartiles are below their medians, so that the columns are narrow."""
    rows = [f"| {' | '.join(cells)} |".replace(" (", "<br>(") for cells in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]]) + "\n"


def plain(lines: Lines) -> str:
    """Write a table for a terminal of 80 columns: only medians, and each word of a heading on a line of its own."""
    heads = [list(words) for words in zip_longest(*(cell.split(" ") for cell in lines[0]), fillvalue="")]
    rows = [*heads, *([cells[0], *(cell.split(" (")[0] for cell in cells[1:])] for cells in lines[1:])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows) + "\n"


def _order(record: Record) -> list[str]:
    """List the names of all but the reference, then that of its second process."""
    return [*(name for name in record.contenders if name != record.against), record.against + AGAIN]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.3g}"


def _heading(task: Task) -> str:
    """Name the layout and the dtype of a task if they are special, then N x C, then H x W."""
    special = ["last"] * (task.layout == "last") + [task.dtype] * (task.dtype != "float32")
    return " ".join([*special, "x".join(map(str, task.shape[:2])), "x".join(map(str, task.shape[2:]))]).strip()
