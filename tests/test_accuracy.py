"""Clauses S2 to S6 on random data: every value within a rigorous bound of the exact result, at any kappa."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import bounds, oracle
from polybn.conformance.cases import DTYPES, Array, Case, rows
from polybn.conformance.certify import certify, within, within_one
from polybn.conformance.strategies import cases, sample
from tests.cases import run

TABLE = (64, 4, 28, 28)
"""The shape of the accuracy table: LeNet's first batch norm, of four channels."""


@pytest.mark.clause("S2", "S3", "S4", "S5", "S6", "S13")
@given(case=cases())
def test_everything_within_the_envelope(backend: str, case: Case) -> None:
    """Y, running statistics and all gradients, value by value, in training and inference."""
    certify(case, run(polybn.backend(backend), case))


def exact_rows(x: Array, eps: float) -> list[oracle.Row]:
    values = [oracle.row(channel) for channel in rows(x, 1).tolist()]
    one, zero = Fraction(1), Fraction(0)
    return [oracle.output(v, oracle.batch_statistics(v, Fraction(eps)), one, zero) for v in values]


def largest_error(backend: str, x: Array) -> float:
    """Return max |error of y| of a plain call, gamma and beta absent."""
    b = polybn.backend(backend)
    y = rows(b.to_numpy(polybn.batch_norm(b.asarray(x), training=True).y), 1)
    return max(max(exact.distances(got)) for exact, got in zip(exact_rows(x, 1e-5), y.tolist(), strict=True))


@pytest.mark.clause("S2", "S3", "S10")
@pytest.mark.parametrize(("mean", "scale"), [(0, 1), (10, 1), (1e3, 1), (1e4, 1), (1e4, 1e-2), (1e6, 1), (0, 1e25)])
def test_accuracy_table(backend: str, mean: float, scale: float) -> None:
    """float32: max |error of y| <= 1e-6, at kappa from 1 to 1e6, and at scale 1e25."""
    x = (mean + scale * np.random.default_rng(0).normal(size=TABLE)).astype(np.float32)
    assert largest_error(backend, x) <= 1e-6


@pytest.mark.clause("S2", "S3", "S8")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1234.567, 0.1, 1e4 + 0.1])
def test_accuracy_table_constant(backend: str, dtype: str, value: float) -> None:
    """A constant channel gives exactly beta."""
    b = polybn.backend(backend)
    x = np.full(TABLE, value).astype(DTYPES[dtype])
    wide = np.float64 if dtype == "float64" else np.float32
    gamma, beta = np.array([1.5, -2, 3, 7], wide), np.array([0.25, -3, 0, 17], wide)
    y = b.to_numpy(polybn.batch_norm(b.asarray(x), b.asarray(gamma), b.asarray(beta), training=True).y)
    assert np.array_equal(y.astype(np.float64), np.broadcast_to(beta[:, None, None], TABLE))


@pytest.mark.clause("S2", "S3")
@pytest.mark.parametrize("mean", [0, 10, 1e3, 1e4, 1e6, 1e12])
def test_accuracy_table_float64(backend: str, mean: float) -> None:
    """The table for float64: 1e-6 is 17 roundings of float32, and 2e-15 as many of float64."""
    x = mean + np.random.default_rng(0).normal(size=(16, 4, 28, 28))
    assert largest_error(backend, x) <= 2e-15


@pytest.mark.clause("S2", "S3", "S6")
@pytest.mark.parametrize(
    ("dtype", "mean"), [("float16", 0), ("float16", 10), ("float16", 1e3), ("bfloat16", 0), ("bfloat16", 10)]
)
def test_accuracy_table_halves(backend: str, dtype: str, mean: float) -> None:
    """The table for stored halves: the correct rounding of a value within 1e-6 of the exact one."""
    b = polybn.backend(backend)
    x = (mean + np.random.default_rng(0).normal(size=TABLE)).astype(DTYPES[dtype])
    y = rows(b.to_numpy(polybn.batch_norm(b.asarray(x), training=True).y), 1)
    f = bounds.FORMATS[dtype]
    for exact, got in zip(exact_rows(x, 1e-5), y, strict=True):
        within("y", got, exact, 1e-6 + f.stored * (np.abs(exact.floats()) + 1e-6) + f.grain)


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", [0.0, 10.0, 1e3, 1e6])
def test_large_maps(backend: str, dtype: str, kappa: float) -> None:
    """The same on a channel of several thousand values, forward and backward."""
    most = {"float16": 30.0, "bfloat16": 5.0}.get(dtype, kappa)
    case = sample(int(kappa), dtype, (13, 3, 19, 17), kappa=min(kappa, most), scale=2.3)
    certify(case, run(polybn.backend(backend), case))


@pytest.mark.clause("S2", "S3")
@given(seed=st.integers(0, 2**32), shift=st.integers(-60_000, 60_000), factor=st.sampled_from((-7, -1, 1, 3, 5)))
def test_affine_equivariance(backend: str, seed: int, shift: int, factor: int) -> None:
    """BN(a x + c; a^2 eps) = sign(a) BN(x; eps), where a x + c is exact; so with eps = 0."""
    b, rng = polybn.backend(backend), np.random.default_rng(seed)
    base = sample(seed, "float32", (7, 3, 11), eps=float(rng.choice([0.0, 2.0**-7])))
    x = np.rint(base.x.astype(np.float64) * 8)
    first = base._replace(x=x.astype(np.float32), beta=None)
    other = first._replace(x=(factor * x + shift).astype(np.float32), eps=factor**2 * first.eps)
    (a, bound_a), (c, bound_c) = ((out.y, certify(case, out).y) for case in (first, other) for out in [run(b, case)])
    assert (np.abs(np.sign(factor) * rows(a, 1) - rows(c, 1)) <= (bound_a + bound_c) * bounds.SAFETY).all()


@pytest.mark.clause("S3")
@given(case=cases(("float32", "float64"), training=True))
def test_mean_and_variance_of_the_output(backend: str, case: Case) -> None:
    """y has mean beta and variance gamma^2 v / (v + eps), not gamma^2."""
    outcome = run(polybn.backend(backend), case)
    envelope = certify(case, outcome).y
    for c, (x, y, bound) in enumerate(zip(rows(case.x, case.axis), rows(outcome.y, case.axis), envelope, strict=True)):
        s = oracle.batch_statistics(oracle.row(x.tolist()), Fraction(case.eps))
        got = oracle.batch_statistics(oracle.row(y.tolist()), Fraction(0))
        gamma = Fraction(1 if case.gamma is None else float(case.gamma[c]))
        beta = Fraction(0 if case.beta is None else float(case.beta[c]))
        within_one("mean(y)", float(got.mean), beta, float(bound.mean()) * bounds.SAFETY + 2**-52 * abs(float(beta)))
        spread = float(gamma**2 * s.variance / s.square)
        # The variance of y + e is within 2 sqrt(var(y) mean(e^2)) + mean(e^2) of the variance of y.
        square = float((bound**2).mean())
        within_one(
            "var(y)", float(got.variance), Fraction(spread), 2 * (spread * square) ** 0.5 + square + 2**-52 * spread
        )


@pytest.mark.clause("S3")
@given(seed=st.integers(0, 2**32), eps=st.sampled_from((1e-5, 0.2, 3.0)))
def test_not_idempotent(backend: str, seed: int, eps: float) -> None:
    """BN(BN(x)) = c / sqrt(v + eps (v + eps)): eps counts again, relative to a variance near 1."""
    b = polybn.backend(backend)
    first = sample(seed, "float64", (5, 3, 7), eps=eps)._replace(gamma=None, beta=None)
    once = run(b, first)
    second = first._replace(x=once.y)
    twice = run(b, second)
    e1, e2 = certify(first, once).y, certify(second, twice).y
    for c, (x, y) in enumerate(zip(rows(first.x, 1), rows(twice.y, 1), strict=True)):
        values = oracle.row(x.tolist())
        s = oracle.batch_statistics(values, Fraction(0))
        square = s.variance + Fraction(eps) * (s.variance + Fraction(eps))
        exact = oracle.output(values, s._replace(root=oracle.inverse_root(square)), Fraction(1), Fraction(0))
        # An error e of the argument becomes r (|e_i| + mean|e| + |xhat_i| mean|e xhat|) at most, to first order,
        # and |xhat| <= sqrt(m); the hundredth covers the second.
        root = float(oracle.batch_statistics(oracle.row(rows(once.y, 1)[c].tolist()), Fraction(eps)).root)
        magnified = 1.01 * root * (2 + len(x) ** 0.5) * float(e1[c].max())
        within("BN(BN(x))", y, exact, e2[c] + magnified)


@pytest.mark.clause("S5")
@given(case=cases(training=False))
def test_fold_is_inference(backend: str, case: Case) -> None:
    """scale = gamma r and shift = beta - running_mean scale, to a few roundings: what inference computes."""
    b = polybn.backend(backend)
    vectors = (case.gamma, case.beta, case.running_mean, case.running_var)
    folded = polybn.fold(*(None if v is None else b.asarray(v) for v in vectors), eps=case.eps)
    scale, shift = (b.to_numpy(a) for a in folded)
    assert case.running_mean is not None
    assert case.running_var is not None
    unit = bounds.FORMATS[case.x.dtype.name].unit
    for c in range(len(scale)):
        gamma, beta = (default if v is None else float(v[c]) for v, default in ((case.gamma, 1.0), (case.beta, 0.0)))
        mean = Fraction(float(case.running_mean[c]))
        exact = Fraction(gamma) * oracle.inverse_root(Fraction(float(case.running_var[c])) + Fraction(case.eps))
        # eps, the sum, the root (these three are halved), the quotient, the product.
        within_one("scale", float(scale[c]), exact, bounds.roundings(5, unit) * abs(float(exact)))
        product = abs(float(mean * exact))
        within_one(
            "shift", float(shift[c]), Fraction(beta) - mean * exact,
            bounds.roundings(7, unit) * product + bounds.roundings(1, unit) * (product + abs(beta)),
        )  # fmt: skip


@pytest.mark.clause("S5")
@given(case=cases(("float32", "float64"), training=False), seed=st.integers(0, 2**32))
def test_inference_is_affine(backend: str, case: Case, seed: int) -> None:
    """Two inputs differ in the output by gamma r times their difference."""
    b = polybn.backend(backend)
    other = case._replace(x=np.random.default_rng(seed).permuted(case.x.ravel()).reshape(case.x.shape))
    first, second = run(b, case), run(b, other)
    envelope = certify(case, first).y + certify(other, second).y
    slope = [
        Fraction(1.0 if case.gamma is None else float(case.gamma[c]))
        * oracle.inverse_root(Fraction(float(v)) + Fraction(case.eps))
        for c, v in enumerate(case.running_var if case.running_var is not None else ())
    ]
    tables = [rows(a, case.axis) for a in (case.x, other.x, first.y, second.y)]
    for c, (x1, x2, y1, y2) in enumerate(zip(*tables, strict=True)):
        rises = oracle.combine(Fraction(0), (slope[c], oracle.row(x1.tolist())), (-slope[c], oracle.row(x2.tolist())))
        # y1 - y2 is formed here, in float64: one rounding more.
        within("y1 - y2", y1 - y2, rises, envelope[c] + 2.0**-52 * (np.abs(y1) + np.abs(y2)))
