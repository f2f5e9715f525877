"""A note in files of PolyBN, which says what their formats have no place for: momentum and eps of each batch norm."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from polybn.dialects import DIALECTS
from polybn.dialects.find import find
from polybn.dialects.options import convert_given
from polybn.spec import DomainError, DTypeError

if TYPE_CHECKING:
    from polybn.model_files.model import Norm

NAME = "polybn"
"""The key of the note beside a file's tensors."""
MOST = 2**20
"""The longest note that is read, in characters."""


def content(dialect: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the note's part on batch norms: the options of each layer, in a dialect's words."""
    return {"dialect": dialect, "batch_norms": {layer: dict(own) for layer, own in options.items() if own}}


def write(norms: list[Norm]) -> dict[str, str]:
    """Return the note for batch norms of one dialect, under its key."""
    if not norms:
        return {}
    return {NAME: json.dumps(content(norms[0].dialect, {norm.name: norm.options for norm in norms}))}


def with_options(norms: Iterable[Norm], texts: Mapping[str, str]) -> list[Norm]:
    """Give batch norms the momentum and eps that the note among a file's texts has for them."""
    told = _read(texts.get(NAME, ""))
    given = told.get("batch_norms", {})
    return [
        norm._replace(options=_options(given[name], told["dialect"], norm.dialect))
        if (name := norm.name.removeprefix("state_dict.")) in given
        else norm
        for norm in norms
    ]


def dialect(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the dialect that the note among a file's texts says, if it says one that is known."""
    told = f"{_read(texts.get(NAME, '')).get('dialect')}"
    return (told,) if told in DIALECTS else ()


def _read(text: str) -> dict[str, Any]:
    """Return the note; an empty one if the text is anybody else's, or damaged."""
    try:
        found = json.loads(text) if len(text) <= MOST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("batch_norms"), dict):
        return {}
    return found if isinstance(found.get("dialect"), str) else {}


def _options(given: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    there = DIALECTS[target]
    try:
        return convert_given(given, find(source), there).options
    except (DTypeError, DomainError):  # a damaged note says nothing
        return {}
