"""A convention: what an adapter declares about it, what was seen, and what to declare."""

from __future__ import annotations

from typing import Any, NamedTuple

UNSEEN = "not seen"
"""What is reported for a convention that could not be detected."""


class Convention(NamedTuple):
    """What an adapter declares about one convention, and what was seen."""

    name: str
    declared: str
    seen: str
    """What was seen: a value that can be declared, or a description of what was found instead."""
    clause: str
    explanation: str
    """A sentence for people: what the convention is about, and what the specification says."""
    specification: str
    """The value that the specification has."""
    advice: str = ""
    """A sentence for the author: what to declare, or that no declaration fits; empty if the declaration is true."""
    correction: tuple[tuple[str, Any], ...] = ()
    """The fields of :class:`~polybn.conformance.Info` that would make the declaration true, with their values."""

    @property
    def ok(self) -> bool:
        """Whether the declaration is true."""
        return not self.advice

    @property
    def known(self) -> bool:
        """Whether the convention could be seen."""
        return self.seen != UNSEEN

    @property
    def differs(self) -> bool:
        """Whether the declaration differs from the specification."""
        return self.declared != self.specification
