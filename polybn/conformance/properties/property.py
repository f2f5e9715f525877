"""What a property is: a title, the clauses it follows from, cases, and a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from polybn.conformance.adapter import Adapter, Info

Need: TypeAlias = Literal["infer", "vjp", "axes", "running"]
UNTRACKED = "the adapter declares that it keeps no running statistics"


class Property(NamedTuple):
    """Something that is true of every batch norm that keeps to the specification."""

    id: str
    """Such as ``"P7"``: what ``only`` and the file of expected failures name."""
    title: str
    """One sentence for the author of a batch norm."""
    clause: str
    """The clauses of :mod:`polybn.spec` that it follows from."""
    check: Callable[[Adapter, Info, Any], float]
    """Check one case: return the share of the error bound that was used, 0 where ``==`` held.

    Raises :class:`~polybn.conformance.runner.Violation` otherwise, and VacuousBoundError where nothing is certified.
    """
    cases: Callable[[Info], SearchStrategy[Any] | Sequence[Any]]
    """A strategy to draw cases from, or all the cases there are."""
    needs: tuple[Need, ...] = ()
    """Without which it does not apply."""
    applies: Callable[[Info], str | None] = lambda info: None  # noqa: ARG005
    """Return why it does not apply, for reasons that ``needs`` has no word for."""
    slow: bool = False
    """Whether it takes seconds and hundreds of megabytes; the profile dev leaves it out."""

    def why_not(self, info: Info) -> str | None:
        """Return why the property does not apply to what an adapter declares, or None."""
        reasons = {
            "infer": None if info.infers else "the adapter declares that it has no infer",
            "vjp": None if info.differentiates else "the adapter declares that it has no vjp",
            "axes": None if info.axes == "any" else "the adapter declares that the channel axis is always the second",
            "running": None if info.tracks else UNTRACKED,
        }
        return next((why for need in self.needs if (why := reasons.get(need))), None) or self.applies(info)
