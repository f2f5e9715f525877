"""The oracle, checked by a complex step, Decimal arithmetic of 60 digits, and the kit's own 106-bit values."""

from __future__ import annotations

import cmath
import decimal
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polybn.conformance import oracle
from polybn.conformance.cases import Case, Outcome
from polybn.conformance.channels import measure
from polybn.conformance.doubles import Double, add, distance, double, multiply
from polybn.conformance.oracle import ExactRow
from polybn.conformance.strategies import LARGEST_KAPPA, sample

DIGITS = decimal.Context(prec=60, Emax=10**6, Emin=-(10**6))


def forward(
    x: list[complex], gamma: complex, beta: complex, statistics: tuple[complex, complex] | None, eps: float
) -> list[complex]:
    """Compute S3 or S5 in complex floats, analytic in every argument."""
    mean, variance = statistics or (sum(x) / len(x), sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x))
    return [(v - mean) / cmath.sqrt(variance + eps) * gamma + beta for v in x]


def oracle_gradient(point: list[float], dy: list[float], eps: float, *, training: bool) -> list[float]:
    m = len(dy)
    x, (gamma, _, mean, variance) = oracle.row(point[:m]), map(Fraction, point[m:])
    s = oracle.batch_statistics(x, Fraction(eps))
    if not training:
        s = oracle.given_statistics(m, mean, variance, Fraction(eps))
    d = oracle.derivatives(x, oracle.row(dy), s, gamma, training=training)
    return [*d.x.floats(), float(d.gamma), float(d.beta), float(d.running_mean), float(d.running_var)]


@pytest.mark.clause("S13")
@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 2**32), m=st.sampled_from((2, 3, 5, 7)), eps=st.sampled_from((1e-5, 0.3)))
def test_derivatives_meet_the_complex_step(training: bool, seed: int, m: int, eps: float) -> None:
    """P30: each derivative is Im f(z + 1e-30 i) / 1e-30, to 1e-12 of the largest, so the formulas of S13 are right."""
    rng, step = np.random.default_rng(seed), 1e-30j
    x, dy = rng.uniform(-1, 1, m) + 5 * np.arange(m), rng.normal(0.3, 1.2, m)
    point = [*x.tolist(), *rng.uniform(0.5, 2, 2).tolist(), *rng.uniform(1, 3, 2).tolist()]
    exact = oracle_gradient(point, dy.tolist(), eps, training=training)
    for i in range(m + 2 if training else m + 4):
        z = [complex(v) + (step if i == j else 0) for j, v in enumerate(point)]
        y = forward(z[:m], z[m], z[m + 1], None if training else (z[m + 2], z[m + 3]), eps)
        slope = sum(g * v.imag for g, v in zip(dy.tolist(), y, strict=True)) / step.imag
        assert abs(slope - exact[i]) <= 1e-12 * max(1, *map(abs, exact))


@pytest.mark.clause("S13")
@given(seed=st.integers(0, 2**32), m=st.sampled_from((2, 3, 5, 7)), eps=st.sampled_from((1e-5, 0.3)))
def test_tangent_meets_the_complex_step(seed: int, m: int, eps: float) -> None:
    """The directional derivative is right along a random direction in x, gamma and beta at once."""
    rng = np.random.default_rng(seed)
    x, along = rng.uniform(-1, 1, m) + 5 * np.arange(m), rng.normal(size=m + 2)
    gamma, beta = rng.uniform(0.5, 2, 2).tolist()
    z = [complex(a, 1e-30 * b) for a, b in zip([*x.tolist(), gamma, beta], along.tolist(), strict=True)]
    stepped = [v.imag * 1e30 for v in forward(z[:m], z[m], z[m + 1], None, eps)]
    values = oracle.row(x.tolist())
    s = oracle.batch_statistics(values, Fraction(eps))
    moved = [Fraction(v) for v in along[m:].tolist()]
    exact = oracle.tangent(values, s, Fraction(gamma), oracle.row(along[:m].tolist()), *moved)
    assert max(exact.distances(stepped)) <= 1e-12 * max(1, *map(abs, exact.floats()))


def decimal_batch_norm(
    x: list[float], dy: list[float], gamma: float, beta: float, eps: float
) -> tuple[list[Decimal], list[Decimal], Decimal, Decimal, Decimal]:
    """Return y, dx, dgamma, mean and variance by textbook formulas, without code of the oracle."""
    with decimal.localcontext(DIGITS):
        m = Decimal(len(x))
        values, g = ([Decimal(v) for v in z] for z in (x, dy))
        mean = sum(values, Decimal(0)) / m
        variance = sum(((v - mean) ** 2 for v in values), Decimal(0)) / m
        deviation = (variance + Decimal(eps)).sqrt()
        normalized = [(v - mean) / deviation for v in values]
        y = [n * Decimal(gamma) + Decimal(beta) for n in normalized]
        # The chain rule, step by step: through the deviation, then through the mean.
        dn = [v * Decimal(gamma) for v in g]
        ddeviation = -sum((a * n for a, n in zip(dn, normalized, strict=True)), Decimal(0)) / deviation
        dvariance = ddeviation / (2 * deviation)
        dc = [a / deviation + dvariance * 2 * (v - mean) / m for a, v in zip(dn, values, strict=True)]
        dmean = -sum(dc, Decimal(0))
        dx = [a + dmean / m for a in dc]
        return y, dx, sum((a * n for a, n in zip(g, normalized, strict=True)), Decimal(0)), mean, variance


def close(exact: list[Fraction], other: list[Decimal], *, relative: Fraction) -> bool:
    size = max(map(abs, exact), default=Fraction(0)) + Fraction(1, 10**30)
    return all(abs(a - Fraction(b)) <= relative * size for a, b in zip(exact, other, strict=True))


def fractions_of(values: ExactRow) -> list[Fraction]:
    return [Fraction(n, values.denominator) for n in values.numerators]


@pytest.mark.clause("S2", "S3", "S13")
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(2, 40),
    kappa=st.sampled_from((0.0, 1.0, 1e3, 1e9)),
    scale=st.sampled_from((1e-12, 1.0, 1e12)),
    eps=st.sampled_from((1e-5, 1.0, 1e-12)),
)
def test_oracle_meets_decimal(seed: int, m: int, kappa: float, scale: float, eps: float) -> None:
    """A second oracle, in decimal and by the chain rule, agrees to 25 digits."""
    rng = np.random.default_rng(seed)
    x, dy = (kappa + rng.normal(size=m)) * scale, rng.normal(0.3, 1.2, m)
    gamma, beta = rng.normal(size=2).tolist()
    values, s = oracle.row(x.tolist()), oracle.batch_statistics(oracle.row(x.tolist()), Fraction(eps))
    d = oracle.derivatives(values, oracle.row(dy.tolist()), s, Fraction(gamma), training=True)
    y, dx, dgamma, mean, variance = decimal_batch_norm(x.tolist(), dy.tolist(), gamma, beta, eps)
    few = Fraction(1, 10**25)
    assert close(fractions_of(oracle.output(values, s, Fraction(gamma), Fraction(beta))), y, relative=few)
    assert close(fractions_of(d.x), dx, relative=few)
    assert close([d.gamma], [dgamma], relative=few)
    assert close([s.mean], [mean], relative=few)
    assert close([s.variance], [variance], relative=few)


@pytest.mark.clause("S2")
@given(square=st.fractions(min_value=Fraction(1, 10**40), max_value=10**40))
def test_inverse_root(square: Fraction) -> None:
    """The inverse root is right to 2^-BITS: one unit more would be too large."""
    root = oracle.inverse_root(square)
    assert root**2 * square <= 1 < (root * (1 + Fraction(1, 2**oracle.BITS))) ** 2 * square


numbers = st.floats(-1e60, 1e60, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-60)


def value_of(z: Double) -> Fraction:
    return Fraction(float(z.high)) + Fraction(float(z.low))


@given(a=numbers, b=numbers, c=numbers, d=numbers)
@example(a=1.0, b=2.0**-53, c=-1.0, d=2.0**-106)
def test_doubles_err_by_less_than_they_say(a: float, b: float, c: float, d: float) -> None:
    """Sums and products of 106-bit numbers are right to 2^-100 of the result, even after cancellation."""
    first, second = (add(double(p), double(q * 2.0**-60)) for p, q in ((a, b), (c, d)))
    for operation, exact in ((add, value_of(first) + value_of(second)), (multiply, value_of(first) * value_of(second))):
        got = value_of(operation(first, second))
        assert abs(got - exact) <= abs(exact) / 2**100 + Fraction(1, 2**1000)


@given(numerator=st.integers(-(10**30), 10**30), denominator=st.integers(1, 10**30), got=numbers)
def test_doubles_of_fractions_and_distances(numerator: int, denominator: int, got: float) -> None:
    exact = Fraction(numerator, denominator)
    assert abs(value_of(double(exact)) - exact) <= abs(exact) / 2**105
    measured = Fraction(float(distance(np.float64(got), double(exact))))  # type: ignore[arg-type]
    true = abs(Fraction(got) - exact)
    assert abs(measured - true) <= true / 2**51 + abs(exact) / 2**104


@pytest.mark.clause("S2", "S3", "S13")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(tuple(LARGEST_KAPPA)),
    far=st.booleans(),
    training=st.booleans(),
    power=st.sampled_from((-480, 0, 480)),
)
def test_measured_distances_are_upper_bounds(seed: int, dtype: str, far: bool, training: bool, power: int) -> None:
    """A measured distance is at least the true one, and exceeds it by less than 2^-40 of a rounding."""
    case = sample(seed, dtype, (5, 2, 3), kappa=LARGEST_KAPPA[dtype] if far else 1.0, training=training)
    if dtype == "float64":
        case = scaled(case, power)
    rng, nothing = np.random.default_rng(seed), np.zeros(2)
    y, dx = (rng.normal(size=case.x.shape) for _ in range(2))
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    for one in measure(case, Outcome(y, None, None, dx, nothing, nothing)):
        c = one.place
        assert case.gamma is not None
        assert case.beta is not None
        k = one.channel.exponent
        x, dy = (oracle.row(a[:, c].ravel().astype(np.float64).tolist()) for a in (case.x, case.dy))
        s, gamma = exact_statistics(case, x, c), Fraction(float(case.gamma[c]))
        d = oracle.derivatives(x, dy, s, gamma, training=training)
        exact_y = oracle.output(x, s, gamma, Fraction(float(case.beta[c])))
        exact_dx = ExactRow(
            [n << k if k > 0 else n for n in d.x.numerators], d.x.denominator << -k if k < 0 else d.x.denominator
        )
        slope = abs(float(gamma * s.root * Fraction(2) ** k))
        for name, got, exact, size in (("y", y, exact_y, 1.0), ("dx", np.ldexp(dx, k), exact_dx, slope)):
            true = exact.distances(got[:, c].ravel().tolist())
            assert all(t <= m * (1 + 2.0**-50) for t, m in zip(true, one.errors[name].tolist(), strict=True))
            limit = unit * 2.0**-6 * size
            assert all(m <= t * (1 + 2.0**-50) + limit for t, m in zip(true, one.errors[name].tolist(), strict=True))
        expected = {"dgamma": d.gamma, "dbeta": d.beta}
        for name, value in expected.items():
            assert math.isclose(one.errors[name][0], abs(float(value)), rel_tol=2.0**-50)


def scaled(case: Case, power: int) -> Case:
    """Return the same problem in other units."""
    mean, var = (np.asarray(v, np.float64) for v in (case.running_mean, case.running_var))
    x, mean, var = np.ldexp(case.x, power), np.ldexp(mean, power), np.ldexp(var, 2 * power)
    return case._replace(x=x, running_mean=mean, running_var=var, eps=math.ldexp(case.eps, 2 * power))


def exact_statistics(case: Case, x: ExactRow, c: int) -> oracle.Statistics:
    if case.training:
        return oracle.batch_statistics(x, Fraction(case.eps))
    assert case.running_mean is not None
    assert case.running_var is not None
    mean, variance = (Fraction(float(v[c])) for v in (case.running_mean, case.running_var))
    return oracle.given_statistics(len(x.numerators), mean, variance, Fraction(case.eps))
