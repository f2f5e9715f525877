"""Declarations and what was seen, against the dialects of frameworks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from polybn.dialects import DIALECTS, Dialect, find
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info
    from polybn.conformance.conventions import Convention

DECLARED = {
    "momentum": "momentum_weighs",
    "running_variance": "running_variance",
    "single_value": "single_value",
    "empty": "empty",
    "trains_by": "normalizes_by",
}
"""The fields of a declaration that a dialect says, and the facts that say them."""
ALIKE = 3
"""The most dialects that a sentence names."""


def whole(info: Info) -> Info:
    """Return a declaration with what its dialect says in the place of defaults; what it says itself stays."""
    if not info.dialect:
        return info
    dialect = find(info.dialect, function="conformance.Info")
    if not _plain(dialect):
        raise DomainError(
            f"polybn.conformance.Info: dialect must be one whose state is a plain average of variances; got "
            f"{info.dialect!r} (the kit hands over a running mean and a running variance, and asks for new ones)"
        )
    said = {field: fact for field in DECLARED if (fact := _fact(dialect, field)) is not None}
    return info._replace(**{field: fact for field, fact in said.items() if _default(info, field)})


def fitting(conventions: Iterable[Convention]) -> list[str]:
    """Return the dialects that have all conventions that were seen, best known first; none if too little was seen."""
    seen = {c.name: c.seen for c in conventions if c.name in DECLARED and c.known}
    if not {"momentum", "running_variance"} <= seen.keys():
        return []
    facts = {d.name: {field: _fact(d, field) for field in seen} for d in DIALECTS.values() if _plain(d)}
    fit = [name for name, of in facts.items() if all(of[field] in (value, None) for field, value in seen.items())]
    return sorted(fit, key=lambda name: list(facts[name].values()).count(None))


def advise(conventions: Iterable[Convention]) -> str:
    """Return the sentence that names the dialects that fit, or nothing where none does."""
    names = fitting(conventions)
    if not names:
        return ""
    others = f" (it is also that of {', '.join(names[1:ALIKE])}{', ...' if names[ALIKE:] else ''})" if names[1:] else ""
    return f"All that was seen is what dialect={names[0]!r} declares{others}"


def _plain(dialect: Dialect) -> bool:
    return dialect.average == "plain" and dialect.stored == "variance" and dialect.running_variance != "unspecified"


def _fact(dialect: Dialect, field: str) -> Any:
    """Return what a dialect says in a declaration's words; None where a declaration has no word for it."""
    fact = getattr(dialect, DECLARED[field])
    return None if fact in ("unknown", "nan") else fact


def _default(info: Info, field: str) -> bool:
    return bool(getattr(info, field) == type(info)._field_defaults[field])
