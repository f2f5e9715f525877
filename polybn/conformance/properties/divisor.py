"""What y is divided by, fitted to outputs: a wrong eps is a failure that says so, before all that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance import counts
from polybn.conformance.cases import Case, Outcome, rows
from polybn.conformance.forms import VacuousBoundError, format_of
from polybn.conformance.lattice import lattice
from polybn.conformance.properties.compare import changed
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

VARIANCE = 2.0**-9
"""The variance of the calls, so small that an eps of 1e-6 shows beside it, and above the least eps of any library."""
EPS = (VARIANCE, 4 * VARIANCE)
CLOSE = 1e-3
ROUNDINGS = 4
"""The roundings of a narrow y that may come together in the divisor."""
RIGHT = "sqrt(variance + eps)"


def divisor(adapter: Adapter, info: Info, case: Case) -> float:
    """Train and infer with two eps: y is divided by ``sqrt(variance + eps)``, with the eps that was passed."""
    for mode in (case, changed(case, training=False))[: 1 + info.infers]:
        calls = [mode._replace(eps=eps) for eps in EPS]
        squares = [_square(call, run(adapter, info, call, gradients=False)) for call in calls]
        found = _named(squares, case.x.shape, max(CLOSE, ROUNDINGS * format_of(case.x.dtype.name).stored))
        if found is None:
            raise VacuousBoundError("y is divided by nothing that is known here: what else fails says more")
        if found != RIGHT:
            where = "training" if mode.training else "inference"
            raise Violation(f"x - mean must be divided by {RIGHT}; in {where} it is divided by {found}")
    return 0.0


def _square(case: Case, outcome: Outcome) -> float:
    """Return the square of what y is divided by; NaN if the outputs are no multiple of x."""
    x, y = rows(case.x, 1).ravel(), rows(outcome.y, 1).ravel()
    slope = float(x @ y / (x @ x))
    apart = np.abs(y - slope * x).max()
    return slope**-2 if slope > 0 and apart <= 0.02 * np.abs(y).max() else float("nan")


def _named(squares: Sequence[float], shape: tuple[int, ...], close: float) -> str | None:
    """Return in words what y is divided by, or None."""
    unbiased = {"sqrt(variance * m / (m - 1) + eps), the unbiased variance": counts.M / (counts.M - 1)}
    wrong = {f"sqrt(variance * {w} + eps){note}": factor for w, (factor, note) in counts.factors(shape).items()}
    known = {
        RIGHT: [VARIANCE + eps for eps in EPS],
        "sqrt(variance) + eps": [(VARIANCE**0.5 + eps) ** 2 for eps in EPS],
        "sqrt(variance), without eps": [VARIANCE, VARIANCE],
        "sqrt(max(variance, eps))": [max(VARIANCE, eps) for eps in EPS],
        "sqrt(variance^2 + eps), as if the variance were a standard deviation": [VARIANCE**2 + eps for eps in EPS],
        "sqrt(sqrt(variance) + eps), as if a standard deviation were the variance": [VARIANCE**0.5 + e for e in EPS],
        **{words: [VARIANCE * factor + eps for eps in EPS] for words, factor in (unbiased | wrong).items()},
        f"sqrt(variance + {squares[0] - VARIANCE:.3g}), whatever eps is passed": [squares[0], squares[0]],
    }
    return next((words for words, wanted in known.items() if np.allclose(squares, wanted, close / 2, 0)), None)


def _calls(info: Info) -> Sequence[Case]:
    """Make one call whose mean is 0 and whose variance is VARIANCE; gamma is 1 and beta 0."""
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    shape = counts.shape(info)
    case = lattice(1, dtype, shape[1], (shape[0], *shape[2:]), 1, power=-5).case
    assert case.gamma is not None
    one = np.ones_like(case.gamma)
    return [changed(case, gamma=one, beta=0 * one, running_mean=0 * one, running_var=VARIANCE * one)]


PROPERTIES: Sequence[Property] = (
    Property("P0", "x - mean is divided by sqrt(variance + eps), with the eps that is passed.",
             "S3 S5", divisor, _calls),
)  # fmt: skip
