"""Join words as sentences do."""

from __future__ import annotations

from collections.abc import Sequence


def listed(words: Sequence[str]) -> str:
    """List words with commas, and "and" before the last.

    Examples
    --------
    >>> listed(["y", "dx", "dgamma"])
    'y, dx and dgamma'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
