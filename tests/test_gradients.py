"""Clause S13, first order: exact identities, the adjoint of the exact tangent, and the special values of gamma."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import DTYPES, Case, equal, statistics_dtype
from polybn.conformance.strategies import sample
from tests.support.cases import run
from tests.support.drawing import cases


@pytest.mark.clause("S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_gamma_zero(backend: str, dtype: str, training: bool) -> None:
    """With gamma = 0, y is beta and dx is 0, and dgamma is the same as for any other gamma."""
    b, case = polybn.backend(backend), sample(3, dtype, (11, 3, 5), training=training)
    assert case.gamma is not None
    assert case.beta is not None
    usual = run(b, case)
    outcome = run(b, case._replace(gamma=np.zeros_like(case.gamma)))
    assert np.array_equal(outcome.y, np.broadcast_to(case.beta[:, None], case.x.shape).astype(case.x.dtype))
    assert not outcome.dx.any()
    assert equal(outcome.dgamma, usual.dgamma)
    assert equal(outcome.dbeta, usual.dbeta)
    if not training:
        assert outcome.drunning_mean is not None
        assert outcome.drunning_var is not None
        assert not outcome.drunning_mean.any()
        assert not outcome.drunning_var.any()


@pytest.mark.clause("S3", "S13")
@given(case=cases())
def test_absent_parameters(backend: str, case: Case) -> None:
    """gamma=None and beta=None give the bits of 1 and 0, and have no gradient."""
    b, wide, channels_ = polybn.backend(backend), statistics_dtype(case.x), case.x.shape[case.axis]
    absent = run(b, case._replace(gamma=None, beta=None))
    present = run(b, case._replace(gamma=np.ones(channels_, wide), beta=np.zeros(channels_, wide)))
    assert absent.dgamma is None
    assert absent.dbeta is None
    for name in ("y", "dx", "running_mean", "running_var", "drunning_mean", "drunning_var"):
        assert equal(getattr(absent, name), getattr(present, name)), name


@pytest.mark.clause("S13")
@given(case=cases(training=True))
def test_no_gradient_of_running_statistics_in_training(backend: str, case: Case) -> None:
    """In training the gradients of running statistics are None."""
    outcome = run(polybn.backend(backend), case)
    assert outcome.drunning_mean is None
    assert outcome.drunning_var is None


@pytest.mark.clause("S7", "S13")
@given(case=cases(), seed=st.integers(0, 2**32))
def test_pullback_is_a_function(backend: str, case: Case, seed: int) -> None:
    """A pullback may be called again: the same dy gives the same bits, also after calls with another dy."""
    b, rng = polybn.backend(backend), np.random.default_rng(seed)
    arrays = [None if a is None else b.asarray(a) for a in case.arrays().values()]
    _, pullback = polybn.batch_norm_vjp(*arrays, **case.options())
    dy = b.asarray(case.dy)
    first = pullback(dy)
    pullback(b.asarray(rng.normal(size=case.dy.shape).astype(case.dy.dtype)))
    for a, c in zip(first, pullback(dy), strict=True):
        assert equal(None if a is None else b.to_numpy(a), None if c is None else b.to_numpy(c))
