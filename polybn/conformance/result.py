"""What came of one check."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["pass", "fail", "echo", "expected failure", "not certified", "not applicable"]
Cause: TypeAlias = Literal["", "died", "time", "raised", "contract", "unstable", "convention"]


class Result(NamedTuple):
    """What came of one property, one convention, or one grade."""

    id: str
    title: str
    clause: str
    status: Status
    words: str = ""
    """Why it is not a pass."""
    cases: int = 0
    """The number of cases that were judged."""
    vacuous: int = 0
    """The number of cases for which an error bound was too wide to certify anything."""
    share: float = 0.0
    """The largest error as a share of its bound; 0 where all was exact."""
    worst: list[dict[str, object]] = []  # noqa: RUF012
    """The calls with that error, as plain data."""
    reproducer: str = ""
    """A program that repeats the failure."""
    seconds: float = 0.0
    reason: str = ""
    """Why a failure is expected, or which declaration it is an echo of."""
    cause: Cause = ""
    """What kind of failure it is, where that is not a wrong result."""

    @property
    def exact(self) -> bool:
        """Whether it is a property of which ``==`` held in all cases."""
        return self.status == "pass" and not self.share and "-" not in self.id
