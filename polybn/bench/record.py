"""The record of a run, which ``polybn bench --json`` writes and from which tables and pictures are made."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from polybn import atomic
from polybn.bench.tasks import Task
from polybn.version import __version__

FORMAT = 1
AGAIN = " again"
"""The end of the name of the reference's second process."""


class Ratio(NamedTuple):
    """Quartiles of ratios; both times of a ratio are from the same round."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired(seconds: list[float], reference: list[float]) -> Ratio:
    """Return the quartiles of the rounds' ratios."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    if len(ratios) == 1:
        return Ratio(*ratios * 3)
    return Ratio(*statistics.quantiles(ratios, n=4, method="inclusive"))


@dataclass
class Row:
    """One contender in one task."""

    task: Task
    contender: str
    seconds: list[float] = field(default_factory=list)
    """Seconds of a call, or of a training step, by round; empty if the contender could not run."""
    cannot: str = ""
    """Why the contender could not run."""

    @property
    def median(self) -> float:
        """Return the median of the rounds, in seconds."""
        return statistics.median(self.seconds)


@dataclass
class Record:
    """All results of a run."""

    against: str
    """The contender that all others are compared with."""
    facts: dict[str, str] = field(default_factory=dict)
    """Versions, the machine, and the settings of the run."""
    contenders: dict[str, str] = field(default_factory=dict)
    """Versions of the contenders by name."""
    rows: list[Row] = field(default_factory=list)

    def find(self, task: Task, contender: str) -> Row | None:
        """Return the row of a task and a contender if it has times, else None."""
        rows = (row for row in self.rows if row.task == task and row.contender == contender and row.seconds)
        return next(rows, None)

    def ratio(self, row: Row) -> Ratio | None:
        """Return the ratio of a row's times to those of the reference."""
        reference = self.find(row.task, self.against)
        if reference is None or not row.seconds or len(reference.seconds) != len(row.seconds):
            return None
        return paired(row.seconds, reference.seconds)

    def dumps(self) -> str:
        """Return the record as JSON."""
        rows = [{**vars(row), "task": row.task.to_json()} for row in self.rows]
        return json.dumps({"format": FORMAT, **vars(self), "rows": rows}, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        atomic.write_atomic(path, self.dumps().encode())


def load(path: Path) -> Record:
    """Read a record that ``polybn bench --json`` has written."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.pop("format", None) != FORMAT:
        raise ValueError(
            f"polybn.bench: {path} must be a record of format {FORMAT} (write it with polybn bench --json)"
        )
    rows = [Row(**{**row, "task": Task.from_json(row["task"])}) for row in data.pop("rows")]
    return Record(**data, rows=rows)


def facts(rounds: int, threads: int | None) -> dict[str, str]:
    """Return the versions, the machine and the settings that times depend on."""
    return {
        "polybn": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rounds": str(rounds),
        "threads": "as installed" if threads is None else str(threads),
    }


def _processor() -> str:
    """Return the processor's name: Linux has it in a file, where Python looks for the architecture alone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
