"""Layers with some arrays of a batch norm, of which others are missing, misspelt or of another shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from polybn.dialects import DIALECTS, Dialect
from polybn.dialects.record import SCALARS, Role
from polybn.model_files.model import LeftOut
from polybn.model_files.names import ORDER, Shapes, by_plain_name, statistics
from polybn.near import near

_OWN = frozenset(own for dialect in DIALECTS.values() for own in dialect.names.values())
_AFFINE: tuple[Role, ...] = ("gamma", "beta")
_BREAK = re.compile(r"[./_:]")
MOST_PARTS = 5
"""The most parts of an array's own name, such as ``ema_first_time_index``, and one more."""
MOST_STRANGERS = 64
"""The most other names of a layer among which a misspelt one is looked for; no batch norm has as many arrays."""


class _Fit(NamedTuple):
    """What a layer has of a dialect's batch norm."""

    has: dict[str, tuple[int, ...]]
    lacks: list[str]
    meant: dict[str, str]
    """Names that look alike, by those that are not there."""

    @property
    def worth(self) -> tuple[int, int]:
        """How well the dialect fits, to be compared."""
        return 2 * len(self.has) + len(self.meant), -len(self.lacks)


def incomplete(shapes: Shapes, known: Collection[str], first: tuple[str, ...] = ()) -> Iterator[LeftOut]:
    """Yield layers whose arrays show that they are batch norms, though not whole, or not under these names.

    A layer that is ``known`` may still have a gamma or beta under a name that is not read.
    """
    dialects = [DIALECTS[name] for name in dict.fromkeys((*first, *ORDER))]
    said = set[str]()
    for stem, members in _members(shapes).items():
        layer = stem.rstrip("./_:")
        fits = [fit for dialect in dialects if (fit := _fit(members, dialect)) is not None]
        if layer not in said and fits:
            said.add(layer)
            best = max(fits, key=lambda fit: fit.worth)
            yield from _misnamed(layer, best) if layer in known or not best.lacks else _explained(layer, best)


def _members(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of arrays by their own names, for each beginning that has a known name after it."""
    plain = by_plain_name(shapes)
    found = {name[:cut]: dict[str, tuple[int, ...]]() for name in plain for cut in _cuts(name) if name[cut:] in _OWN}
    for name, whole in plain.items():
        for cut in _cuts(name):
            if name[:cut] in found:
                found[name[:cut]][name[cut:]] = tuple(size for size in shapes[whole] if size != 1)
    return found


def _cuts(name: str) -> list[int]:
    """Return where the array's own name may begin."""
    return [0, *(match.end() for match in _BREAK.finditer(name))][-MOST_PARTS:]


def _fit(members: Mapping[str, tuple[int, ...]], dialect: Dialect) -> _Fit | None:
    """Return what a layer has of a dialect's batch norm; None if that may as well be another layer's."""
    names = dialect.names
    has = {own: members[own] for own in names.values() if own in members}
    lacks = [own for role, own in names.items() if role not in dialect.may_lack and own not in has]
    affine = [has.get(names[role]) for role in _AFFINE if role in names]
    paired = len(affine) == 2 and affine[0] is not None and affine[0] == affine[1] and len(affine[0]) < 2
    # A word for a mean alone may be anything's, unlike one for a running mean.
    telling = any(own in has and own not in ("mean", "var") for own in statistics(dialect))
    if not paired and not telling:
        return None
    meant = _meant(members, dialect, lacks)
    shown = telling or any(own in has or own in meant for own in statistics(dialect))
    return _Fit(has, lacks, meant) if shown else None


def _meant(members: Mapping[str, tuple[int, ...]], dialect: Dialect, lacks: list[str]) -> dict[str, str]:
    """Return the members that may be meant by the names that a layer lacks, and by those of gamma and beta."""
    names = dialect.names
    strangers = [own for own in members if own not in names.values() and len(members[own]) < 2 and "/" not in own]
    strangers = [own for own in strangers if "." not in own][:MOST_STRANGERS]
    vectors, meant = {members[own] for own in names.values() if own in members}, dict[str, str]()
    for role, own in names.items():
        if own in lacks or (role in _SYNONYMS and own not in members):
            left = [other for other in strangers if other not in meant.values()]
            left = [other for other in left if own in lacks or members[other] in vectors]
            alike = [other for other in left if own.endswith(other) or other in _SYNONYMS.get(role, ())]
            meant.update(zip((own,), alike or near(own, left), strict=False))
    return meant


def _misnamed(layer: str, fit: _Fit) -> Iterator[LeftOut]:
    """Say which arrays of a layer, itself complete, are not read, or that it is not of one shape."""
    by_shape = dict[tuple[int, ...], list[str]]()
    for own, shape in fit.has.items():
        if own not in _SCALARS:
            by_shape.setdefault(shape, []).append(own)
    if len(by_shape) > 1:
        words = "; ".join(f"{_and(own)} {list(shape)}" for shape, own in by_shape.items())
        yield LeftOut(layer, f"its arrays must be of one shape; got {words}", "arrays differ in shape", "warning")
    elif fit.meant:
        why = f"{_and(list(fit.meant.values()))}, which may be meant for {_and(list(fit.meant))}: {_rename(fit)}"
        yield LeftOut(layer, why, "an array may be misnamed", "warning")


def _explained(layer: str, fit: _Fit) -> Iterator[LeftOut]:
    what = "an array is missing" if len(fit.lacks) == 1 else "arrays are missing"
    then = f"if it is a batch norm, {_rename(fit)}" if fit.meant else "save all arrays of the model"
    why = f"it has {_and(list(fit.has))}, but no {' and no '.join(fit.lacks)}; {then}"
    yield LeftOut(layer, why, what, "warning")


def _rename(fit: _Fit) -> str:
    return f"rename {_and([f'{other} to {own}' for own, other in fit.meant.items()])} in the file"


_SCALARS = {dialect.names[role] for dialect in DIALECTS.values() for role in SCALARS if role in dialect.names}
_SYNONYMS: Mapping[Role, set[str]] = {
    role: {dialect.names[role] for dialect in DIALECTS.values() if role in dialect.names} for role in _AFFINE
}


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
