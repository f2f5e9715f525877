"""Clauses S8 and S10: constant channels, and numbers near both ends of the range."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import polybn
from polybn.conformance import cases as cases_module
from polybn.conformance import forms, oracle
from polybn.conformance.cases import DTYPES, Case, equal, rows, statistics_dtype
from polybn.conformance.certify import certify
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.properties.compare import take, take_outcome
from polybn.conformance.strategies import sample
from tests.support.cases import assert_others_equal, run
from tests.support.drawing import cases
from tests.support.within import within

EXTREME = {
    "float16": (65504.0, -65504.0, 2.0**-24),
    "bfloat16": (3.38e38, -3.38e38, 1e-38),
    "float32": (3.4028234e38, -3e38, 1e10, 1e-38, 2.0**-149),
    "float64": (1.7976931348623157e308, -1e300, 1e160, 1e-300, 5e-324),
}
CONSTANTS = [
    pytest.param(dtype, value, id=f"{dtype}-{value:.4g}")
    for dtype, extreme in EXTREME.items()
    for value in (0.0, 0.1, -1234.567, 10_000.1, *extreme)
]


def flushes(backend: str) -> bool:
    """Return whether the library takes subnormal numbers for 0, as XLA does on the CPU; found by a probe."""
    b = polybn.backend(backend)
    x = b.asarray(np.full((1, 1), 2.0**-149, np.float32))
    one, zero = (b.asarray(np.full(1, v, np.float32)) for v in (1.0, 0.0))
    y = polybn.batch_norm(x, None, None, zero, one, training=False, eps=0).y
    return not b.to_numpy(y).any()


def skip_subnormals(backend: str, dtype: str, smallest: float) -> None:
    """Skip a test that depends on subnormal numbers if the library flushes them."""
    wide = np.float64 if dtype == "float64" else np.float32
    if 0 < abs(smallest) < np.finfo(wide).smallest_normal and dtype != "float16" and flushes(backend):
        pytest.skip(f"{backend} takes subnormal numbers for 0")


@pytest.mark.clause("S8")
@pytest.mark.parametrize(("dtype", "value"), CONSTANTS)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_constant_channels(backend: str, dtype: str, value: float, eps: float) -> None:
    """A constant channel has exactly y = beta, v = 0, dgamma = 0 and its constant as mean; with eps = 0, dx = 0."""
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    skip_subnormals(
        backend, dtype, value * unit or math.copysign(5e-324, value) * bool(value)
    )  # the rounding error of m1 is that large, and delta repairs it
    b, case = polybn.backend(backend), sample(1, dtype, (3, 5), eps=eps, momentum=0.0)
    for m in (2, 3, 7, 513, 4099):
        x, dy = np.full((m, 5), value).astype(case.x.dtype), np.resize(case.dy, (m, 5))
        outcome = run(b, case._replace(x=x, dy=dy))
        assert case.beta is not None
        assert np.array_equal(outcome.y, np.broadcast_to(case.beta, x.shape).astype(x.dtype))
        assert equal(outcome.running_mean, x[0].astype(statistics_dtype(x)))
        assert outcome.running_var is not None
        assert outcome.dgamma is not None
        assert not outcome.running_var.any()
        assert not outcome.dgamma.any()
        if eps == 0:
            assert not outcome.dx.any()


@pytest.mark.clause("S8", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), m=st.sampled_from((2, 3, 7, 100)), value=st.sampled_from((0.0, 0.1, -1234.567)))
def test_gradient_of_a_constant_channel(backend: str, dtype: str, seed: int, m: int, value: float) -> None:
    """With eps > 0 a constant channel has ``dx = gamma (dy - mean(dy)) / sqrt(eps)``, which is 0 for constant dy."""
    b, f = polybn.backend(backend), forms.FORMATS[dtype]
    case = sample(seed, dtype, (m, 3), eps=0.25)
    case = case._replace(x=np.full((m, 3), value).astype(case.x.dtype))
    assert case.gamma is not None
    dx = run(b, case).dx
    for c, dy in enumerate(rows(case.dy, 1)):
        gamma, g = Fraction(float(case.gamma[c])), oracle.row(dy.tolist())
        exact = oracle.combine(-2 * gamma * oracle.total(g) / m, (2 * gamma, g))
        # The mean of dy, its subtraction, and the products; xhat is exactly 0.
        h = forms.additions("K", m, m)
        bound = 2 * abs(float(gamma)) * forms.roundings(h + 8, f.unit) * (np.abs(dy) + np.abs(dy).mean())
        within("dx", rows(dx, 1)[c], exact, (bound + f.stored * np.abs(exact.floats())) * 1.001 + f.grain + f.tiny)
    flat = run(b, case._replace(dy=np.full_like(case.dy, 0.75)))
    assert not flat.dx.any()


def shrunk(case: Case, power: int) -> Case:
    """Return the problem for x 2^-power, which is exact, in float64; running statistics are left out."""
    x = np.ldexp(case.x.astype(np.float64), -power)
    assert np.array_equal(np.ldexp(x, power), case.x.astype(np.float64))
    return case._replace(x=x, running_mean=None, running_var=None, eps=math.ldexp(case.eps, -2 * power))


LARGE = [("float32", s) for s in (1e17, 1e18, 1e19, 1e25, 1e30, 4e37)] + [
    ("float64", s) for s in (1e153, 1e155, 1e200, 1e300, 2e307)
]
SMALL = [("float32", s) for s in (1e-9, 1e-10, 1e-19, 1e-23, 1e-30, 1e-36)] + [
    ("float64", s) for s in (1e-150, 1e-155, 1e-200, 1e-290)
]


@pytest.mark.clause("S10", "S13")
@pytest.mark.parametrize(("dtype", "scale"), LARGE)
@pytest.mark.parametrize("kappa", [0.0, 1.5])
def test_large_values(backend: str, dtype: str, scale: float, kappa: float) -> None:
    """If squares or sums overflow, y, gradients and running statistics are within the usual bounds."""
    skip_subnormals(backend, dtype, 2.0**-4 / scale)  # dx is that small
    rng = np.random.default_rng(7)
    draw = np.clip(rng.normal(kappa, 1, (61, 3, 11)) * [[[1], [-1], [1]]], -4, 4)
    case = sample(7, dtype, (61, 3, 11), momentum=0.0)._replace(x=(scale * draw).astype(DTYPES[dtype]))
    certify(case, run(polybn.backend(backend), case))


@pytest.mark.clause("S3", "S10", "S13")
@pytest.mark.parametrize(("dtype", "scale"), SMALL)
@pytest.mark.parametrize("kappa", [0.0, 30.0])
def test_small_values_without_eps(backend: str, dtype: str, scale: float, kappa: float) -> None:
    """If squares vanish and eps is 0, y and gradients are within the usual bounds."""
    skip_subnormals(backend, dtype, scale * 2.0**-7)  # one value in a hundred is that small
    b = polybn.backend(backend)
    case = sample(8, dtype, (61, 3, 11), scale=scale, kappa=kappa, eps=0.0)
    case = case._replace(dy=(case.dy * scale).astype(case.dy.dtype))
    outcome, power = run(b, case), math.frexp(scale)[1]
    # dx does not depend on the common scale of x and dy; dgamma and dbeta have the scale of dy.
    small = shrunk(case, power)._replace(dy=np.ldexp(case.dy.astype(np.float64), -power))
    assert outcome.dgamma is not None
    assert outcome.dbeta is not None
    back: dict[str, Any] = {n: np.ldexp(getattr(outcome, n).astype(np.float64), -power) for n in ("dgamma", "dbeta")}
    certify(small, outcome._replace(**back), dtype=dtype)


@pytest.mark.clause("S3", "S10")
@pytest.mark.parametrize(("dtype", "grain"), [("float32", 2.0**-149), ("float64", 5e-324)])
def test_subnormal_values_without_eps(backend: str, dtype: str, grain: float) -> None:
    """Multiples of the smallest number have the y and dgamma of the same multiples of 1, and their dx overflows."""
    skip_subnormals(backend, dtype, grain)
    b = polybn.backend(backend)
    k = np.random.default_rng(9).integers(-50, 50, (61, 3)).astype(DTYPES[dtype])
    case = sample(9, dtype, (61, 3), eps=0.0)._replace(running_mean=None, running_var=None)
    assert case.beta is not None
    small, usual = run(b, case._replace(x=k * k.dtype.type(grain))), run(b, case._replace(x=k))
    # Each of the two is in class S: within 2 units in the last place of its largest terms, for sums of few values.
    unit, terms = np.finfo(dtype).eps, np.abs(usual.y - case.beta).max(axis=0) + np.abs(case.beta)
    assert (np.abs(small.y - usual.y) <= 4 * unit * terms).all()
    assert small.dgamma is not None
    assert usual.dgamma is not None
    xhat = (k - k.mean(axis=0)) / k.std(axis=0)
    assert (np.abs(small.dgamma - usual.dgamma) <= 4 * unit * np.abs(case.dy * xhat).sum(axis=0)).all()
    # The exact dx is that of k divided by the grain, and overflows.
    assert not np.isfinite(small.dx[np.abs(usual.dx) > 1e-3]).any()


@pytest.mark.clause("S10", "S13")
@pytest.mark.parametrize(
    ("dtype", "eps", "scale"),
    [("float32", 1e-20, s) for s in (1e-26, 1e-29, 1e-32, 1e-36)]
    + [("float64", 1e-300, s) for s in (1e-250, 1e-300, 1e-306)],
)
def test_tiny_eps_above_tinier_values(backend: str, dtype: str, eps: float, scale: float) -> None:
    """If the variance is negligible beside a tiny eps, xhat is c / sqrt(eps), dx gamma (dy - mean(dy)) / sqrt(eps)."""
    b, f = polybn.backend(backend), forms.FORMATS[dtype]
    case = sample(10, dtype, (17, 3), scale=scale, kappa=2.0, eps=eps)._replace(beta=None)
    outcome = run(b, case)
    assert case.gamma is not None
    for c, (x, dy) in enumerate(zip(rows(case.x, 1), rows(case.dy, 1), strict=True)):
        row, g, gamma = oracle.row(x.tolist()), oracle.row(dy.tolist()), Fraction(float(case.gamma[c]))
        s = oracle.batch_statistics(row, Fraction(eps))
        # All roundings of S2, S3 and S13 together, on sums of absolute values; xhat is below 1e-5.
        n, slope = forms.roundings(3 * forms.additions("K", 17, 17) + 30, f.unit), float(abs(gamma) * s.root)
        y_bound = n * slope * (np.abs(x) + np.abs(x).mean()) + f.tiny
        within("y", rows(outcome.y, 1)[c], oracle.output(row, s, gamma, Fraction(0)), y_bound)
        dx_bound = n * slope * (np.abs(dy) + np.abs(dy).mean())
        within("dx", rows(outcome.dx, 1)[c], oracle.derivatives(row, g, s, gamma, training=True).x, dx_bound)


@pytest.mark.clause("S5", "S10")
@pytest.mark.parametrize(("dtype", "variance", "eps"), [("float32", 3.3e38, 8e37), ("float64", 1.7e308, 4e307)])
def test_variance_and_eps_overflow_in_inference(backend: str, dtype: str, variance: float, eps: float) -> None:
    """If the sum of a running variance and eps overflows, y and gradients are within the usual bounds."""
    with np.errstate(over="ignore"):  # in the running variance, which is replaced
        case = sample(11, dtype, (7, 3, 5), scale=math.sqrt(variance), training=False, eps=eps)
    case = case._replace(running_var=np.full(3, variance, dtype))
    certify(case, run(polybn.backend(backend), case), flushes=flushes(backend))


@pytest.mark.clause("S5", "S10")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_never_finite_and_wrong_in_inference(backend: str, dtype: str) -> None:
    """At the ends of the range a value in inference is right or not finite."""
    b, f = polybn.backend(backend), forms.FORMATS[dtype]
    top = float(np.finfo(dtype).max) * 0.9
    x = np.array([[top, -top, 1.0, top / 4]], dtype)
    for mean, variance in ((top, 1.0), (-top, top), (top / 2, top / 2), (0.0, top)):
        case = Case(
            x, None, None, np.full(4, mean, dtype), np.full(4, variance, dtype), np.ones_like(x), training=False
        )
        y = run(b, case).y
        for c, got in enumerate(y[0].tolist()):
            s = oracle.given_statistics(
                1, Fraction(float(x.dtype.type(mean))), Fraction(float(x.dtype.type(variance))), Fraction(1e-5)
            )
            exact = oracle.output(oracle.row([float(x[0, c])]), s, Fraction(1), Fraction(0))
            if math.isfinite(got):
                within("y", [got], exact, [forms.roundings(9, f.unit) * abs(exact.floats()[0]) + f.tiny])


@pytest.mark.clause("S10")
@given(case=cases(("float32",), training=True), channel=st.integers(0, 10), power=st.sampled_from((90, 110, -60, -90)))
def test_rescue_of_one_channel(backend: str, case: Case, channel: int, power: int) -> None:
    """A channel far outside the range changes no bit of the others, and is itself within its bounds."""
    b, c = polybn.backend(backend), channel % case.x.shape[case.axis]
    case = case.moved(1)._replace(eps=0.0)
    if power > 0 and np.abs(case.x.astype(np.float64)).max() * 2.0**power > 1e38:
        power = 60
    x = case.x.copy()
    x[:, c] = np.ldexp(x[:, c], power)
    scaled = case._replace(x=x)
    got, base = run(b, scaled), run(b, case)
    assert_others_equal(got, base, c)
    alone = take_outcome(got, 1, [c])
    try:
        certify(take(scaled, [c]), cases_module.Outcome(alone.y, dgamma=alone.dgamma, dbeta=alone.dbeta))
    except VacuousBoundError:
        assume(False)


@pytest.mark.clause("S10")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["training", "inference", "inference without gamma"])
def test_beta_brings_y_back(backend: str, dtype: str, form: str) -> None:
    """Where only the product with gamma leaves the range, y is right; so it is in the ordinary channel beside."""
    b, most = polybn.backend(backend), float(np.finfo(dtype).max)
    training, scaled = form == "training", form != "inference without gamma"
    x = np.array([[1.0, -3.0]] * 6 + [[8.0, 9.0]], dtype)
    gamma, beta, var = (
        np.array([0.6 * most, -1.25], dtype),
        np.array([-0.6 * most, 17.5], dtype),
        np.array([6, 6], dtype),
    )
    if not scaled:
        x[:, 0] = 0.9 * most / 8 * x[:, 0]
        beta[0], var = -0.8 * most, np.array([0.36, 2.25], dtype)
    vectors = (gamma if scaled else None, beta, np.array([2, 0.5], dtype) * scaled, var)
    given = [None if v is None else b.asarray(v) for v in vectors]
    y = b.to_numpy(polybn.batch_norm(b.asarray(x), *given, training=training, eps=0.0).y)
    for c in range(2):
        row, zero = oracle.row(x[:, c].tolist()), Fraction(0)
        scale, shift, mean, variance = (Fraction(1 if v is None else float(v[c])) for v in vectors)
        running = oracle.given_statistics(7, mean, variance, zero)
        right = oracle.output(row, oracle.batch_statistics(row, zero) if training else running, scale, shift).floats()
        largest = max(map(abs, (*right, float(shift))))
        assert np.abs(y[:, c].astype(np.float64) - right).max() <= 8 * float(np.finfo(dtype).eps) * largest
