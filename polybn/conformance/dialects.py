"""Comparison of declared and detected conventions with the dialects of frameworks."""

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
"""For each field of a declaration that a dialect determines, the fact that determines it."""
ALIKE = 3
"""The largest number of dialects that a sentence names."""


def whole(info: Info) -> Info:
    """Return a declaration in which the dialect's facts replace defaults; values that differ from the default stay."""
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
    """Return the dialects with all detected conventions, best known first; none if too few were detected."""
    seen = {c.name: c.seen for c in conventions if c.name in DECLARED and c.known}
    if not {"momentum", "running_variance"} <= seen.keys():
        return []
    facts = {d.name: {field: _fact(d, field) for field in seen} for d in DIALECTS.values() if _plain(d)}
    fit = [name for name, of in facts.items() if all(of[field] in (value, None) for field, value in seen.items())]
    return sorted(fit, key=lambda name: list(facts[name].values()).count(None))


def advise(conventions: Iterable[Convention]) -> str:
    """Return a sentence that names the fitting dialects, or an empty text."""
    names = fitting(conventions)
    if not names:
        return ""
    others = f" (it is also that of {', '.join(names[1:ALIKE])}{', ...' if names[ALIKE:] else ''})" if names[1:] else ""
    return f"All that was seen is what dialect={names[0]!r} declares{others}"


def _plain(dialect: Dialect) -> bool:
    return dialect.average == "plain" and dialect.stored == "variance" and dialect.running_variance != "unspecified"


def _fact(dialect: Dialect, field: str) -> Any:
    """Return a dialect's fact as a declaration writes it, or None if a declaration cannot express it."""
    fact = getattr(dialect, DECLARED[field])
    return None if fact in ("unknown", "nan") else fact


def _default(info: Info, field: str) -> bool:
    return bool(getattr(info, field) == type(info)._field_defaults[field])
