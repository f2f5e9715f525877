"""Both ends of the range: squares that overflow or vanish (S10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Case, Outcome, rows
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import certified, take, take_outcome
from polybn.conformance.properties.exact import gradients, output
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run
from polybn.conformance.strategies import sample

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


class Scale(NamedTuple):
    """A scale at which squares, or sums, leave the range."""

    dtype: str
    size: float
    eps: float = 1e-5


LARGE = {"float32": (1e17, 1e18, 1e19, 1e25, 1e30, 4e37), "float64": (1e153, 1e155, 1e200, 1e300, 2e307)}
SMALL = {"float32": (1e-22, 1e-25, 1e-30), "float64": (1e-165, 1e-200, 1e-290)}
"""Values are normal numbers; their squares are 0."""


def large(info: Info) -> Sequence[Scale]:
    """List scales at which squares overflow."""
    return [Scale(dtype, size) for dtype, sizes in LARGE.items() if dtype in info.dtypes for size in sizes]


def small(info: Info) -> Sequence[Scale]:
    """List scales at which squares underflow to 0. eps is 0: any other allowed value would be far larger."""
    return [Scale(dtype, s, 0.0) for dtype, sizes in SMALL.items() if dtype in info.dtypes for s in sizes]


def make(info: Info, which: Scale) -> tuple[Case, Case, int]:
    """Return a call of such values, the same problem scaled by ``2^-power`` into float64's range, and the power."""
    shape = served.fitted(info, (31, 3, 11))
    case = sample(7, which.dtype, shape, 1, eps=which.eps, running_variance=info.running_variance)
    x = (which.size * np.clip(np.random.default_rng(7).normal(0, 1, shape), -4, 4)).astype(DTYPES[which.dtype])
    power = math.frexp(which.size)[1]
    case = case._replace(x=x, momentum=1.0)
    small = case._replace(
        x=np.ldexp(x.astype(np.float64), -power),
        running_mean=None,
        running_var=None,
        eps=math.ldexp(case.eps, -2 * power),
    )
    return case, small, power


def never_wrong(adapter: Adapter, info: Info, which: Scale) -> float:
    """Train on values of this size: each channel of y has NaN or infinity, or lies within its bound."""
    case, small, _ = make(info, which)
    y = run(adapter, info, case, gradients=False).y
    finite = [c for c, values in enumerate(rows(y, 1)) if np.isfinite(values).all()]
    return _within(info, small, Outcome(y), finite, which) if finite else 0.0


def rescued(adapter: Adapter, info: Info, which: Scale) -> float:
    """Train on values of this size: y is finite, and all results lie within their bounds."""
    case, small, power = make(info, which)
    outcome = run(adapter, info, case)
    bad = [c for c, values in enumerate(rows(outcome.y, 1)) if not np.isfinite(values).all()]
    if bad:
        raise Violation(
            f"y of values of size {which.size:g} must be finite; it is not in channels {bad}", got=outcome.y
        )
    compared = Outcome(outcome.y)
    if outcome.dx is not None:
        dx = np.ldexp(outcome.dx.astype(np.float64), power)
        subnormal = which.size * float(np.finfo(which.dtype).smallest_normal) > 2.0**-10
        compared = compared._replace(dgamma=outcome.dgamma, dbeta=outcome.dbeta)
        if not (info.flushes and subnormal):
            compared = compared._replace(dx=dx)
    return _within(info, small, compared, range(3), which)


def _within(info: Info, small: Case, outcome: Outcome, channels: Sequence[int], which: Scale) -> float:
    index = list(channels)
    try:
        return certified(info, take(small, index), take_outcome(outcome, 1, index), dtype=which.dtype).ratio
    except Violation as error:
        raise Violation(f"values of size {which.size:g} must not give finite numbers that are wrong: {error}") from None


def _no_wide(info: Info) -> str | None:
    return None if LARGE.keys() & {*info.dtypes} else "the adapter declares no float32 or float64"


PROPERTIES: Sequence[Property] = (
    Property("R1", "Values whose squares overflow never give a finite, wrong y.",
             "S10", never_wrong, large, (), _no_wide),
    Property("R2", "Values whose squares overflow are normalized all the same, and so are their gradients.",
             "S10", rescued, large, ("vjp",), _no_wide),
    Property("R3", "Where v + eps overflows or vanishes, y is as exact as ever.",
             "S10", output, lambda info: served.lattices(info, wide=True), (), _no_wide),
    Property("R3b", "Where v + eps overflows or vanishes, gradients are as exact as ever.",
             "S10 S13", gradients, lambda info: served.lattices(info, wide=True), ("vjp",), _no_wide),
    Property("R4", "With eps = 0, values whose squares vanish are normalized all the same, and so are their gradients.",
             "S10", rescued, small, ("vjp",), _no_wide),
)  # fmt: skip
