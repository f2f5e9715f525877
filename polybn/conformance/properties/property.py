"""A property: a title, the clauses that it follows from, cases, and a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from polybn.conformance.adapter import Adapter, Info

Need: TypeAlias = Literal["batch", "infer", "vjp", "infer_vjp", "axes", "running"]
WITHOUT_BATCH = {
    *("P2", "P2b", "P4", "P13", "P17", "P18", "P21", "P33", "P34", "P36", "P37", "P37b", "P38d", "P40", "P42", "P43"),
    *("G3", "G4"),
}
"""Properties that hold whichever statistics training normalizes by."""
UNTRACKED = "the adapter declares that it keeps no running statistics"


class Property(NamedTuple):
    """Something that is true of every batch norm that meets the specification."""

    id: str
    """The name that ``only`` and the file of expected failures use, such as ``"P7"``."""
    title: str
    """One sentence for the author of a batch norm."""
    clause: str
    """The clauses of :mod:`polybn.spec` that the property follows from."""
    check: Callable[[Adapter, Info, Any], float]
    """A function that checks one case and returns the largest error as a share of its bound, 0 where ``==`` held.

    It raises :class:`~polybn.conformance.runner.Violation` otherwise, or VacuousBoundError if nothing is certified.
    """
    cases: Callable[[Info], SearchStrategy[Any] | Sequence[Any]]
    """A strategy to draw cases from, or all the cases there are."""
    needs: tuple[Need, ...] = ()
    """What an adapter must declare for the property to apply."""
    applies: Callable[[Info], str | None] = lambda info: None  # noqa: ARG005
    """A function that returns why the property does not apply, for reasons that ``needs`` cannot name."""
    context: str = ""
    """What is called, where a failure's own words do not say it: ``"In inference"``."""
    slow: bool = False
    """Whether the check takes seconds and hundreds of megabytes; the profile dev leaves it out."""

    then: Callable[[Info], Sequence[Any]] = lambda info: ()  # noqa: ARG005
    """Cases to try, too, where all that were drawn hold: sizes that draws do not meet."""

    def why_not(self, info: Info) -> str | None:
        """Return why the property does not apply to what an adapter declares, or None."""
        by_running = "the adapter declares that training normalizes by the running statistics"
        reasons = {
            "batch": by_running if info.trains_by == "running" else None,
            "infer_vjp": None if info.differentiates_inference else "the adapter declares that it has no infer_vjp",
            "infer": None if info.infers else "the adapter declares that it has no infer",
            "vjp": None if info.differentiates else "the adapter declares that it has no vjp",
            "axes": None
            if info.axes == "any"
            else f"the adapter declares that the channel axis is always the {info.axes}",
            "running": None if info.tracks else UNTRACKED,
        }
        needs = self.needs if self.id in WITHOUT_BATCH else ("batch", *self.needs)
        return next((why for need in needs if (why := reasons.get(need))), None) or self.applies(info)
