"""Measure an outcome: how far each result lies from the exact one, channel by channel.

Statistics and gradients of parameters come from the oracle's integers. y and dx are computed from them with 106 bits,
with an error of ``2^-99`` of the terms and, where the mean is subtracted, ``2^-105`` of the mean: less than ``2^-50``
of any bound that they are compared with. This error is added to the distance, so a result that is found within its
bound is certainly within it. A channel that float64 cannot square is first scaled by a power of two, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.conformance import oracle
from polybn.conformance.cases import Array, Case, Outcome, rows, statistics_dtype
from polybn.conformance.doubles import Double, add, distance, double, multiply, negative
from polybn.conformance.forms import Channel, Floats
from polybn.conformance.oracle import Derivatives, ExactRow, Statistics

EASE = 400
"""Float64 can square and split magnitudes from ``2^-EASE`` to ``2^EASE``."""


class Measured(NamedTuple):
    """One channel of an outcome."""

    place: int
    """The number of the channel."""
    kept: NDArray[np.bool_]
    """The places of the channel's row that take part."""
    channel: Channel
    errors: dict[str, Floats]
    """The distances from the exact results, by the names of :class:`~polybn.conformance.cases.Outcome`; infinite where
    the result is not finite. Results that the outcome lacks are left out."""
    got: dict[str, Floats]
    """The results that were measured, for messages, in units of the scaled channel."""


def measure(case: Case, outcome: Outcome) -> Iterator[Measured]:
    """Measure each channel that has values; AssertionError if y or dx is not 0 in a deleted place.

    The inputs of the case must be finite.
    """
    x, dy, y = (rows(a, case.axis) for a in (case.x, case.dy, outcome.y))
    dx = None if outcome.dx is None else rows(outcome.dx, case.axis)
    kept = _mask(case)
    for c, keep in enumerate(kept):
        for name, whole in (("y", y), ("dx", dx)):
            if whole is not None and whole[c, ~keep].any():
                raise AssertionError(f"{name} is not 0 in deleted places of channel {c}")
        if keep.any():
            vectors = {name: float(v[c]) for name, v in outcome._asdict().items() if v is not None and v.ndim == 1}
            values = {"y": y[c, keep]} | ({} if dx is None else {"dx": dx[c, keep]})
            yield _measure(case, c, keep, x[c, keep], dy[c, keep], values, vectors)


def _measure(
    case: Case,
    c: int,
    keep: NDArray[np.bool_],
    x: Floats,
    dy: Floats,
    values: dict[str, Floats],
    vectors: dict[str, float],
) -> Measured:
    gamma, beta = pick(case.gamma, c, 1.0), pick(case.beta, c, 0.0)
    old = tuple(pick(v, c, math.nan) for v in (case.running_mean, case.running_var))
    k = _exponent(x, case.eps, *(() if case.training else old[1:]))
    x, eps = np.ldexp(x, -k), _power(-2 * k) * Fraction(case.eps)
    values = values | {"dx": np.ldexp(values["dx"], k)} if "dx" in values else values
    exact_x, exact_dy = oracle.row(x.tolist()), oracle.row(dy.tolist())
    if case.training:
        s = oracle.batch_statistics(exact_x, eps)
    else:
        s = oracle.given_statistics(len(x), _power(-k) * Fraction(old[0]), _power(-2 * k) * Fraction(old[1]), eps)
    y, slack, magnitudes = _output(x, s, gamma, beta)
    scalars = _scalars(exact_x, exact_dy, s, Fraction(gamma), training=case.training)
    errors = {"y": distance(values["y"], y) + slack}
    if "dx" in values:
        errors["dx"] = _dx_errors(values["dx"], x, dy, s, Fraction(gamma), scalars, training=case.training)
    batch = _running(case, s, old, k) if case.training and np.isfinite(old).all() else {}
    unit = {
        "dgamma": 0,
        "dbeta": 0,
        "running_mean": -k,
        "running_var": -2 * k,
        "drunning_mean": k,
        "drunning_var": 2 * k,
    }
    expected = {f"d{name}": value for name, value in scalars._asdict().items() if name != "x"} | batch
    for name, got in vectors.items():
        if name in expected:
            errors[name] = _distance(got, expected[name], unit[name], case if name == "running_var" else None)
    for name, found in errors.items():
        errors[name] = np.where(np.isfinite(found), found, np.inf)
    channel = Channel(
        np.abs(x),
        magnitudes,
        np.abs(dy),
        len(keep),
        float(s.mean),
        float(s.variance),
        float(eps),
        float(s.square),
        float(s.root),
        gamma,
        beta,
        float(np.asarray(beta).astype(case.x.dtype).astype(np.float64)),
        *_scaled(old, k),
        case.momentum,
        case.running_variance == "unbiased",
        case.training,
        k,
    )
    shown = values | {name: np.array([vectors[name]]) for name in errors if name in vectors}
    return Measured(c, keep, channel, errors, shown)


def _scaled(old: tuple[float, ...], k: int) -> tuple[float, float]:
    with np.errstate(over="ignore"):  # an infinite bound is refused later
        return float(np.ldexp(old[0], -k)), float(np.ldexp(old[1], -2 * k))


def _output(x: Floats, s: Statistics, gamma: float, beta: float) -> tuple[Double, Floats, Floats]:
    """Return y with 106 bits, a bound on its error, and ``|x - mean|``."""
    mean = double(s.mean)
    c = add(double(x), negative(mean))
    slope = double(Fraction(gamma) * s.root)
    scaled = multiply(c, slope)
    size = np.abs(scaled.high)
    slack = 2.0**-99 * (size + abs(beta))
    if Fraction(float(mean.high)) != s.mean:  # then the difference has more than 106 bits
        slack += 2.0**-105 * abs(float(s.mean)) * abs(float(slope.high))
    return add(scaled, double(beta)), slack if c.high.any() else np.zeros_like(size), np.abs(c.high)


def _scalars(x: ExactRow, dy: ExactRow, s: Statistics, gamma: Fraction, *, training: bool) -> Derivatives:
    """Return the derivatives of S13 without dx; ``sum(dy c) = sum(dy x) - mean sum(dy)``."""
    total = oracle.total(dy)
    along, slope = oracle.dot(dy, x) - s.mean * total, gamma * s.root
    none = ExactRow([], 1)
    if training:
        return Derivatives(none, s.root * along, total, Fraction(0), Fraction(0))
    curvature = along / s.square if s.square else Fraction(0)
    return Derivatives(none, s.root * along, total, -slope * total, -slope * curvature / 2)


def _dx_errors(
    got: Floats, x: Floats, dy: Floats, s: Statistics, gamma: Fraction, d: Derivatives, *, training: bool
) -> Floats:
    slope = double(gamma * s.root)
    t, sizes = double(dy), np.abs(dy)
    lost = 0.0
    if training:
        mean_g, per_c = d.beta / s.m, -s.root * d.gamma / s.m
        product = multiply(add(double(x), negative(double(s.mean))), double(per_c))
        t = add(add(t, negative(double(mean_g))), product)
        sizes = sizes + abs(float(mean_g)) + np.abs(product.high)
        lost = 2.0**-105 * abs(float(s.mean)) * abs(float(per_c))
    return distance(got, multiply(t, slope)) + (2.0**-98 * sizes + lost) * abs(float(slope.high))


def _running(case: Case, s: Statistics, old: tuple[float, ...], k: int) -> dict[str, Fraction]:
    rho = Fraction(case.momentum)
    found = {"running_mean": oracle.blend(_power(-k) * Fraction(old[0]), s.mean, rho)}
    unbiased = case.running_variance == "unbiased"
    if unbiased and s.m == 1:  # one value has no unbiased variance: no running variance is right
        return found
    variance = oracle.unbiased(s) if unbiased else s.variance
    return found | {"running_var": oracle.blend(_power(-2 * k) * Fraction(old[1]), variance, rho)}


def _distance(got: float, exact: Fraction, exponent: int, case: Case | None) -> Floats:
    """Return the distance in the scaled units; infinity is right for a variance too large for its dtype (S10)."""
    if case is not None and got == math.inf:
        largest = Fraction(float(np.finfo(statistics_dtype(case.x)).max))
        return np.array([0.0 if exact * _power(-exponent) > largest * (1 - Fraction(1, 2**20)) else math.inf])
    if not math.isfinite(got):
        return np.array([math.inf])
    return np.array([_rounded(abs(Fraction(got) * _power(exponent) - exact))])


def _exponent(x: Floats, *squares: float) -> int:
    """Return the power of two that brings a channel into the range where float64 can square it; usually 0."""
    sizes = [math.frexp(square)[1] // 2 for square in squares if square]
    largest = float(np.abs(x).max())
    size = max([*sizes, math.frexp(largest)[1]] if largest else sizes, default=0)
    return size if abs(size) > EASE else 0


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _power(k: int) -> Fraction:
    return Fraction(2) ** k


def pick(vector: Array | None, c: int, default: float) -> float:
    """Return one channel's entry of a vector that may be absent."""
    return default if vector is None else float(vector[c])


def _mask(case: Case) -> NDArray[np.bool_]:
    where = np.ones((), np.bool_) if case.where is None else case.where
    first = np.moveaxis(np.broadcast_to(where, case.x.shape), case.axis, 0)
    return first.reshape(first.shape[0], -1)
