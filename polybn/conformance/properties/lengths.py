"""At which lengths a result is wrong: kernels that forget the rest after the last vector err at some only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from polybn.conformance.counts import deep
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.properties import served
from polybn.conformance.runner import CallError, Violation

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

    Check: TypeAlias = Callable[[Adapter, Info, Any], float]

LENGTHS = (4, 5, 8, 9, 15, 16, 32, 35, 64, 65)
"""Multiples of 4, and numbers that are none; lattice calls have exact answers for all of them."""
BATCHES = {
    1: (4, 5, 16), 2: (4, 8), 3: (4, 5), 4: (1, 4, 8), 5: (1, 3, 4), 7: (4, 5), 8: (1, 4), 9: (1, 4, 5), 13: (4, 5),
    15: (1, 3, 4), 16: (1, 2),
}  # fmt: skip
"""Lengths of the first axis, each with numbers of places behind the channels, odd and even ones where both have exact
answers: what depends on the product alone then differs between them."""


def said(check: Check, adapter: Adapter, info: Info) -> str:
    """Say at which lengths a check of lattice calls fails; nothing if it always does, or never.

    First come the values of a channel in one run of memory, which is what kernels divide into vectors; then, if they
    make no difference, the images of a batch. A call that raises is a :class:`~polybn.conformance.runner.CallError`.
    """
    words = _contrast(
        {m: holds(check, adapter, info, (1, m)) for m in LENGTHS},
        "Wrong with {} values a channel, right with {}",
    )
    if words or max(info.ranks) == 2:  # in rank 2, the values of a channel are the images
        return words
    images = {n: [holds(check, adapter, info, (n, places)) for places in BATCHES[n]] for n in BATCHES}
    if any({True, False} <= {*found} for found in images.values()):
        return ""  # something else makes the difference
    return _contrast(
        {n: found[0] for n, found in images.items()},
        "Wrong where N, the length of the first axis, is {}, right where it is {}",
    )


def _contrast(found: dict[int, bool | None], sentence: str) -> str:
    """Fill in the lengths at which something fails, and those at which it holds; without either, say nothing."""
    wrong, right = ([str(length) for length, held in found.items() if held is which] for which in (False, True))
    return sentence.format(_listed(wrong), _listed(right)) if wrong and right else ""


def holds(check: Check, adapter: Adapter, info: Info, lengths: tuple[int, int]) -> bool | None:
    """Return whether a check holds for a shape (N, 3, S), or None if nothing could be said."""
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    shape = served.fitted(deep(info), (lengths[0], 3, lengths[1]))
    made = served.fixed_lattice(info, lengths[0] * lengths[1], dtype, 3, (shape[0], *shape[2:]))
    try:
        check(adapter, info, made)
    except VacuousBoundError:
        return None
    except CallError:
        raise
    except Violation:
        return False
    return True


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
