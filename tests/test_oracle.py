"""The yardsticks, measured: the oracle against exact answers and a complex step, the bounds against wrong results."""

from __future__ import annotations

import cmath
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import oracle
from tests import bounds
from tests.bounds import VacuousBoundError
from tests.cases import rows, run
from tests.certify import certify
from tests.strategies import Lattice, lattices, sample


@pytest.mark.clause("S2", "S3", "S13")
@given(made=lattices())
def test_oracle_meets_the_lattice(made: Lattice) -> None:
    """The oracle gives the lattice's exact answers: rational numbers, to 2^-300."""
    case = made.case
    assert case.gamma is not None
    assert case.beta is not None
    tables = (rows(a, case.axis) for a in (case.x, case.dy, made.y, made.dx))
    for c, (x, dy, y, dx) in enumerate(zip(*tables, strict=True)):
        values, gamma = oracle.row(x.tolist()), Fraction(float(case.gamma[c]))
        s = oracle.batch_statistics(values, Fraction(case.eps))
        assert (s.mean, s.variance) == (made.mean[c], made.variance[c])
        assert max(oracle.output(values, s, gamma, Fraction(float(case.beta[c]))).distances(y.tolist())) < 2.0**-300
        d = oracle.derivatives(values, oracle.row(dy.tolist()), s, gamma, training=True)
        assert max(d.x.distances(dx.tolist())) <= 2.0**-300 * max(1, abs(dx).max())
        assert abs(d.gamma - Fraction(float(made.dgamma[c]))) < Fraction(1, 2**300)
        assert d.beta == made.dbeta[c]


def forward(
    x: list[complex], gamma: complex, beta: complex, statistics: tuple[complex, complex] | None, eps: float
) -> list[complex]:
    """Clause S3 or S5 in complex floats, analytic in every argument."""
    mean, variance = statistics or (sum(x) / len(x), sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x))
    return [(v - mean) / cmath.sqrt(variance + eps) * gamma + beta for v in x]


@pytest.mark.clause("S13")
@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 2**32), m=st.sampled_from((2, 3, 5, 7)), eps=st.sampled_from((1e-5, 0.3)))
def test_oracle_meets_the_complex_step(training: bool, seed: int, m: int, eps: float) -> None:
    """Each derivative is Im f(z + 1e-30 i) / 1e-30, to 1e-12 of the largest: the formulas of S13 are right."""
    rng, step = np.random.default_rng(seed), 1e-30j
    x, dy = rng.uniform(-1, 1, m) + 5 * np.arange(m), rng.normal(0.3, 1.2, m)
    point = [*x.tolist(), *rng.uniform(0.5, 2, 2).tolist(), *rng.uniform(1, 3, 2).tolist()]
    exact = _oracle_gradient(point, dy.tolist(), eps, training=training)
    for i in range(m + 2 if training else m + 4):
        z = [complex(v) + (step if i == j else 0) for j, v in enumerate(point)]
        y = forward(z[:m], z[m], z[m + 1], None if training else (z[m + 2], z[m + 3]), eps)
        slope = sum(g * v.imag for g, v in zip(dy.tolist(), y, strict=True)) / step.imag
        assert abs(slope - exact[i]) <= 1e-12 * max(1, *map(abs, exact))


def _oracle_gradient(point: list[float], dy: list[float], eps: float, *, training: bool) -> list[float]:
    m = len(dy)
    x, (gamma, _, mean, variance) = oracle.row(point[:m]), map(Fraction, point[m:])
    s = oracle.batch_statistics(x, Fraction(eps))
    if not training:
        s = oracle.given_statistics(m, mean, variance, Fraction(eps))
    d = oracle.derivatives(x, oracle.row(dy), s, gamma, training=training)
    return [*d.x.floats(), float(d.gamma), float(d.beta), float(d.running_mean), float(d.running_var)]


@pytest.mark.clause("S2")
@given(square=st.fractions(min_value=Fraction(1, 10**40), max_value=10**40))
def test_inverse_root(square: Fraction) -> None:
    """The inverse root is right to 2^-BITS: one unit more would be above it."""
    root = oracle.inverse_root(square)
    assert root**2 * square <= 1 < (root * (1 + Fraction(1, 2**oracle.BITS))) ** 2 * square


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("field", ["y", "running_mean", "running_var", "dx", "dgamma", "dbeta"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bounds_bite(field: str, dtype: str) -> None:
    """An error of a few hundred roundings, in one value of one field, is refused: the envelope is no wider."""
    case = sample(5, dtype, (11, 3, 7), kappa=8.0)
    outcome = run(polybn.backend("numpy"), case)
    certify(case, outcome)
    array = getattr(outcome, field).copy()
    coarse = 2.0**-53 if dtype == "float64" else 2.0**-24
    if field in ("y", "dx"):
        coarse = max(coarse, bounds.FORMATS[dtype].stored)
    largest = np.unravel_index(np.argmax(np.abs(array.astype(np.float64))), array.shape)
    array[largest] = array[largest] * (1 + (4 if coarse > 2.0**-20 else 600) * coarse)
    with pytest.raises(AssertionError, match="times its bound"):
        certify(case, outcome._replace(**{field: array}))


@pytest.mark.clause("S2")
@pytest.mark.parametrize("kappa", [0.0, 1e9])
def test_vacuous_bounds_raise(kappa: float) -> None:
    """A bound that certifies nothing is refused, not passed: constant channels, and kappa beyond 1 / u."""
    x = [kappa + 0.25, kappa + 0.5] * 20 if kappa else [0.25] * 40
    values = oracle.row(x)
    s = oracle.batch_statistics(values, Fraction(1e-5))
    with pytest.raises(VacuousBoundError):
        bounds.training(values, s, 1e-5, bounds.FORMATS["float32"], 40)
