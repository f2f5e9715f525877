"""Clause S13, second order: ``pullback.vjp`` against a complex step through the formulas of the first order."""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import forms, oracle
from polybn.conformance.cases import DTYPES, Array, Case, equal, rows
from polybn.conformance.forms import VACUOUS, VacuousBoundError
from polybn.conformance.strategies import sample
from polybn.spec import Gradients, SecondGradients
from tests.support.cases import errors
from tests.support.drawing import narrowed

STEP = 1e-30
Shape: TypeAlias = tuple[tuple[int, ...], int]
SHAPES: tuple[Shape, ...] = (((7, 3), 1), ((2, 3, 5), 0), ((2, 3, 5), -1), ((3, 2, 1, 2), 1))
"""Shapes of x, and the channel axis."""
ABSENT: tuple[tuple[str, ...], ...] = ((), ("gamma",), ("beta",), ("gamma", "beta"))


class Cotangents(NamedTuple):
    """Cotangents of dx, dgamma, dbeta, drunning_mean and drunning_var: of one channel, or arrays for all."""

    x: Any
    gamma: Any
    beta: Any
    running_mean: Any
    running_var: Any


def second(backend: str, case: Case, cotangents: Cotangents) -> SecondGradients:
    """Differentiate the pullback of a call on a backend, with host arrays as arguments and results."""
    b = polybn.backend(backend)

    def device(array: Array | None) -> Any:
        return None if array is None else b.asarray(array)

    arrays = [device(a) for a in case.arrays().values()]
    _, pullback = polybn.batch_norm_vjp(*arrays, **case.options(), where=device(case.where))
    first, pull_again = pullback.vjp(device(case.dy))
    for a, c in zip(first, pullback(device(case.dy)), strict=True):
        assert a is c is None or equal(b.to_numpy(a), b.to_numpy(c))
    result = pull_again(Gradients(*map(device, cotangents)))
    return SecondGradients(*(None if a is None else b.to_numpy(a) for a in result))


def pulled(z: Sequence[complex], m: int, weights: Cotangents, eps: float, *, training: bool) -> complex:
    """Return the weighted sum of S13's gradients; z holds dy, x, gamma and the running statistics, analytic in each."""
    g, x, gamma = z[:m], z[m : 2 * m], z[2 * m]
    mean, variance = sum(x) / m, sum((v - sum(x) / m) ** 2 for v in x) / m
    if not training:
        mean, variance = z[2 * m + 1], z[2 * m + 2]
    r = 1 / cmath.sqrt(variance + eps)
    xhat = [(v - mean) * r for v in x]
    sum_g, sum_gx = sum(g), sum(a * b for a, b in zip(g, xhat, strict=True))
    if training:
        dx = [gamma * r * (a - sum_g / m - b * sum_gx / m) for a, b in zip(g, xhat, strict=True)]
    else:
        dx = [gamma * r * a for a in g]
    value: complex = (
        sum(w * d for w, d in zip(weights.x, dx, strict=True)) + weights.gamma * sum_gx + weights.beta * sum_g
    )
    if not training:
        value += -weights.running_mean * gamma * r * sum_g - weights.running_var * gamma * r * r * sum_gx / 2
    return value


def stepped(point: list[float], at: int) -> list[complex]:
    """Add a complex step to one coordinate."""
    return [complex(v, STEP if i == at else 0.0) for i, v in enumerate(point)]


def majorants(
    g: Array, xhat: Array, r: float, gamma: float, w: Cotangents, *, training: bool
) -> tuple[Array, Array, float, float, float]:
    """Bound the absolute sums behind the derivatives by dy, x, gamma, running_mean and running_var."""
    m, a = len(g), np.abs(w.x)
    b, c, e, f = (abs(float(z)) for z in w[1:])
    g, X, gamma = np.abs(g), np.abs(xhat) + 1, abs(gamma)

    def project(z: Array) -> Array:
        return np.asarray(z + z.mean() + X * (z * X).mean())

    if training:
        inner = float((a * project(g)).sum())
        h = b * g + gamma * r * ((g * X).mean() * a + (a * X).mean() * g)
        return gamma * r * project(a) + b * X + c, r * project(h) + gamma * r**2 * X * inner / m, r * inner, 0.0, 0.0
    per_gamma = r * (a + e) + r**2 * X * f / 2
    of_x = r * g * (b + gamma * r**2 * f / 2)
    of_var = r**2 / 2 * float((g * (gamma * r * (a + e) + b * X + 1.5 * gamma * r**2 * X * f)).sum())
    return gamma * per_gamma + b * X + c, of_x, float((g * per_gamma).sum()), float(of_x.sum()), of_var


def shares(x: Array, case: Case, c: int) -> tuple[Array, float, float]:
    """Return xhat and r, and the share of its majorant by which a second derivative may err.

    No term has more than six factors r and xhat, each within ``eta (|xhat| + 1)``, and no more than three sums are
    nested. The complex step runs in float64 without the correction of S2: its mean errs by ``g(m) mean|x|``.
    """
    values, f, m = oracle.row(x.tolist()), forms.FORMATS[case.x.dtype.name], len(x)
    old_mean, old_var = (None if v is None else v[c : c + 1] for v in (case.running_mean, case.running_var))
    column = x[:, None].astype(case.x.dtype)
    alone = Case(column, None, None, old_mean, old_var, column, training=case.training, eps=case.eps)
    (e,) = errors(alone)
    s = oracle.batch_statistics(values, Fraction(case.eps))
    if not case.training:
        mean, variance = (Fraction(float(v[0])) for v in (old_mean, old_var) if v is not None)
        s = oracle.given_statistics(m, mean, variance, Fraction(case.eps))
    r, xhat = float(s.root), np.asarray(oracle.centered(values, s).floats()) * float(s.root)
    eta = max(float((e.xhat / (e.size + 1)).max()), e.root / r)
    own = (1 + eta) ** 6 * (1 + forms.roundings(3 * e.h + 40, f.unit)) - 1
    coarse = forms.roundings(m + 8, 2.0**-53) * 3 * (1 + r * float(np.abs(x).mean() + abs(float(s.mean))))
    reference = (1 + coarse) ** 6 * (1 + forms.roundings(4 * m + 40, 2.0**-53)) - 1
    if own + 8 * reference > VACUOUS:
        raise VacuousBoundError(f"a share of {own + 8 * reference:.3g} certifies nothing")
    return xhat, r, own + 8 * reference


def assert_second(backend: str, case: Case, cotangents: Cotangents) -> None:
    """Compare every second derivative of every channel with its complex step."""
    got = second(backend, case, cotangents)
    assert (got.gamma is None) == (case.gamma is None)
    f = forms.FORMATS[case.x.dtype.name]
    kept = rows(np.broadcast_to(True if case.where is None else case.where, case.x.shape), case.axis) > 0
    tables = [rows(z, case.axis) for z in (case.dy, case.x, cotangents.x, got.dy, got.x)]
    for c, keep in enumerate(kept):
        assert not tables[3][c, ~keep].any()
        assert not tables[4][c, ~keep].any()
        g, x, a, of_dy, of_x = (table[c, keep] for table in tables)
        if not keep.any():
            continue
        w = Cotangents(a.tolist(), *(0.0 if v is None else float(v[c]) for v in cotangents[1:]))
        vectors = (case.gamma, case.running_mean, case.running_var)
        numbers = [1.0 if v is None else float(v[c]) for v in vectors]
        point = [*g.tolist(), *x.tolist(), *(numbers[:1] if case.training else numbers)]
        exact = np.array([
            pulled(stepped(point, i), len(g), w, case.eps, training=case.training).imag / STEP
            for i in range(len(point))
        ])  # fmt: skip
        xhat, r, share = shares(x, case, c)
        parts = majorants(g, xhat, r, numbers[0], w, training=case.training)
        sizes = np.concatenate([np.atleast_1d(z) for z in parts])[: len(point)]
        columns = [0.0 if v is None else float(v[c]) for v in got[2:]][: len(point) - 2 * len(g)]
        if case.gamma is None:
            columns[0] = exact[2 * len(g)]
        found = np.concatenate([of_dy, of_x, columns])
        rounded = np.where(np.arange(len(point)) < 2 * len(g), 1.01 * f.stored * np.abs(exact) + f.grain, 0)
        worst = np.abs(found - exact) / (share * sizes + rounded)
        assert worst.max() <= 1, f"channel {c}: entry {int(worst.argmax())} errs by {worst.max():.3g} times its bound"


def random_cotangents(case: Case, seed: int) -> Cotangents:
    rng, channels = np.random.default_rng(seed), case.x.shape[case.axis]

    def vector(like: Array | None) -> Array | None:
        return None if like is None else rng.normal(0.4, 1, (channels,)).astype(like.dtype)

    a = rng.normal(0.4, 1, case.x.shape).astype(case.x.dtype)
    inference = (None, None) if case.training else (vector(case.running_mean), vector(case.running_var))
    return Cotangents(a, vector(case.gamma), vector(case.beta), *inference)


@pytest.mark.clause("S13")
@pytest.mark.parametrize("training", [True, False])
@given(
    seed=st.integers(0, 2**32),
    form=narrowed(
        st.tuples(st.sampled_from(tuple(DTYPES)), st.sampled_from(SHAPES), st.sampled_from(ABSENT)),
        [*zip(DTYPES, SHAPES, ABSENT, strict=True)],
    ),
    kappa=st.sampled_from((0.0, 3.0, 8.0)),
    eps=st.sampled_from((0.0, 1e-5, 0.2)),
)
def test_second_order(
    backend: str, training: bool, seed: int, form: tuple[str, Shape, tuple[str, ...]], kappa: float, eps: float
) -> None:
    """Cotangents of dy, x, gamma and, in inference, of the running statistics are the derivatives of S13."""
    dtype, shape, absent = form
    case = sample(seed, dtype, *shape, kappa=kappa, scale=0.8, eps=eps, training=training)
    nothing: dict[str, Any] = dict.fromkeys(absent)
    case = case._replace(**nothing)
    assert_second(backend, case, random_cotangents(case, seed))


@pytest.mark.clause("S12", "S13")
@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 2**32))
def test_second_order_of_what_is_left(backend: str, training: bool, seed: int) -> None:
    """With ``where``, second derivatives are as if the rest, even NaN, were deleted, and 0 in deleted places."""
    case = sample(seed, "float64", (7, 3, 2), kappa=3.0, training=training)
    where = np.random.default_rng(seed).random(case.x.shape) < 0.6
    where[:2], where[:, 2] = True, seed % 2 == 0
    x, dy = (np.where(where, a, np.nan) for a in (case.x, case.dy))
    cotangents = random_cotangents(case, seed)
    spoiled = case._replace(x=x, dy=dy, where=where)
    clean = spoiled._replace(x=np.where(where, case.x, 0), dy=np.where(where, case.dy, 0))
    assert_second(backend, clean, cotangents)
    got = second(backend, spoiled, cotangents._replace(x=np.where(where, cotangents.x, np.nan)))
    for a, c in zip(got, second(backend, clean, cotangents), strict=True):
        assert equal(a, c)


@pytest.mark.clause("S13")
@pytest.mark.parametrize("training", [True, False])
def test_absent_cotangents_are_zero(backend: str, training: bool) -> None:
    """None for a cotangent means 0, to the bit."""
    case = sample(11, "float32", (7, 3, 5), training=training)
    whole = random_cotangents(case, 11)
    for name in whole._fields:
        if getattr(whole, name) is not None:
            zero = whole._replace(**{name: np.zeros_like(getattr(whole, name))})
            absent = whole._replace(**{name: None})
            for a, c in zip(second(backend, case, zero), second(backend, case, absent), strict=True):
                assert equal(a, c), name


@pytest.mark.clause("S3", "S13")
@pytest.mark.parametrize("training", [True, False])
def test_second_order_at_gamma_zero(backend: str, training: bool) -> None:
    """Second derivatives are right at gamma = 0 too, because nothing divides by gamma."""
    case = sample(12, "float64", (7, 3, 2), training=training)
    assert case.gamma is not None
    assert_second(backend, case._replace(gamma=np.zeros_like(case.gamma)), random_cotangents(case, 12))
