"""A report as text: for a terminal, a log, or the message of a failing test."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from polybn.conformance.grades import LETTERS
from polybn.conformance.report import Result, Status

if TYPE_CHECKING:
    from polybn.conformance.grades import Grade
    from polybn.conformance.report import Report


def summary(report: Report) -> str:
    """Return a report as text."""
    parts = [
        [f"{report.info.name}, {report.info.version}", _facts(report)],
        _section("Differs from the specification by declaration:", report.deviations),
        _section("Accuracy:", [grade_line(grade) for grade in report.grades]),
        _section("Not certified, and no pass:", [_line(r) for r in _of(report, "not certified")]),
        _section("Not applicable:", [_line(r) for r in _of(report, "not applicable")]),
        _section("Expected failures:", [f"{r.id}: {r.reason}" for r in _of(report, "expected failure")]),
        _section("Failures:", failures(report)),
        _section("Errors in the file of expected failures:", report.errors),
        [verdict(report)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def verdict(report: Report) -> str:
    """Return the last line of a report."""
    statuses: tuple[Status, ...] = ("pass", "fail", "expected failure", "not certified", "not applicable")
    counts = ", ".join(f"{n} {status}" for status in statuses if (n := report.count(status)))
    stale = f", {len(report.errors)} stale" if report.errors else ""
    outcome = "conforms to the specification" if report.ok else "does not conform to the specification"
    if report.ok and report.deviations:
        outcome = "conforms to the specification, but for what it declares"
    if report.ok and report.count("expected failure"):
        outcome += " and the expected failures"
    return f"{report.info.name} {outcome}: {counts}{stale}."


def grade_line(grade: Grade) -> str:
    """Return what a grade says, in a line."""
    worst = max((r for row in grade.rows if (r := row.ratio.get(grade.letter)) is not None), default=None)
    used = "" if worst is None else f"; largest error {worst:.2g} of its bound"
    return f"{grade.dtype}: class {grade.letter} ({LETTERS[grade.letter]}{used})"


def failures(report: Report) -> list[str]:
    """Return a paragraph for each thing that went wrong, those that went wrong in the same way together."""
    groups = dict[str, list[Result]]()
    for result in report.failures:
        groups.setdefault(result.words, []).append(result)
    return [
        f"{', '.join(r.id for r in results)}: {results[0].title + ' ' if len(results) == 1 else ''}{words}"
        for words, results in groups.items()
    ]


def _facts(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"profile {report.profile}, seed {report.seed}, {report.seconds:.1f} s; {versions}"


def _of(report: Report, status: str) -> list[Result]:
    return [result for result in report.results if result.status == status]


def _line(result: Result) -> str:
    return f"{result.id}: {result.words}"


def _section(title: str, lines: list[str] | tuple[str, ...]) -> list[str]:
    wrapped = [textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return [title, *wrapped] if lines else []
