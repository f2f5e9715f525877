"""The result of one check."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["pass", "fail", "echo", "expected failure", "not certified", "not applicable"]
Cause: TypeAlias = Literal["", "died", "time", "raised", "contract", "unstable", "convention", "bits"]


class Result(NamedTuple):
    """The result of one property, one convention, or one grade."""

    id: str
    title: str
    clause: str
    status: Status
    words: str = ""
    """Why the result is not a pass."""
    cases: int = 0
    """The number of cases that were judged."""
    vacuous: int = 0
    """The number of cases for which an error bound was too wide to certify anything."""
    share: float = 0.0
    """The largest error as a share of its bound; 0 where all was exact."""
    worst: list[dict[str, object]] = []  # noqa: RUF012
    """The calls with the largest error, as plain data."""
    reproducer: str = ""
    """Text of a Python program that repeats the failure."""
    seconds: float = 0.0
    reason: str = ""
    """Why a failure is expected, or the declaration that would make an echo disappear."""
    cause: Cause = ""
    """The kind of failure; empty for a wrong result, "bits" if it is wrong by no more than some roundings."""

    @property
    def exact(self) -> bool:
        """Whether this is a property for which ``==`` held in all cases."""
        return self.status == "pass" and not self.share and "-" not in self.id
