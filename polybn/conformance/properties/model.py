"""Running statistics in exact arithmetic, and bounds on how far rounded ones may drift from them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance import bounds, oracle
from polybn.conformance.cases import Array, Case, Outcome, rows
from polybn.conformance.channels import measure
from polybn.conformance.forms import Form, Format, format_of
from polybn.conformance.properties.compare import take, widest
from polybn.conformance.runner import Violation

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info

NAMES = ("running_mean", "running_var")


class Model:
    """The closed form ``rho^k old + (1 - rho) sum rho^(k-1-i) batch_i``, built up batch by batch.

    A step adds an error within its own bound, which depends on the statistics it was given, and keeps rho times the
    error so far. ``mean`` and ``var`` are the initial statistics.
    """

    def __init__(self, info: Info, mean: Array, var: Array) -> None:
        self._info = info
        self.exact = {n: [Fraction(float(v)) for v in a] for n, a in zip(NAMES, (mean, var), strict=True)}
        self.limits = {name: np.zeros(len(mean)) for name in NAMES}

    def copy(self) -> Model:
        """Return an independent copy."""
        twin = Model(self._info, np.zeros(0), np.zeros(0))
        twin.exact = {name: list(values) for name, values in self.exact.items()}
        twin.limits = {name: values.copy() for name, values in self.limits.items()}
        return twin

    def step(self, case: Case) -> None:
        """Add a batch; the case holds the running statistics that the call was given."""
        rho, form = Fraction(case.momentum), widest(self._info)
        f = format_of(case.x.dtype.name, flushes=self._info.flushes)
        for c, values in enumerate(rows(case.x, case.axis).tolist()):
            s = oracle.batch_statistics(oracle.row(values), Fraction(case.eps))
            unbiased = self._info.running_variance == "unbiased"
            batch = (s.mean, oracle.unbiased(s) if unbiased else s.variance)
            local = _local(case, c, form, f)
            for name, value in zip(NAMES, batch, strict=True):
                self.exact[name][c] = oracle.blend(self.exact[name][c], value, rho)
                self.limits[name][c] = bounds.SAFETY * (float(rho) * self.limits[name][c] + local[name])

    def compare(self, mean: Array, var: Array) -> float:
        """Compare statistics with the closed form; return the largest error as a share of its bound."""
        worst = 0.0
        for name, got in zip(NAMES, (mean, var), strict=True):
            for c, value in enumerate(got.tolist()):
                exact, limit = self.exact[name][c], float(self.limits[name][c])
                error = abs(float(Fraction(value) - exact)) if np.isfinite(value) else np.inf
                if error > limit:
                    expected = np.array([float(v) for v in self.exact[name]], got.dtype)
                    raise Violation(
                        f"{name} of channel {c} must be the closed form {float(exact)!r} to {limit:.3g}; got {value}",
                        got=got,
                        expected=expected,
                    )
                worst = max(worst, error / limit if limit else 0.0)
        return worst


def _local(case: Case, c: int, form: Form, f: Format) -> dict[str, float]:
    """Bound the error that one step adds to a channel."""
    alone = take(case, [c])
    (measured,) = measure(alone, Outcome(np.zeros_like(alone.x)))
    limits = bounds.envelope(form, measured.channel, f)
    k = measured.channel.exponent
    return {
        "running_mean": float(np.ldexp(limits["running_mean"][0], k)),
        "running_var": float(np.ldexp(limits["running_var"][0], 2 * k)),
    }


__all__ = ["NAMES", "Model"]
