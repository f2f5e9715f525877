"""Clause S13, first order: exact identities, the adjoint of the exact tangent, and the special values of gamma."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import oracle
from polybn.conformance.oracle import Row, Statistics
from tests import bounds
from tests.cases import DTYPES, Case, equal, rows, run, statistics_dtype
from tests.certify import certify, within_one
from tests.strategies import cases, sample


def channels(case: Case) -> list[tuple[Row, Row, Statistics, Fraction]]:
    """Return x, dy, the exact statistics and gamma of each channel."""
    found = []
    for c, (x, dy) in enumerate(zip(rows(case.x, case.axis), rows(case.dy, case.axis), strict=True)):
        values, eps = oracle.row(x.tolist()), Fraction(case.eps)
        s = oracle.batch_statistics(values, eps)
        if not case.training:
            assert case.running_mean is not None
            assert case.running_var is not None
            mean, var = (Fraction(float(v[c])) for v in (case.running_mean, case.running_var))
            s = oracle.given_statistics(len(x), mean, var, eps)
        gamma = Fraction(1.0 if case.gamma is None else float(case.gamma[c]))
        found.append((values, oracle.row(dy.tolist()), s, gamma))
    return found


@pytest.mark.clause("S13")
@given(case=cases(training=True))
def test_dx_is_orthogonal(backend: str, case: Case) -> None:
    """``sum(dx) = 0`` and ``sum(dx (x - mean)) = gamma dgamma / r eps / (v + eps)``, to the sum of the bounds."""
    outcome = run(polybn.backend(backend), case)
    envelope = certify(case, outcome).dx
    for c, (x, dy, s, gamma) in enumerate(channels(case)):
        dx, centered = oracle.row(rows(outcome.dx, case.axis)[c].tolist()), oracle.centered(x, s)
        within_one("sum(dx)", float(oracle.total(dx)), Fraction(0), float(envelope[c].sum()) * bounds.SAFETY)
        exact = gamma * s.root * oracle.dot(dy, centered) * Fraction(case.eps) / s.square
        reach = float((np.abs(centered.floats()) * envelope[c]).sum())
        within_one(
            "sum(dx (x - mean))",
            float(oracle.dot(dx, centered)),
            exact,
            reach * (1 + 1e-6) + 2**-50 * abs(float(exact)),
        )


@pytest.mark.clause("S13")
@given(case=cases(), seed=st.integers(0, 2**32))
def test_adjoint(backend: str, case: Case, seed: int) -> None:
    """``<J u, dy> = <u, pullback(dy)>`` for random tangents u of all arguments, J from the exact formula."""
    b, rng = polybn.backend(backend), np.random.default_rng(seed)
    wide = statistics_dtype(case.x)
    ones, zeros = np.ones(case.x.shape[case.axis], wide), np.zeros(case.x.shape[case.axis], wide)
    case = case._replace(
        gamma=ones if case.gamma is None else case.gamma, beta=zeros if case.beta is None else case.beta
    )
    outcome = run(b, case)
    certify(case, outcome)
    names = ("dgamma", "dbeta") if case.training else ("dgamma", "dbeta", "drunning_mean", "drunning_var")
    for c, (x, dy, s, gamma) in enumerate(channels(case)):
        u = oracle.row(rng.normal(0.2, 1, len(dy.numerators)).tolist())
        by_name = {name: Fraction(float(z)) for name, z in zip(names, rng.normal(size=len(names)), strict=True)}
        if case.training:
            tangent = oracle.tangent(x, s, gamma, u, by_name["dgamma"], by_name["dbeta"])
        else:
            tangent = given_tangent(x, s, gamma, u, by_name)
        got = oracle.dot(u, oracle.row(rows(outcome.dx, case.axis)[c].tolist()))
        got += sum(t * Fraction(float(getattr(outcome, name)[c])) for name, t in by_name.items())
        error = got - oracle.dot(tangent, dy)
        assert abs(error) <= adjoint_bound(case, c, (x, dy, s, gamma), u, by_name)


def given_tangent(x: Row, s: Statistics, gamma: Fraction, u: Row, by_name: dict[str, Fraction]) -> Row:
    """Map tangents of all five arguments to the tangent of the output, in inference."""
    slope = gamma * s.root
    along = by_name["dgamma"] * s.root - slope * by_name["drunning_var"] / (2 * s.square)
    shift = by_name["dbeta"] - slope * by_name["drunning_mean"]
    return oracle.combine(shift, (slope, u), (along, oracle.centered(x, s)))


def adjoint_bound(
    case: Case, c: int, channel: tuple[Row, Row, Statistics, Fraction], u: Row, by_name: dict[str, Fraction]
) -> float:
    """Add up the bounds on the gradients, weighted by the tangents."""
    x, dy, s, gamma = channel
    f, length = bounds.FORMATS[case.x.dtype.name], len(x.numerators)
    errors = (bounds.training if case.training else bounds.inference)(x, s, case.eps, f, length)
    limits = bounds.gradients(errors, s, dy, float(gamma), f, batch=case.training)
    reach = float((np.abs(u.floats()) * limits.x).sum())
    return (1 + 1e-6) * (reach + sum(abs(float(t)) * float(getattr(limits, name[1:])) for name, t in by_name.items()))


@pytest.mark.clause("S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_gamma_zero(backend: str, dtype: str, training: bool) -> None:
    """With gamma = 0, y = beta, dx = 0 and dgamma is what it is for any other gamma."""
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
    """gamma=None and beta=None mean 1 and 0, to the bit, and have no gradient."""
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
    """Running statistics carry no gradient in training: the field is None."""
    outcome = run(polybn.backend(backend), case)
    assert outcome.drunning_mean is None
    assert outcome.drunning_var is None


@pytest.mark.clause("S7", "S13")
@given(case=cases(), seed=st.integers(0, 2**32))
def test_pullback_is_a_function(backend: str, case: Case, seed: int) -> None:
    """A pullback may be called again: the same dy gives the same bits, whatever it was called with in between."""
    b, rng = polybn.backend(backend), np.random.default_rng(seed)
    arrays = [None if a is None else b.asarray(a) for a in case.arrays().values()]
    _, pullback = polybn.batch_norm_vjp(*arrays, **case.options())
    dy = b.asarray(case.dy)
    first = pullback(dy)
    pullback(b.asarray(rng.normal(size=case.dy.shape).astype(case.dy.dtype)))
    for a, c in zip(first, pullback(dy), strict=True):
        assert equal(None if a is None else b.to_numpy(a), None if c is None else b.to_numpy(c))
