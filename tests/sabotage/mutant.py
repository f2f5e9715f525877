"""Mutants: the reference with one fault each."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.sabotage.reference import Reference


class Mutant(NamedTuple):
    """A fault that the kit must find."""

    id: str
    sentence: str
    bug: str
    """The class of bugs that the fault belongs to."""
    upstream: str
    """Public reports of this fault, ``owner#number``; empty if none is known."""
    steps: dict[str, Any]
    """The replacements for steps of the reference."""
    crashes: bool = False
    """Whether the fault is an exception; other mutants must be caught by their results."""

    def make(self) -> Reference:
        """Return a new adapter, because some faults have state."""
        adapter: Reference = type(self.id, (Reference,), dict(self.steps))()
        return adapter


def mutant(id: str, sentence: str, bug: str, upstream: str = "", /, *, crashes: bool = False, **steps: Any) -> Mutant:
    """Write a row of a table."""
    return Mutant(id, sentence, bug, upstream, steps, crashes)
