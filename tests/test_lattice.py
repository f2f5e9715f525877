"""Inputs whose exact answers are floating-point numbers: every result is compared with ``==``."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import oracle
from polybn.conformance.cases import DTYPES, Array, Case, equal, rows, statistics_dtype
from polybn.conformance.lattice import Lattice, lattice, many_values, more_than_float32_counts
from tests.support.cases import run
from tests.support.drawing import forms, lattices

"""A pattern of variance 5, whose squares add up exactly in float32 up to m = 2^21."""


def blend(momentum: float, old: Array | None, batch: Array, wide: np.dtype[Any]) -> Array:
    """Return the new running statistic; a batch statistic that is too large for its dtype becomes infinity (S10)."""
    assert old is not None
    with np.errstate(over="ignore", invalid="ignore"):
        new = momentum * old.astype(np.float64) + (1 - momentum) * batch.astype(wide).astype(np.float64)
    return old if momentum == 1 else new.astype(wide)


def exact_blend(case: Case, c: int) -> float:
    """Blend the exact variance of a channel, however large, and round once to the dtype of the statistics."""
    assert case.running_var is not None
    row = oracle.row(rows(case.x, case.axis)[c].tolist())
    variance, rho = oracle.batch_statistics(row, Fraction(case.eps)).variance, Fraction(case.momentum)
    exact = oracle.blend(Fraction(float(case.running_var[c])), variance, rho)
    if exact > Fraction(float(np.finfo(statistics_dtype(case.x)).max)):
        return math.inf
    return float(np.asarray(float(exact), statistics_dtype(case.x)))


def assert_forward(backend: str, made: Lattice) -> None:
    case = made.case
    outcome, wide = run(polybn.backend(backend), case), statistics_dtype(case.x)
    assert equal(outcome.y, made.y.astype(case.x.dtype))
    assert equal(outcome.running_mean, blend(case.momentum, case.running_mean, made.mean, wide))
    assert outcome.running_var is not None
    with_infinity = blend(case.momentum, case.running_var, made.variance, wide)
    # A variance that is too large for its dtype may count as infinity, or exactly if the new value is in range.
    beyond = made.variance > np.finfo(wide).max
    assert equal(outcome.running_var[~beyond], with_infinity[~beyond])
    for c in np.flatnonzero(beyond):
        as_it_is, got = exact_blend(case, int(c)), float(outcome.running_var[c])
        assert got == with_infinity[c] or got == as_it_is


def assert_backward(backend: str, made: Lattice) -> None:
    outcome, wide = run(polybn.backend(backend), made.case), statistics_dtype(made.case.x)
    assert equal(outcome.dx, made.dx.astype(made.case.x.dtype))
    assert equal(outcome.dgamma, made.dgamma.astype(wide))
    assert equal(outcome.dbeta, made.dbeta.astype(wide))


@pytest.mark.clause("S1", "S2", "S3", "S4", "S6")
@given(made=lattices())
def test_training(backend: str, made: Lattice) -> None:
    """Output and running statistics are exact, at any offset, rank, axis and dtype."""
    assert_forward(backend, made)


@pytest.mark.clause("S1", "S6", "S13")
@given(made=lattices())
def test_gradients(backend: str, made: Lattice) -> None:
    """dx, dgamma and dbeta are exact, rounded once to the stored type."""
    assert_backward(backend, made)


@pytest.mark.clause("S10", "S13")
@given(made=lattices(wide=True))
def test_beyond_the_range(backend: str, made: Lattice) -> None:
    """If v + eps overflows or vanishes, the answers are still exact, but running_var may be infinity."""
    assert_forward(backend, made)
    assert_backward(backend, made)


@pytest.mark.clause("S1", "S2", "S3")
@given(
    seed=st.integers(0, 2**32),
    form=forms(
        tuple(DTYPES),
        ((12,), (4, 5), (3, 4), (2, 3, 2), (5, 4, 7), (2, 1, 2, 11), (1, 3, 2, 2)),
        (0, 1, 2, 3),
        (1, 2, 3, 65, 130),
    ),
)
def test_uneven_sizes(backend: str, seed: int, form: tuple[str, tuple[int, ...], int, int]) -> None:
    """The same, where m is four times an odd number and C is not a multiple of any vector width."""
    dtype, rest, place, channels = form
    assert_forward(backend, lattice(seed, dtype, channels, rest, min(place, len(rest)), offset=17))


@pytest.mark.clause("S1", "S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "rest"), [(65, (8, 16, 16)), (130, (64, 8)), (70_000, (16,))])
def test_many_channels(backend: str, dtype: str, channels: int, rest: tuple[int, ...]) -> None:
    """The answers are exact for more channels than any vector width, and than any grid limit."""
    made = lattice(channels, dtype, channels, rest, 1, offset=17)
    assert_forward(backend, made)
    if channels != 65:  # m = 2048 times the largest squares would leave float32's integers
        assert_backward(backend, made)


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("m", [65_540, 131_072, 2**20])
def test_long_channels(backend: str, m: int) -> None:
    """All answers are exact for so many values per channel that 16-bit counters and block counters overflow."""
    made = many_values(m)
    assert_forward(backend, made)
    assert_backward(backend, made)


@pytest.mark.clause("S2", "S8", "S13")
@pytest.mark.parametrize("value", [1.0, 0.1])
def test_more_values_than_float32_counts(backend: str, value: float) -> None:
    """Of 2^24 + 4 equal values, y is beta, the mean is the value, the variance is 0, and dbeta counts them all."""
    made = more_than_float32_counts(value=value)
    assert_forward(backend, made)
    assert_backward(backend, made)


@pytest.mark.clause("S5", "S6", "S13")
@given(made=lattices(training=False))
def test_inference(backend: str, made: Lattice) -> None:
    """Output and all five gradients are exact, with running statistics that are not the batch's."""
    case, wide = made.case, statistics_dtype(made.case.x)
    outcome = run(polybn.backend(backend), case)
    slope, square = np.asarray(case.gamma, np.float64), made.variance + case.eps
    expected = {
        "y": made.y.astype(case.x.dtype), "running_mean": case.running_mean, "running_var": case.running_var,
        "dx": made.dx.astype(case.x.dtype), "dgamma": made.dgamma.astype(wide), "dbeta": made.dbeta.astype(wide),
        "drunning_mean": (-slope / np.sqrt(square) * made.dbeta).astype(wide),
        "drunning_var": (-slope / square * made.dgamma / 2).astype(wide),
    }  # fmt: skip
    for name, exact in expected.items():
        assert equal(getattr(outcome, name), exact), name
