"""At which numbers of values a result is wrong: kernels that forget the rest after the last vector err at some only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.properties import served
from polybn.conformance.runner import CallError, Violation

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

LENGTHS = (4, 5, 8, 9, 15, 16, 32, 35, 64, 65)
"""Multiples of 4, and numbers that are none; lattice calls have exact answers for all of them."""


def said(check: Callable[[Adapter, Info, Any], float], adapter: Adapter, info: Info) -> str:
    """Say with how many values a channel a check of lattice calls fails; nothing if it always does, or never.

    The values of a channel are one run in memory, which is what kernels divide into vectors.
    """
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    wrong, right = list[str](), list[str]()
    for m in LENGTHS:
        shape = served.fitted(info, (1, 3, m))
        made = served.fixed_lattice(info, m, dtype, 3, (shape[0], *shape[2:]))
        try:
            check(adapter, info, made)
        except CallError:
            return ""
        except Violation:
            wrong.append(str(m))
        except VacuousBoundError:
            continue
        else:
            right.append(str(m))
    if not wrong or not right:
        return ""
    return f"Wrong with {_listed(wrong)} values a channel, right with {_listed(right)}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
