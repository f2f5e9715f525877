"""What a check found, as data, as text, as JSON and as one HTML file."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import hypothesis
import numpy as np

import polybn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polybn.conformance.adapter import Info
    from polybn.conformance.conventions import Convention
    from polybn.conformance.grades import Grade

FORMAT = 1
"""Of the JSON; it grows when a field changes its meaning."""

Status: TypeAlias = Literal["pass", "fail", "expected failure", "not certified", "not applicable"]


class Result(NamedTuple):
    """What came of one property, one convention, or one grade."""

    id: str
    title: str
    clause: str
    status: Status
    words: str = ""
    """Why it is not a pass."""
    cases: int = 0
    """How many were judged."""
    vacuous: int = 0
    """For how many of them an error bound was too wide to certify anything."""
    share: float = 0.0
    """Largest error, as a share of its bound; 0 where all was exact."""
    worst: list[dict[str, object]] = []  # noqa: RUF012
    """The calls with that error, as plain data."""
    reproducer: str = ""
    """A program that repeats the failure."""
    seconds: float = 0.0
    reason: str = ""
    """Why a failure is expected."""

    @property
    def exact(self) -> bool:
        """Whether it is a property of which ``==`` held in all cases."""
        return self.status == "pass" and not self.share and "-" not in self.id


@dataclass(frozen=True)
class Report:
    """What :func:`polybn.conformance.check` found.

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
    """With the profile, it repeats the check."""
    seconds: float
    versions: Mapping[str, str]
    conventions: tuple[Convention, ...]
    results: tuple[Result, ...]
    """Of conventions, properties, the stateful test and grades, in this order."""
    grades: tuple[Grade, ...]
    errors: tuple[str, ...]
    """Of the file of expected failures."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed that was not expected to, and no expectation is stale."""
        return not self.failures and not self.errors

    @property
    def failures(self) -> tuple[Result, ...]:
        """What failed unexpectedly."""
        return tuple(result for result in self.results if result.status == "fail")

    @property
    def deviations(self) -> tuple[str, ...]:
        """How the adapter, as it declares, differs from the specification; one sentence each."""
        return tuple(
            f"{c.name} is {c.declared!r} where the specification has {c.specification!r}: {c.explanation} ({c.clause})"
            for c in self.conventions
            if c.differs
        )

    def count(self, status: Status) -> int:
        """Count results of a status."""
        return sum(result.status == status for result in self.results)

    def to_json(self) -> str:
        """Return everything as JSON; numbers that are not finite are strings."""
        data = {
            "format": FORMAT,
            "ok": self.ok,
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
        }
        return json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """Return one HTML page that needs nothing else: pictures are in it.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        from polybn.conformance.html import page

        return page(self)

    def __str__(self) -> str:
        """Return the summary as text."""
        from polybn.conformance.text import summary

        return summary(self)


def versions() -> dict[str, str]:
    """Return what results depend on, beside the library under test."""
    return {
        "polybn": polybn.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "hypothesis": hypothesis.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


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
