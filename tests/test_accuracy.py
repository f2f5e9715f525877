"""Clauses S2 to S6 on random data: every value is within a rigorous bound of the exact result, at any kappa."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

import polybn
from polybn.conformance import forms, oracle
from polybn.conformance.cases import DTYPES, Array, Case, rows
from polybn.conformance.certify import certify
from polybn.conformance.strategies import sample
from tests.support.cases import run
from tests.support.drawing import cases
from tests.support.within import within, within_one

TABLE = (64, 4, 28, 28)
"""The shape for the accuracy table: LeNet's first batch norm, with four channels."""


@pytest.mark.clause("S2", "S3", "S4", "S5", "S6", "S13")
@given(case=cases())
def test_everything_within_the_envelope(backend: str, case: Case) -> None:
    """y, running statistics and all gradients are within their bounds, in training and inference."""
    certify(case, run(polybn.backend(backend), case))


def exact_rows(x: Array, eps: float) -> list[oracle.ExactRow]:
    values = [oracle.row(channel) for channel in rows(x, 1).tolist()]
    one, zero = Fraction(1), Fraction(0)
    return [oracle.output(v, oracle.batch_statistics(v, Fraction(eps)), one, zero) for v in values]


def largest_error(backend: str, x: Array) -> float:
    """Return max |error of y| of a call without gamma and beta."""
    b = polybn.backend(backend)
    y = rows(b.to_numpy(polybn.batch_norm(b.asarray(x), training=True).y), 1)
    return max(max(exact.distances(got)) for exact, got in zip(exact_rows(x, 1e-5), y.tolist(), strict=True))


@pytest.mark.clause("S2", "S3", "S10")
@pytest.mark.parametrize(("mean", "scale"), [(0, 1), (10, 1), (1e3, 1), (1e4, 1), (1e4, 1e-2), (1e6, 1), (0, 1e25)])
def test_accuracy_table(backend: str, mean: float, scale: float) -> None:
    """In float32, max |error of y| <= 1e-6 for kappa from 1 to 1e6, and at scale 1e25."""
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
    """In float64, max |error of y| <= 2e-15, which is as many roundings, 17, as 1e-6 is in float32."""
    x = mean + np.random.default_rng(0).normal(size=(16, 4, 28, 28))
    assert largest_error(backend, x) <= 2e-15


@pytest.mark.clause("S2", "S3", "S6")
@pytest.mark.parametrize(
    ("dtype", "mean"), [("float16", 0), ("float16", 10), ("float16", 1e3), ("bfloat16", 0), ("bfloat16", 10)]
)
def test_accuracy_table_halves(backend: str, dtype: str, mean: float) -> None:
    """Half types hold the correct rounding of a value that is within 1e-6 of the exact one."""
    b = polybn.backend(backend)
    x = (mean + np.random.default_rng(0).normal(size=TABLE)).astype(DTYPES[dtype])
    y = rows(b.to_numpy(polybn.batch_norm(b.asarray(x), training=True).y), 1)
    f = forms.FORMATS[dtype]
    for exact, got in zip(exact_rows(x, 1e-5), y, strict=True):
        within("y", got, exact, 1e-6 + f.stored * (np.abs(exact.floats()) + 1e-6) + f.grain)


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", [0.0, 10.0, 1e3, 1e6])
def test_large_maps(backend: str, dtype: str, kappa: float) -> None:
    """The bounds also hold on a channel of several thousand values, forward and backward."""
    most = {"float16": 30.0, "bfloat16": 5.0}.get(dtype, kappa)
    case = sample(int(kappa), dtype, (13, 3, 19, 17), kappa=min(kappa, most), scale=2.3)
    certify(case, run(polybn.backend(backend), case))


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
    unit = forms.FORMATS[case.x.dtype.name].unit
    for c in range(len(scale)):
        gamma, beta = (default if v is None else float(v[c]) for v, default in ((case.gamma, 1.0), (case.beta, 0.0)))
        mean = Fraction(float(case.running_mean[c]))
        exact = Fraction(gamma) * oracle.inverse_root(Fraction(float(case.running_var[c])) + Fraction(case.eps))
        # eps, the sum, the root (these three are halved), the quotient, the product.
        within_one("scale", float(scale[c]), exact, forms.roundings(5, unit) * abs(float(exact)))
        product = abs(float(mean * exact))
        within_one(
            "shift", float(shift[c]), Fraction(beta) - mean * exact,
            forms.roundings(7, unit) * product + forms.roundings(1, unit) * (product + abs(beta)),
        )  # fmt: skip
