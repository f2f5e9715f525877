"""At which lengths a result is wrong: kernels that forget the rest after the last vector or block err at some only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from polybn.conformance.counts import deep
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.lattice import LONG_TAILS, Lattice
from polybn.conformance.properties import served
from polybn.conformance.runner import CallError, Violation
from polybn.conformance.words import listed

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

    Check: TypeAlias = Callable[[Adapter, Info, Any], float]

BLOCKS: tuple[int, ...] = tuple(2**power for power in range(1, 11))
"""Lengths of vectors and blocks: 2 to 1024."""
LENGTHS = (4, 5, 8, 9, 10, 16, 25, 32, 35, 64, 65, 128, 135, 256, 265, 512, 515, 1024, 1025, 2048)
"""Multiples of each block, and lengths between them that leave a rest; lattice calls have exact answers for all."""
BATCHES = {
    1: (4, 5, 16), 2: (4, 8), 3: (4, 5), 4: (1, 4, 8), 5: (1, 3, 4), 7: (4, 5), 8: (1, 4), 9: (1, 4, 5), 10: (1, 4),
    13: (4, 5), 15: (1, 3, 4), 16: (1, 2), **{length: (1,) for length in LENGTHS if length > 16},
}  # fmt: skip
"""Lengths of the first axis, each with numbers of places behind the channels, odd and even ones where both have exact
answers: what depends on the product alone then differs between them."""
SURE = 1 / 32
"""The share of a bound up to which a result counts as right: right algorithms stay below half of it at these lengths,
while one forgotten value of a thousand may stay below the bound itself."""
WHERE = {
    "values": ("with {} values a channel", "with {}"),
    "channels": ("with {} channels", "with {}"),
    "images": ("where N, the length of the first axis, is {}", "where it is {}"),
}
"""Words about lengths that are wrong, and, after these, about those that are right."""


def cases(info: Info) -> Sequence[Lattice]:
    """Make calls with a rest beyond each block: of values in one run of memory, of images, and of channels."""
    shapes = [shape for n in LONG_TAILS for shape in ((1, 7, n), (n, 7, 1), (4, n, 4))]
    pool = [*dict.fromkeys(served.fitted(info, shape) for shape in shapes)]
    return [_made(info, dtype, shape) for dtype, shape in served.typed(info, served.few(info, pool))]


def said(check: Check, adapter: Adapter, info: Info) -> str:
    """Say at which lengths a check of lattice calls fails; nothing if it always does, or never.

    First come the values of a channel in one run of memory, which is what kernels divide into vectors; then, if they
    make no difference, the channels, and the images of a batch. Of channels only a block counts as a cause: among many,
    what is rare is met more easily. A call that raises is a :class:`~polybn.conformance.runner.CallError`.
    """
    words = _contrast({n: holds(check, adapter, info, (1, 7, n)) for n in LENGTHS}, "values")
    words = words or _contrast({n: holds(check, adapter, info, (4, n, 4)) for n in LENGTHS}, "channels")
    if words or max(info.ranks) == 2:  # in rank 2, the values of a channel are the images
        return words
    images = {n: [holds(check, adapter, info, (n, 7, places)) for places in BATCHES[n]] for n in BATCHES}
    if any({True, False} <= {*found} for found in images.values()):
        return ""  # something else makes the difference
    return _contrast({n: found[0] for n, found in images.items()}, "images")


def _contrast(found: dict[int, bool | None], what: str) -> str:
    """Say at which lengths something fails and at which it holds, or what block explains it; if it varies at all."""
    wrong, right = ([length for length, held in found.items() if held is which] for which in (False, True))
    if not (wrong and right):
        return ""
    block, (failing, holding) = block_of(wrong, right), WHERE[what]
    failing, holding = failing.format(_numbers(wrong)), holding.format(_numbers(right))
    if block is not None:
        return f"What is left beyond multiples of {block} is treated wrongly: wrong {failing}"
    return "" if what == "channels" else f"Wrong {failing}, right {holding}"


def _numbers(lengths: Sequence[int]) -> str:
    return listed([str(length) for length in lengths])


def block_of(wrong: Sequence[int], right: Sequence[int]) -> int | None:
    """Return the block of which, from its length on, the multiples are right and all other lengths wrong, or None.

    Examples
    --------
    >>> right = [5, 9, 25, 35, 64, 128]
    >>> block_of([65, 135], right), block_of([65, 129, 128], [5, 64])
    (64, None)
    """
    for block in BLOCKS:
        rest = {n for n in (*wrong, *right) if n > block and n % block}
        if rest and rest == {n for n in wrong if n >= block}:
            return block
    return None


def holds(check: Check, adapter: Adapter, info: Info, shape: tuple[int, int, int]) -> bool | None:
    """Return whether a check holds for a shape (N, C, S), or None if that is not sure."""
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    try:
        share = check(adapter, info, _made(info, dtype, served.fitted(deep(info), shape)))
    except VacuousBoundError:
        return None
    except CallError:
        raise
    except Violation:
        return False
    return True if share <= SURE else None


def _made(info: Info, dtype: str, shape: tuple[int, ...]) -> Lattice:
    return served.fixed_lattice(info, 1, dtype, shape[1], (shape[0], *shape[2:]))
