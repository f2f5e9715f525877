"""The results of a check, as data, as JSON, and as text for a terminal, a log, or the message of a failing test."""

from __future__ import annotations

import json
import math
import platform
import textwrap
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np

from polybn.conformance import advice, dialects
from polybn.conformance.grades import LETTERS
from polybn.conformance.guard import plain
from polybn.conformance.result import Result, Status
from polybn.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from polybn.conformance.adapter import Info
    from polybn.conformance.convention import Convention
    from polybn.conformance.grades import Grade

FORMAT = 1
"""The version of the JSON; it is increased when a field changes its meaning."""
WIDTH = 80
"""The width of the text in columns."""
FEW = 2
"""The most lines that the text gives a failure after the first, which often has the same cause."""


@dataclass(frozen=True)
class Report:
    """The result of :func:`polybn.conformance.check`; ``print(report)`` begins with what its author needs first.

    Examples
    --------
    >>> from polybn import conformance
    >>> report = conformance.check(conformance.resolve("polybn-numpy"), only=["P16", "P40"])
    >>> report.ok, [result.status for result in report.results]
    (True, ['pass', 'pass'])
    """

    info: Info
    profile: str
    seed: int
    """The seed; together with the profile it repeats the check."""
    seconds: float
    versions: Mapping[str, str]
    conventions: tuple[Convention, ...]
    results: tuple[Result, ...]
    """The results of conventions, properties, the stateful test and grades, in this order."""
    grades: tuple[Grade, ...]
    errors: tuple[str, ...]
    """Errors of the check itself: nothing could be checked, or an expected failure is stale."""
    notes: tuple[str, ...] = ()
    """Remarks that are no failures."""
    missing: tuple[str, ...] = ()
    """The ids that were not checked, because the check was interrupted."""
    unasked: int = 0
    """The number of checks that nobody asked for."""

    @property
    def ok(self) -> bool:
        """Whether all was checked, no check failed unexpectedly, no expectation is stale, and something is shown."""
        return not (self.failures or self.count("echo") or self.errors or self.missing or self._shows_nothing)

    @property
    def _shows_nothing(self) -> bool:
        """Whether there is no proof of anything: results that no bound can certify, and none that passed."""
        return bool(self.count("not certified")) and not self.count("pass")

    @property
    def failures(self) -> tuple[Result, ...]:
        """The checks that failed unexpectedly, the first to mend first, without echoes of a wrong declaration."""
        return tuple(advice.in_order(self._of("fail")))

    @property
    def deviations(self) -> tuple[str, ...]:
        """One sentence for each declared convention that differs from the specification."""
        return tuple(
            f"{c.name} is {c.declared!r} where the specification has {c.specification!r}: {c.explanation} ({c.clause})"
            for c in self.conventions
            if c.differs
        )

    @property
    def advice(self) -> str:
        """The one sentence that the author of the batch norm needs first."""
        if self.errors and not self.results:
            return self.errors[0]
        wrong = [c.advice for c in self.conventions if not c.ok]
        wrong += [sentence] if (sentence := dialects.advise(self.conventions, self.info)) else []
        declarable = all(c.correction for c in self.conventions if not c.ok)
        return advice.first(self.results, self.info, wrong, declarable=declarable) or self.stale or self.verdict

    @property
    def stale(self) -> str:
        """Sentences about expected failures that did not fail."""
        return " ".join(f"{error}." for error in self.errors) if self.results else ""

    @property
    def verdict(self) -> str:
        """One sentence: whether the batch norm conforms, and how many checks had each result."""
        statuses = ("pass", "fail", "echo", "expected failure", "not certified", "not applicable")
        counts = [f"{n} {status}" for status in statuses if (n := self.count(status))]
        counts += [f"{len(self.errors)} stale"] * bool(self.stale)
        counts += [f"{len(self.missing)} not reached"] * bool(self.missing)
        conforms = self.ok or (bool(self.stale) and not (self.failures or self.count("echo") or self.missing))
        outcome = "conforms to the specification" if conforms else "does not conform to the specification"
        if self._shows_nothing and not (self.failures or self.count("echo") or self.missing):
            outcome = "is not shown to conform to the specification"
        if conforms and self.deviations:
            outcome = "conforms to the specification, except for what it declares"
        if conforms and self.count("expected failure"):
            outcome += " and the expected failures"
        if conforms and self.stale:
            one = len(self.errors) == 1
            outcome += f", but {'an expectation is' if one else f'{len(self.errors)} expectations are'} stale"
        if self.ok and self.unasked:
            outcome += f", as far as was asked ({self.unasked} more checks are there)"
        return f"{self.info.name} {outcome}: {', '.join(counts) or 'nothing was checked'}."

    def count(self, status: str) -> int:
        """Count results of a status.

        Parameters
        ----------
        status : str
            A status, such as ``"pass"``.

        Returns
        -------
        int
        """
        return sum(result.status == status for result in self.results)

    def to_json(self) -> str:
        """Return everything as JSON; numbers that are not finite are strings.

        Returns
        -------
        str
        """
        data = {
            "format": FORMAT,
            "ok": self.ok,
            "advice": self.advice,
            "date": date.today().isoformat(),
            "adapter": self.info._asdict(),
            "profile": self.profile,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "versions": dict(self.versions),
            "deviations": self.deviations,
            "conventions": [c._asdict() | {"ok": c.ok, "differs": c.differs} for c in self.conventions],
            "results": [result._asdict() for result in self.results],
            "grades": [_grade(grade) for grade in self.grades],
            "errors": self.errors,
            "notes": self.notes,
            "missing": self.missing,
        }
        return json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        """Return the report as text, 80 columns wide, the most important first."""
        return plain("\n\n".join(filter(None, self._parts())))

    def _parts(self) -> Iterable[str]:
        if self.advice != self.verdict:
            yield _fill(self.advice)
        # What a declaration that is wrong says is said above; the first failure beside it is the one to mend.
        declared = sum(result.cause == "convention" for result in self.failures)
        yield _section("Failures:", failures(self), FEW, {0, declared})
        yield _section("Echoes, which go away with true declarations:", _echoes(self))
        told = self.advice == self.stale or (len(self.errors) == 1 and self.advice in self.errors)
        yield _section("Errors:", () if told else self.errors)
        yield _section(
            "Not reached, because the check was interrupted:", [", ".join(self.missing)] if self.missing else []
        )
        yield _section("Accuracy:", [grade_line(grade) for grade in self.grades])
        yield _section("Not certified, and no pass:", [_line(r) for r in self._of("not certified")])
        yield _section("Not applicable:", [_line(r) for r in self._of("not applicable")])
        yield _section("Expected failures:", [f"{r.id}: {r.reason}" for r in self._of("expected failure")])
        yield _section("Differs from the specification by declaration:", self.deviations)
        yield _section("Notes:", self.notes)
        yield f"{_fill(f'{self.info.name}, {self.info.version}')}\n{_fill(facts(self))}"
        yield _fill(self.verdict)

    def _of(self, status: Status) -> list[Result]:
        return [result for result in self.results if result.status == status]


def grade_line(grade: Grade) -> str:
    """Return a line about a grade."""
    worst = max((r for row in grade.rows if (r := row.ratio.get(grade.letter)) is not None), default=None)
    used = "" if worst is None else f"; largest error {worst:.2g} of its bound"
    return f"{grade.dtype}: class {grade.letter} ({LETTERS[grade.letter]}{used})"


def failures(report: Report) -> list[str]:
    """Return a paragraph for each failure; results that failed in the same way share one."""
    groups = dict[str, list[Result]]()
    for result in report.failures:
        groups.setdefault(result.words, []).append(result)
    return [
        f"{', '.join(r.id for r in results)}: {results[0].title + ' ' if len(results) == 1 else ''}{words}"
        for words, results in groups.items()
    ]


def facts(report: Report) -> str:
    """Return a line about how the check was made, and with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"profile {report.profile}, seed {report.seed}, {report.seconds:.1f} s; {versions}"


def versions() -> dict[str, str]:
    """Return the versions that results depend on, besides the library under test."""
    return {
        "polybn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "hypothesis": hypothesis.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def _echoes(report: Report) -> list[str]:
    groups = dict[str, list[str]]()
    for result in report.results:
        if result.status == "echo":
            groups.setdefault(result.reason, []).append(result.id)
    return [f"{reason}: {', '.join(ids)}" for reason, ids in groups.items()]


def _line(result: Result) -> str:
    return f"{result.id}: {result.words}"


def _fill(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _section(title: str, lines: Iterable[str], most: int | None = None, whole: Collection[int] = ()) -> str:
    """Wrap lines below a title; ``most`` is how many lines of text each may take, but those in ``whole``."""
    form: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}
    wrapped = [
        textwrap.fill(line, WIDTH, max_lines=None if number in whole else most, placeholder=" ...", **form)
        for number, line in enumerate(lines)
    ]
    return "\n".join([title, *wrapped]) if wrapped else ""


def _grade(grade: Grade) -> dict[str, Any]:
    rows = [{name: value for name, value in row._asdict().items() if name != "case"} for row in grade.rows]
    return {"dtype": grade.dtype, "letter": grade.letter, "rows": rows}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
