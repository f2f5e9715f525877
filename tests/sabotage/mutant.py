"""What a mutant is: the reference with one fault."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.sabotage.reference import Reference


class Mutant(NamedTuple):
    """A fault that the kit must find."""

    id: str
    sentence: str
    bug: str
    """The class of bugs it belongs to."""
    upstream: str
    """Reports of this fault, ``owner#number``; empty where none is known."""
    steps: dict[str, Any]
    """The steps of the reference that it replaces."""
    crashes: bool = False
    """Whether raising is the fault; any other mutant must be caught by what it returns."""

    def make(self) -> Reference:
        """Return a fresh adapter: some faults remember."""
        adapter: Reference = type(self.id, (Reference,), dict(self.steps))()
        return adapter


def mutant(id: str, sentence: str, bug: str, upstream: str = "", /, *, crashes: bool = False, **steps: Any) -> Mutant:
    """Write a row of a table."""
    return Mutant(id, sentence, bug, upstream, steps, crashes)
