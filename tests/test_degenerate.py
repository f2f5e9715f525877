"""Clause S11: channels of one value, and of none; and S14's refusal of an unbiased variance of one value."""

from __future__ import annotations

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import DTYPES, equal, statistics_dtype
from polybn.conformance.strategies import sample
from polybn.spec import RunningVariance
from tests.support.cases import Outcome, run

SINGLE = [((1, 5), 1), ((1, 5, 1, 1), 1), ((5, 1), 0), ((1, 1, 1, 5), -1), ((1, 1, 1), 0)]
EMPTY = [
    ((0, 5), 1),
    ((0, 5, 3, 2), 1),
    ((7, 5, 0), 1),
    ((7, 0), 1),
    ((7, 0, 3), 1),
    ((0, 0), 0),
    ((2, 0, 3, 5), -1),
    ((0, 3, 5), 0),
]


@pytest.mark.clause("S11")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SINGLE)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_one_value(backend: str, dtype: str, shape: tuple[int, ...], axis: int, eps: float) -> None:
    """With m = 1, y is beta, running statistics move towards the value and 0, and dx and dgamma are 0."""
    case = sample(1, dtype, shape, axis, kappa=4.0, momentum=0.5, eps=eps)
    outcome = run(polybn.backend(backend), case)
    wide = statistics_dtype(case.x)
    assert case.beta is not None
    assert case.running_mean is not None
    assert case.running_var is not None
    assert equal(outcome.y.ravel(), case.beta.astype(case.x.dtype))
    half = wide.type(0.5)
    assert equal(outcome.running_mean, half * case.running_mean + half * case.x.ravel().astype(wide))
    assert equal(outcome.running_var, half * case.running_var)
    assert not outcome.dx.any()
    assert outcome.dgamma is not None
    assert not outcome.dgamma.any()
    assert equal(outcome.dbeta, case.dy.ravel().astype(wide))


@pytest.mark.clause("S11", "S14")
@pytest.mark.parametrize(("shape", "axis"), SINGLE)
def test_one_value_unbiased(backend: str, shape: tuple[int, ...], axis: int) -> None:
    """An unbiased variance of one value is refused in training, and allowed in inference."""
    b, case = polybn.backend(backend), sample(1, "float32", shape, axis, running_variance="unbiased")
    with pytest.raises(polybn.DomainError, match="running_variance"):
        run(b, case)
    run(b, case._replace(training=False))


@pytest.mark.clause("S11")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), EMPTY)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("running_variance", ["biased", "unbiased"])
def test_no_value(
    backend: str, dtype: str, shape: tuple[int, ...], axis: int, training: bool, running_variance: RunningVariance
) -> None:
    """With m = 0, y is empty, running statistics keep their bits, gradients are 0, and nothing warns."""
    b = polybn.backend(backend)
    case = sample(2, dtype, shape, axis, training=training, momentum=0.25, running_variance=running_variance)
    outcome = run(b, case)
    assert equal(outcome.y, case.x)
    assert equal(outcome.dx, case.x)
    assert equal(outcome.running_mean, case.running_mean)
    assert equal(outcome.running_var, case.running_var)
    assert_zero_vectors(outcome, shape[axis])
    bare = run(b, case._replace(gamma=None, beta=None))
    assert bare.dgamma is None
    assert bare.dbeta is None
    masked = run(b, case._replace(where=np.ones(shape, bool)))
    assert equal(masked.y, case.x)
    assert equal(masked.running_mean, case.running_mean)


def assert_zero_vectors(outcome: Outcome, channels: int) -> None:
    for vector in outcome[4:]:
        assert vector is None or (vector.shape == (channels,) and not vector.any())


@pytest.mark.clause("S11", "S15")
@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_moments_of_no_value(backend: str, shape: tuple[int, ...], axis: int) -> None:
    """The moments of no values have count 0, m2 0 and a finite mean, without a warning."""
    b = polybn.backend(backend)
    count, mean, m2, low = (b.to_numpy(a) for a in polybn.moments(b.asarray(np.zeros(shape, np.float32)), axis=axis))
    assert count.shape == mean.shape == m2.shape == low.shape == (shape[axis],)
    assert not count.any()
    assert not m2.any()
    assert np.isfinite(mean).all()
