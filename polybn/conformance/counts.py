"""Counts that are mistaken for m, the number of values of a channel, and by which factors a variance is then off."""

from __future__ import annotations

import math

from polybn.conformance.adapter import Info
from polybn.conformance.properties import served

M = 15
"""The number of values of a channel of :func:`shape`."""


def shape(info: Info) -> tuple[int, ...]:
    """Return a shape, with the channels second, whose lengths and products tell all counts apart, if its rank does."""
    return served.fitted(deep(info), (5, 4, 3))


def deep(info: Info) -> Info:
    """Return the declaration without rank 2, in which N and m are one, if others are served."""
    return info._replace(ranks=tuple(rank for rank in info.ranks if rank > 2) or info.ranks)


def factors(shape: tuple[int, ...]) -> dict[str, tuple[float, str]]:
    """Return factors of the biased variance that are not its own: in words, as a number, and with a note.

    Examples
    --------
    >>> from polybn.conformance.counts import factors
    >>> factors((5, 4, 3))["N / (N - 1)"]
    (1.25, ', N being the length of the first axis')
    """
    n, c, s, whole = shape[0], shape[1], math.prod(shape[2:]), math.prod(shape)
    m = whole // c
    counts = {
        "N": (n, "the length of the first axis"),
        "C": (c, "the number of channels"),
        "S": (s, "the number of places behind the channels"),
        "n": (whole, "the number of all values"),
    }
    found = {
        f"{letter} / ({letter} - 1)": (count / (count - 1), f", {letter} being {what}")
        for letter, (count, what) in counts.items()
        if count not in (1, m)
    }
    others = {"m / (m - 2)": m / (m - 2), "m / (m + 1)": m / (m + 1), "(m - 1) / m": (m - 1) / m}
    return found | {words: (factor, "") for words, factor in others.items()}
