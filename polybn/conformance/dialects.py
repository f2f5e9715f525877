"""Comparison of declared and detected conventions with the dialects of frameworks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polybn.conformance.adapter import Info
from polybn.dialects import DIALECTS, Dialect, find
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.convention import Convention

DECLARED = {
    "momentum": "momentum_weighs",
    "running_variance": "running_variance",
    "single_value": "single_value",
    "empty": "empty",
    "trains_by": "normalizes_by",
}
"""For each field of a declaration that a dialect determines, the fact that determines it."""
TRAITS = {"flushes": "flushes_subnormals"}
"""For each field of a declaration that a backend can make, too, the field of its :class:`polybn.spec.Traits`."""
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
    return info._replace(**{field: fact for field, fact in said.items() if getattr(info, field) == _default(field)})


def fitting(conventions: Iterable[Convention]) -> list[str]:
    """Return the dialects with all detected conventions, best known first; none if too few were detected."""
    seen = {c.name: c.seen for c in conventions if c.name in DECLARED and c.known}
    if not {"momentum", "running_variance"} <= seen.keys():
        return []
    fit = [d for d in DIALECTS.values() if _plain(d) and all(_fits(d, field, value) for field, value in seen.items())]
    return [d.name for d in sorted(fit, key=lambda d: [_fact(d, field) for field in seen].count(None))]


def declare(info: Info, fields: Mapping[str, Any]) -> str:
    """Return what an author should write to declare values; a default cannot be declared beside any dialect."""
    if info.of_backend:
        return f"declare {_words({TRAITS[field]: value for field, value in fields.items()})} in the backend's traits"
    overruled = any(_is_overruled(info, field, value) for field, value in fields.items())
    return f"declare {_words(fields)}{f', without dialect={info.dialect!r}' if overruled else ''}"


def advise(conventions: Sequence[Convention], info: Info) -> str:
    """Return a sentence about the dialect to declare, if one of its facts is declared wrongly.

    It is empty if single declarations are all that is needed: the declared dialect is right, or none fits.
    """
    about = [c for c in conventions if c.name in DECLARED]
    names = fitting(about)
    if info.dialect in names or not any(c.correction for c in about):
        return ""
    declarable = {c.name: c.seen for c in about if c.known and (c.ok or c.correction)}
    if names:
        what = "All that was seen" if all(c.ok or c.correction for c in about) else "The rest of what was seen"
        unsaid = {f: v for f, v in declarable.items() if _fact(DIALECTS[names[0]], f) is None and v != _default(f)}
        place = f"; it takes the place of dialect={info.dialect!r}" if info.dialect else ""
        return f"{what} is what {_words({'dialect': names[0]} | unsaid)} declares{_others(names[1:])}{place}"
    if any(_is_overruled(info, field, value) for field, value in declarable.items()):
        alone = {field: value for field, value in declarable.items() if value != _default(field)}
        return f"No dialect has all that: declare {_words(alone)} in place of dialect={info.dialect!r}"
    return ""


def _others(names: list[str]) -> str:
    few = [*names[: ALIKE - 1], *(["..."] if names[ALIKE - 1 :] else [])]
    return f" (it is also that of {', '.join(few)})" if few else ""


def _words(fields: Mapping[str, Any]) -> str:
    return " and ".join(f"{field}={value!r}" for field, value in fields.items())


def _is_overruled(info: Info, field: str, value: Any) -> bool:
    """Return whether the declared dialect says something else about a field, and would replace the default."""
    if not info.dialect or field not in DECLARED or value != _default(field):
        return False
    return _fact(DIALECTS[info.dialect], field) not in (None, value)


def _plain(dialect: Dialect) -> bool:
    return dialect.average == "plain" and dialect.stored == "variance" and dialect.running_variance != "unspecified"


def _fact(dialect: Dialect, field: str) -> Any:
    """Return a dialect's fact as a declaration writes it, or None if a declaration cannot express it."""
    fact = getattr(dialect, DECLARED[field])
    return None if fact in ("unknown", "nan") else fact


def _fits(dialect: Dialect, field: str, seen: str) -> bool:
    """Return whether a dialect does what was seen, for all that is known of it; ``"nan in running_var"`` is NaN."""
    fact = getattr(dialect, DECLARED[field])
    return fact in ("unknown", seen) or (fact == "nan" and seen.startswith("nan"))


def _default(field: str) -> Any:
    return Info._field_defaults[field]
