"""Compare results with exact numbers, each within its own bound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from polybn.conformance.oracle import ExactRow

Floats = NDArray[np.float64]


def within(what: str, got: Floats | Sequence[float], exact: ExactRow, bound: Floats | Sequence[float]) -> float:
    """Assert that each value is within its bound of the exact one; return the largest used share of a bound."""
    values = np.asarray(got, np.float64)
    assert np.isfinite(values).all(), f"{what} is not finite: {values[~np.isfinite(values)][:3]}"
    errors, limits = np.asarray(exact.distances(values.tolist())), np.asarray(bound, np.float64)
    assert (limits > 0).all(), f"{what}: a bound is not positive"
    found = errors / limits
    worst = int(np.argmax(found))
    assert found[worst] <= 1, (
        f"{what}: value {worst} is {float(values[worst])!r}, exactly {exact.numerators[worst] / exact.denominator!r}; "
        f"error {errors[worst]:.3g} is {found[worst]:.3g} times its bound"
    )
    return float(found[worst])


def within_one(what: str, got: float, exact: Fraction, bound: float) -> float:
    """Assert that a number is within its bound of the exact one; return the used share of the bound."""
    return within(what, [got], ExactRow([exact.numerator], exact.denominator), [bound])
