"""Suggestions for a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType


def near(given: str, names: Iterable[str], also: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return at most three names that may be meant.

    That is the one that differs in case alone, or else those that begin so, or else contain it, or else look alike.

    Parameters
    ----------
    given : str
        What was given.
    names : iterable of str
    also : mapping of str to str, optional
        For some names, another text that may begin so.

    Returns
    -------
    list of str

    Examples
    --------
    >>> near("flax", ["mlx", "flax_linen", "flax_nnx"])
    ['flax_linen', 'flax_nnx']
    >>> near("p1", ["P1", "P10"])
    ['P1']
    """
    known, low = list(names), given.lower()
    if not low:
        return []
    same = [name for name in known if name.lower() == low]
    begin = [name for name in known if name.lower().startswith(low)]
    begin += [name for name in known if name not in begin and also.get(name, "").lower().startswith(low)]
    within = [name for name in known if low in name.lower()]
    return (same or begin or within or difflib.get_close_matches(given, known, 3, 0.5))[:3]


def did_you_mean(names: Iterable[str]) -> str:
    """Return the beginning of a hint, empty without names.

    Examples
    --------
    >>> did_you_mean(["bn1", "bn2"])
    'did you mean bn1 or bn2? '
    """
    found = " or ".join(names)
    return f"did you mean {found}? " if found else ""
