"""Compare what a backend returned with the exact result: every value, against its own bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.conformance import oracle
from polybn.conformance.oracle import Row
from tests import bounds
from tests.cases import Array, Case, Outcome, rows

Floats = NDArray[np.float64]


class Certificate(NamedTuple):
    """Proof that an outcome lies within the envelope."""

    ratio: float
    """Largest error, as a share of its bound."""
    y: Floats
    """Bounds on ``y``, as channel rows; 0 in deleted places."""
    dx: Floats
    """Bounds on ``dx``, likewise."""


def certify(case: Case, outcome: Outcome, dtype: str | None = None) -> Certificate:
    """Check every result of a call.

    Parameters
    ----------
    case : Case
        No channel of which is constant: that is what clause S8 and ``==`` are for.
    outcome : Outcome
    dtype : str, optional
        Whose roundings count; that of ``case.x`` by default.

    Raises
    ------
    AssertionError
        If an error exceeds its bound, or a bound is vacuous.
    """
    f = bounds.FORMATS[dtype or case.x.dtype.name]
    x, dy, y, dx = (rows(a, case.axis) for a in (case.x, case.dy, outcome.y, outcome.dx))
    kept = _mask(case)
    y_bounds, dx_bounds, worst = np.zeros_like(x), np.zeros_like(x), 0.0
    for c in range(len(x)):
        keep = kept[c]
        assert not y[c, ~keep].any(), f"y is not 0 in deleted places of channel {c}"
        assert not dx[c, ~keep].any(), f"dx is not 0 in deleted places of channel {c}"
        if keep.any():
            channel = _Channel(case, outcome, c, x[c, keep], dy[c, keep], len(keep), f)
            y_bounds[c, keep], y_ratio = channel.output(y[c, keep])
            dx_bounds[c, keep], dx_ratio = channel.gradients(dx[c, keep])
            worst = max(worst, y_ratio, dx_ratio, channel.running())
    return Certificate(worst, y_bounds, dx_bounds)


def within(what: str, got: Floats | Sequence[float], exact: Row, bound: Floats | Sequence[float]) -> float:
    """Assert that each value lies within its bound of the exact one; return the largest share of a bound used."""
    values = np.asarray(got, np.float64)
    assert np.isfinite(values).all(), f"{what} is not finite: {values[~np.isfinite(values)][:3]}"
    errors, limits = np.asarray(exact.distances(values.tolist())), np.asarray(bound, np.float64)
    assert (limits > 0).all(), f"{what}: a bound is not positive"
    shares = errors / limits
    worst = int(np.argmax(shares))
    assert shares[worst] <= 1, (
        f"{what}: value {worst} is {values[worst]!r}, exactly {exact.numerators[worst] / exact.denominator!r}; "
        f"error {errors[worst]:.3g} is {shares[worst]:.3g} times its bound"
    )
    return float(shares[worst])


def within_one(what: str, got: float, exact: Fraction, bound: float) -> float:
    """Assert the same of a single number."""
    return within(what, [got], Row([exact.numerator], exact.denominator), [bound])


class _Channel:
    """One channel: its exact statistics, and the bounds on them."""

    def __init__(
        self, case: Case, outcome: Outcome, c: int, x: Floats, dy: Floats, length: int, f: bounds.Format
    ) -> None:
        self.case, self.outcome, self.c, self.f = case, outcome, c, f
        self.x, self.dy = oracle.row(x.tolist()), oracle.row(dy.tolist())
        self.gamma, self.beta = _pick(case.gamma, c, 1.0), _pick(case.beta, c, 0.0)
        eps = Fraction(case.eps)
        if case.training:
            self.s = oracle.batch_statistics(self.x, eps)
            self.errors = bounds.training(self.x, self.s, case.eps, f, length)
        else:
            mean, variance = (Fraction(_pick(a, c, math.nan)) for a in (case.running_mean, case.running_var))
            self.s = oracle.given_statistics(len(x), mean, variance, eps)
            self.errors = bounds.inference(self.x, self.s, case.eps, f, length)

    def output(self, y: Floats) -> tuple[Floats, float]:
        exact = oracle.output(self.x, self.s, Fraction(self.gamma), Fraction(self.beta))
        bound = bounds.output(self.errors, self.s, self.gamma, self.beta, self.f)
        return bound, within(f"y of channel {self.c}", y, exact, bound)

    def gradients(self, dx: Floats) -> tuple[Floats, float]:
        exact = oracle.derivatives(self.x, self.dy, self.s, Fraction(self.gamma), training=self.case.training)
        bound = bounds.gradients(self.errors, self.s, self.dy, self.gamma, self.f, batch=self.case.training)
        worst = within(f"dx of channel {self.c}", dx, exact.x, bound.x)
        for name in ("gamma", "beta", "running_mean", "running_var"):
            got: Array | None = getattr(self.outcome, f"d{name}")
            if got is not None:
                what = f"d{name} of channel {self.c}"
                worst = max(worst, within_one(what, float(got[self.c]), getattr(exact, name), getattr(bound, name)))
        return bound.x, worst

    def running(self) -> float:
        case, s, f = self.case, self.s, self.f
        if not case.training or case.running_mean is None:
            return 0.0
        one = case.running_variance == "unbiased"
        variance, v_bound = (
            (oracle.unbiased(s), bounds.bessel(self.errors, s, f)) if one else (s.variance, self.errors.variance)
        )
        shares = []
        batches = {"running_mean": (s.mean, self.errors.mean), "running_var": (variance, v_bound)}
        for name, (batch, error) in batches.items():
            old, got = _pick(getattr(case, name), self.c, math.nan), getattr(self.outcome, name)
            exact = oracle.blend(Fraction(old), batch, Fraction(case.momentum))
            bound = bounds.blended(old, float(batch), error, case.momentum, f)
            shares.append(within_one(f"{name} of channel {self.c}", float(got[self.c]), exact, bound))
        return max(shares)


def _pick(vector: Array | None, c: int, default: float) -> float:
    return default if vector is None else float(vector[c])


def _mask(case: Case) -> NDArray[np.bool_]:
    where = np.ones((), np.bool_) if case.where is None else case.where
    first = np.moveaxis(np.broadcast_to(where, case.x.shape), case.axis, 0)
    return first.reshape(first.shape[0], -1)
