"""Tables of a record, in Markdown: ratios to the reference, with their spread."""

from __future__ import annotations

import math
from collections.abc import Iterable

from polybn.bench.record import AGAIN, Ratio, Record
from polybn.bench.tasks import SHAPES, Task


def ratios(record: Record, kind: str = "derivative", **choice: str) -> str:
    """Make a table of shapes and contenders: time over the reference's, and the geometric mean."""
    tasks = [Task(kind=kind, shape=shape, **choice) for shape in SHAPES]
    tasks = [task for task in tasks if record.find(task, record.against)]
    names = [n for n in order(record) if n != record.against and any(record.find(task, n) for task in tasks)]
    lines = [_line(["shape", f"{record.against}, ms", *names]), "|" + " --- |" * (len(names) + 2)]
    columns: dict[str, list[float]] = {name: [] for name in names}
    for task in tasks:
        cells = [" x ".join(map(str, task.shape)), f"{_median(record, task, record.against) * 1e3:.3g}"]
        for name in names:
            found = _ratio(record, task, name)
            cells.append("" if found is None else str(found))
            columns[name] += [] if found is None else [found.median]
        lines.append(_line(cells))
    means = [f"**{_mean(v):.2f}**" if len(v) == len(tasks) else "" for v in columns.values()]
    return "\n".join([*lines, _line(["geometric mean", "", *means])]) + "\n"


def lenet(record: Record) -> str:
    """Make a table of training steps, quiet and beside busy processes."""
    quiet, busy = Task(kind="lenet"), Task(kind="lenet", part="busy")
    lines = ["| contender | ms a step | time / " + record.against + "'s | busy / quiet |", "|" + " --- |" * 4]
    for name in order(record):
        if record.find(quiet, name):
            slower = record.find(busy, name)
            factor = f"{slower.median / _median(record, quiet, name):.1f}" if slower else ""
            cells = [name, f"{_median(record, quiet, name) * 1e3:.3g}", str(_ratio(record, quiet, name) or ""), factor]
            lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def order(record: Record) -> list[str]:
    """List the names of a record, the second process of the reference last."""
    return [*record.contenders, record.against + AGAIN]


def _ratio(record: Record, task: Task, name: str) -> Ratio | None:
    row = record.find(task, name)
    return None if row is None else record.ratio(row)


def _median(record: Record, task: Task, name: str) -> float:
    row = record.find(task, name)
    return math.nan if row is None else row.median


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else math.nan


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(table: str) -> str:
    """Turn a Markdown table round for a terminal of 80 columns: a line for each contender, medians only."""
    rows = [[cell.split(" (")[0].strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    del rows[1]
    turned = [[name.replace(" ", "").replace("*", "") for name in row] for row in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in zip(*turned, strict=True)]
    return "\n".join(" ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in turned) + "\n"
