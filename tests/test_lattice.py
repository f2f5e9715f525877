"""Inputs whose exact answers are floating-point numbers: every result is compared with ``==``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import DTYPES, Array, case_of, equal, statistics_dtype
from polybn.conformance.strategies import Lattice, lattice, lattices
from tests.cases import run

TIGHT = (3, 1, 4)
"""The pattern of variance 5: its squares add up exactly in float32 as far as m = 2^21."""


def blend(momentum: float, old: Array | None, batch: Array, wide: np.dtype[Any]) -> Array:
    """Return the new running statistic; a batch's that is too large for its dtype is infinity (S10)."""
    assert old is not None
    with np.errstate(over="ignore", invalid="ignore"):
        new = momentum * old.astype(np.float64) + (1 - momentum) * batch.astype(wide).astype(np.float64)
    return old if momentum == 1 else new.astype(wide)


def assert_forward(backend: str, made: Lattice) -> None:
    case = made.case
    outcome, wide = run(polybn.backend(backend), case), statistics_dtype(case.x)
    assert equal(outcome.y, made.y.astype(case.x.dtype))
    assert equal(outcome.running_mean, blend(case.momentum, case.running_mean, made.mean, wide))
    assert equal(outcome.running_var, blend(case.momentum, case.running_var, made.variance, wide))


def assert_backward(backend: str, made: Lattice) -> None:
    outcome, wide = run(polybn.backend(backend), made.case), statistics_dtype(made.case.x)
    assert equal(outcome.dx, made.dx.astype(made.case.x.dtype))
    assert equal(outcome.dgamma, made.dgamma.astype(wide))
    assert equal(outcome.dbeta, made.dbeta.astype(wide))


@pytest.mark.clause("S1", "S2", "S3", "S4", "S6")
@given(made=lattices())
def test_training(backend: str, made: Lattice) -> None:
    """Output and running statistics are the exact ones, at any offset, rank, axis and dtype."""
    assert_forward(backend, made)


@pytest.mark.clause("S1", "S6", "S13")
@given(made=lattices())
def test_gradients(backend: str, made: Lattice) -> None:
    """dx, dgamma and dbeta are the exact ones, rounded once to the stored type."""
    assert_backward(backend, made)


@pytest.mark.clause("S10", "S13")
@given(made=lattices(wide=True))
def test_beyond_the_range(backend: str, made: Lattice) -> None:
    """Where v + eps overflows or vanishes, the answers are as exact as ever, running_var may be infinity."""
    assert_forward(backend, made)
    assert_backward(backend, made)


@pytest.mark.clause("S1", "S2", "S3")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(tuple(DTYPES)),
    rest=st.sampled_from(((12,), (4, 5), (3, 4), (2, 3, 2), (5, 4, 7), (2, 1, 2, 11), (1, 3, 2, 2))),
    place=st.integers(0, 3),
    channels=st.sampled_from((1, 2, 3, 65, 130)),
)
def test_uneven_sizes(backend: str, seed: int, dtype: str, rest: tuple[int, ...], place: int, channels: int) -> None:
    """The same, where m is four times an odd number and C is not a multiple of any vector width."""
    assert_forward(backend, lattice(seed, dtype, channels, rest, min(place, len(rest)), offset=17))


@pytest.mark.clause("S1", "S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "rest"), [(65, (8, 16, 16)), (130, (64, 8)), (70_000, (16,))])
def test_many_channels(backend: str, dtype: str, channels: int, rest: tuple[int, ...]) -> None:
    """Channels beyond every vector width, and beyond every grid limit."""
    made = lattice(channels, dtype, channels, rest, 1, offset=17)
    assert_forward(backend, made)
    if channels != 65:  # m = 2048 times the largest squares would leave float32's integers
        assert_backward(backend, made)


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("m", [65_540, 131_072, 2**20])
def test_long_channels(backend: str, m: int) -> None:
    """As many values a channel as overflow 16-bit and block counters; y, statistics and gradients are exact."""
    b, (low, high, q) = polybn.backend(backend), TIGHT
    rng = np.random.default_rng(m)
    k = np.stack([rng.permutation(np.tile([-low, -high, high, low], m // 4)) for _ in range(3)], axis=1)
    offset, gamma, beta = np.array([0, 3, -3]), np.array([2, -1, 0.5]), np.array([1, -2, 3])
    old = (np.array([4, -6, 8]), np.array([2, 6, 10]))
    # g = k + 1: sum(g) = m, sum(g k) = 5 m, so dx = gamma / q * (k - k 5 / 16).
    x, dy = (z.astype(np.float32) for z in (k + offset, k + 1))
    outcome = run(b, case_of(x, (gamma, beta, *old), dy, eps=11.0, momentum=0.5))
    assert np.array_equal(outcome.y, gamma * k / q + beta)
    assert outcome.running_mean is not None
    assert outcome.running_var is not None
    assert np.array_equal(outcome.running_mean, (old[0] + offset) / 2)
    assert np.array_equal(outcome.running_var, (old[1] + 5) / 2)
    assert outcome.dbeta is not None
    assert outcome.dgamma is not None
    assert np.array_equal(outcome.dbeta, np.full(3, m))
    assert np.array_equal(outcome.dgamma, np.full(3, 5 * m / q))
    assert np.array_equal(outcome.dx, gamma / q * k * (1 - 5 / q**2))


@pytest.mark.clause("S2", "S8", "S13")
@pytest.mark.parametrize("value", [1.0, 0.1])
def test_more_values_than_float32_counts(backend: str, value: float) -> None:
    """2^24 + 4 equal values: y is beta, the mean is the value, the variance 0, and dbeta counts them all."""
    m = 2**24 + 4
    x = np.full((m, 1), value, np.float32)
    outcome = run(polybn.backend(backend), case_of(x, ([2], [-3], [7], [5]), np.ones_like(x), momentum=0.0))
    assert (outcome.y == -3).all()
    assert outcome.running_mean == np.float32(value)
    assert outcome.running_var == 0
    assert outcome.dbeta == m
    assert outcome.dgamma == 0
    assert not outcome.dx.any()


@pytest.mark.clause("S5", "S6", "S13")
@given(made=lattices(), seed=st.integers(0, 2**32))
def test_inference(backend: str, made: Lattice, seed: int) -> None:
    """With running statistics that are not the batch's, output and all five gradients are exact."""
    rng, case = np.random.default_rng(seed), made.case
    s = (case.eps / 11) ** 0.5
    channels = len(made.mean)
    mean, q = made.mean + s * rng.integers(1, 9, channels), rng.choice([4.0, 8.0, 16.0, 32.0], channels)
    wide = statistics_dtype(case.x)
    case = case._replace(training=False, running_mean=mean.astype(wide), running_var=(s**2 * (q**2 - 11)).astype(wide))
    assert case.gamma is not None
    assert case.beta is not None
    broad = [1] * case.x.ndim
    broad[case.axis] = channels
    gamma, beta, mean, root = (v.astype(np.float64).reshape(broad) for v in (case.gamma, case.beta, mean, 1 / (q * s)))
    g, xhat = case.dy.astype(np.float64), (case.x.astype(np.float64) - mean) * root
    others = tuple(i for i in range(case.x.ndim) if i != case.axis)
    sum_g, sum_gx = (z.sum(axis=others, keepdims=True) for z in (g, g * xhat))
    outcome = run(polybn.backend(backend), case)
    assert equal(outcome.y, (gamma * xhat + beta).astype(case.x.dtype))
    assert equal(outcome.dx, (gamma * root * g).astype(case.x.dtype))
    expected = (sum_gx, sum_g, -gamma * root * sum_g, -gamma * root**2 * sum_gx / 2)
    for got, exact in zip(outcome[4:], expected, strict=True):
        assert equal(got, exact.ravel().astype(wide))
    assert equal(outcome.running_mean, case.running_mean)
    assert equal(outcome.running_var, case.running_var)
