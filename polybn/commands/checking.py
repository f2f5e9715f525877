"""A check while it goes on: a line for each finding, a bar for what is left, and files that keep what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from polybn.console import STANDARD_OUTPUT, err, hint, named, progress, write

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from polybn.conformance.apart import Begun, Order
    from polybn.conformance.finding import Finding
    from polybn.conformance.report import Report
    from polybn.conformance.result import Result

STYLES = {"pass": "green", "fail": "bold red", "echo": "red", "expected failure": "yellow", "not certified": "magenta"}
SHORT = {
    "pass": "pass", "fail": "FAIL", "echo": "echo", "expected failure": "known", "not certified": "unsure",
    "not applicable": "n/a",
}  # fmt: skip
"""Short names of statuses, for a column of the output."""
WIDTH = 80
"""The width of a line that is printed for a check."""
REWRITE = 2.0
"""Seconds after which files are written again while the check goes on."""


@dataclass
class Checking:
    """A check in progress, whose findings are printed and written as they come."""

    wanted: list[str]
    reasons: dict[str, str]
    files: dict[Path, Callable[[Report], str]]
    """Functions that make the text of each file from a report, by path."""
    words: Console
    """Where findings and the report are printed."""
    quiet: bool = False
    findings: list[Finding] = field(default_factory=list)
    begun: Begun | None = None
    profile: str = ""
    start: float = field(default_factory=time.perf_counter)

    def run(self, order: Order) -> Report:
        """Check until the end or an interruption; print and write the report."""
        self.profile = order.profile
        try:
            with progress(self.words) as bar:
                self._watch(order, bar)
        except KeyboardInterrupt:
            err.print("Interrupted: the report has what was found so far.")
        report = self.report()
        for path, text in self.files.items():
            write(path, text(report))
        brief = "\n".join(dict.fromkeys(filter(None, (report.advice, report.stale, report.verdict))))
        self.words.print(brief if self.quiet else f"\n{report}")
        if not self.quiet:
            self._show_program(report, order)
        for path in self.files:
            self.words.print(f"Written to {named(path)}")
        return report

    def _show_program(self, report: Report, order: Order) -> None:
        """Print the program that repeats the failure to mend first, and the command that prints another one."""
        repeated = [result for result in report.failures if result.reproducer]
        for result in repeated[:1]:
            self.words.print(f"\nTo repeat {result.id}:\n{_plain(result.reproducer)}")
        for result in repeated[1:2]:
            dtypes = [word for dtype in order.dtypes or () for word in ("--dtype", dtype)]
            drawn = ("--adapter", order.source, *dtypes, "--profile", order.profile, "--seed", report.seed)
            alone = hint("check", *drawn, "--only", result.id)
            self.words.print(
                f"To see all of {result.id}, or of another: {alone}\nTo keep all of each: --html FILE, --json FILE"
            )

    def _watch(self, order: Order, bar: Progress) -> None:
        from polybn.conformance.apart import Begun, examine
        from polybn.conformance.check import fitting

        task, written = bar.add_task(f"importing {order.source}", total=len(self.wanted)), 0.0
        for message in examine(order, self.wanted):
            if isinstance(message, Begun):
                self.begun = message
                if order.everything:
                    self.wanted[:] = fitting(self.wanted, message.info)
            else:
                self.findings.append(message)
                self._tell(message.result)
                if time.monotonic() - written > REWRITE:
                    self._write_drafts()
                    written = time.monotonic()
            done, total = len(self.findings), len(self.wanted)
            bar.update(task, completed=done, total=total, description=self._next(), refresh=True)

    def _next(self) -> str:
        """Return the id and the title of what is being checked now."""
        from polybn.conformance.finding import title_of

        names = self.wanted[len(self.findings) :]
        return f"{names[0]} {title_of(names[0])}" if names else ""

    def report(self) -> Report:
        """Make a report of the findings so far."""
        from polybn.conformance.adapter import Info
        from polybn.conformance.check import Setting, report_of

        info = self.begun.info if self.begun else Info("the adapter", "not made yet")
        seed, useless = (self.begun.seed, self.begun.useless) if self.begun else (0, "")
        setting = Setting(info, self.profile, seed, time.perf_counter() - self.start, self.reasons)
        return report_of(setting, self.findings, useless, () if useless else self.wanted[len(self.findings) :])

    def _tell(self, result: Result) -> None:
        if self.quiet:
            return
        status = "known" if result.status == "fail" and result.id in self.reasons else SHORT[result.status]
        line = f"{status:<6} {result.id:<{8 if len(result.id) <= 8 else 28}} "
        room = WIDTH - len(line)
        title = result.title if len(result.title) <= room else f"{result.title[: room - 3].rstrip()}..."
        self.words.print(line + title, style=STYLES.get(result.status, "dim") if result.status != "pass" else None)

    def _write_drafts(self) -> None:
        """Write all files but HTML pages, whose pictures take too long to draw, and what is printed, once."""
        report = self.report()
        for path, text in self.files.items():
            if path.suffix != ".html" and path != STANDARD_OUTPUT:
                write(path, text(report))


def _plain(text: str) -> str:
    from polybn.conformance.guard import plain

    return plain(text)
