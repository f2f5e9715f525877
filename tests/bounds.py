"""How far a result may lie from the exact one: a rigorous envelope of the form of S2, value by value.

This is a proof that runs, not a tolerance. It holds for every implementation of S2, S3 and S13 in an
arithmetic with unit roundoff ``u`` whose sums have no chain of more than ``h`` additions, in any order, with or
without fused or wider operations. ``g(n) = n u / (1 - n u)`` bounds ``n`` roundings in a row. Exact quantities
have no hat; ``c_i = x_i - mean``, ``W = v + eps``, ``r = W^-1/2``, ``xhat = c r``. Step by step:

m1      is any floating-point number with ``|m1 - mean| <= e1 = g(h+2) mean|x|``: h additions, a division, a
        rounding to the type of the statistics. It is known exactly from here on.
delta   The exact mean of ``D_i = x_i - m1`` is ``mean - m1``, of size e1 at most. Each ``D_i`` is computed with one
        rounding, so ``|delta^ - delta| <= e_delta = g(h+3) mean|D|`` and ``mean|D| <= mean|c| + e1``.
mean    ``m1 + delta^`` errs by ``e_delta`` and a rounding. Nowhere does kappa enter in first order.
c       ``d^_i - delta^`` errs by ``u |D_i| + e_delta`` and a rounding.
v       ``mean(d^ d^)``: terms of one sign, h + 5 roundings, around ``mean(D^2) = v + delta^2``; and
        ``delta^^2`` errs by ``2 e1 e_delta + e_delta^2`` and a rounding.
r       ``W^ = W (1 + t)``, ``|t| <= e_W / W``; then a root and a division, or an approximate inverse root.

The rest multiplies out errors of factors; nothing of second order is dropped. Every product may
underflow, and flush to zero, so each step carries the smallest normal number, too. Bounds are evaluated in float64
from exact magnitudes and inflated by SAFETY for that evaluation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.conformance.oracle import Row, Statistics, centered

Floats = NDArray[np.float64]

SAFETY = 1 + 1e-9
VACUOUS = 2.0**-4
"""A bound above this share of what it bounds certifies nothing."""


class VacuousBoundError(AssertionError):
    """A bound so wide that a wrong result would pass."""


class Format(NamedTuple):
    """The roundings of one dtype of x (S6)."""

    unit: float
    """Unit roundoff of the arithmetic."""
    tiny: float
    """Its smallest normal number: what an underflow may lose."""
    stored: float
    """Unit roundoff of storing y and dx; 0 where that rounds nothing."""
    grain: float
    """Absolute error of storing a subnormal."""


FORMATS = {
    "float16": Format(2.0**-24, 2.0**-126, 2.0**-11, 2.0**-25),
    "bfloat16": Format(2.0**-24, 2.0**-126, 2.0**-8, 2.0**-134),
    "float32": Format(2.0**-24, 2.0**-126, 0.0, 0.0),
    "float64": Format(2.0**-53, 2.0**-1022, 0.0, 0.0),
}


class Errors(NamedTuple):
    """Bounds on what a channel is normalized with, and on the normalized values."""

    mean: float
    variance: float
    root: float
    xhat: Floats
    size: Floats
    """``|xhat|`` itself."""
    additions: int
    """``h``."""


class GradientBounds(NamedTuple):
    """Bounds on the fields of :class:`polybn.conformance.oracle.Derivatives`."""

    x: Floats
    gamma: float
    beta: float
    running_mean: float
    running_var: float


def additions(count: int, length: int) -> int:
    """Return ``h`` for ``count`` values, spread over ``length`` places of which the others hold 0.

    A backend may add stretches of 512 in 8 lanes and the stretches pairwise, which makes chains of
    64 + 3 + log2(length / 512); fewer values cannot make a chain longer than they are.
    """
    return min(max(count - 1, 0), 64 + math.ceil(math.log2(max(length, 1))))


def roundings(n: int, unit: float) -> float:
    """Return ``g(n)``."""
    if n * unit >= 0.5:
        raise VacuousBoundError(f"{n} roundings of {unit:.3g} leave no correct digit")
    return n * unit / (1 - n * unit)


def training(x: Row, s: Statistics, eps: float, f: Format, length: int) -> Errors:
    """Bound the batch's statistics and the normalized values; ``length`` is the channel's, deleted places included."""
    u, h = f.unit, additions(s.m, length)
    c = np.abs(centered(x, s).floats())
    variance = float(s.variance)
    mean_c, mean_x = (float(z.sum()) / s.m for z in (c, np.abs(x.floats())))
    e1 = roundings(h + 2, u) * mean_x + f.tiny
    delta = roundings(h + 3, u) * (mean_c + e1) + f.tiny
    correction = 2 * e1 * delta + delta**2 + u * (e1 + delta) ** 2 + f.tiny
    e_v = roundings(h + 5, u) * (variance + e1**2) + correction
    e_v += u * (variance + e_v) + f.tiny
    e_c = u * (c + e1) + delta
    e_c += u * (c + e_c)
    e_mean = delta + u * (abs(float(s.mean)) + delta)
    _refuse("the variance", e_v, variance)
    return _normalized(e_mean, e_v, e_c, c, s, eps, f, h)


def inference(x: Row, s: Statistics, eps: float, f: Format, length: int) -> Errors:
    """Bound the normalized values where the statistics are given: one rounding instead of a mean."""
    c = np.abs(centered(x, s).floats())
    return _normalized(0.0, 0.0, f.unit * c, c, s, eps, f, additions(len(c), length))


def output(e: Errors, s: Statistics, gamma: float, beta: float, f: Format) -> Floats:
    """Bound ``y = xhat * gamma + beta``, as stored."""
    scaled = abs(gamma) * e.size
    error = abs(gamma) * e.xhat
    error += f.unit * (scaled + error) + f.tiny
    largest = scaled + abs(beta) + error
    error += f.unit * largest
    return SAFETY * (error + f.stored * (largest + error) + f.grain)


def blended(old: float, batch: float, error: float, momentum: float, f: Format) -> float:
    """Bound a running statistic (S4), given the bound on what it takes in."""
    share = 1 - momentum
    rounded = roundings(3, f.unit) * (momentum * abs(old) + share * (abs(batch) + error))
    return SAFETY * (share * error + rounded + 2 * f.tiny)


def bessel(e: Errors, s: Statistics, f: Format) -> float:
    """Bound the unbiased variance: a quotient and a product more."""
    factor = s.m / (s.m - 1)
    return SAFETY * factor * (e.variance + roundings(2, f.unit) * (float(s.variance) + e.variance))


def gradients(e: Errors, s: Statistics, dy: Row, gamma: float, f: Format, *, batch: bool) -> GradientBounds:
    """Bound the derivatives (S13); ``batch`` says whether the statistics are the batch's own."""
    u, h, m = f.unit, e.additions, s.m
    g = np.abs(dy.floats())
    sum_g, inner = float(g.sum()), float((g * (e.size + e.xhat)).sum())
    e_beta = roundings(h + 2, u) * sum_g + f.tiny
    e_gamma = float((g * e.xhat).sum()) + roundings(h + 3, u) * inner + m * f.tiny
    _refuse("dgamma", e_gamma, float((g * e.size).sum()))
    root, a = float(s.root), abs(gamma)
    if batch:
        # mean(g), mean(g xhat), their products and the two differences, in any order.
        e_mean_g, e_q = ((z + roundings(1, u) * (of + z)) / m for z, of in ((e_beta, sum_g), (e_gamma, inner)))
        q = float((g * e.size).sum()) / m
        e_product = e.size * e_q + q * e.xhat + e.xhat * e_q
        e_product += u * (e.size * q + e_product) + f.tiny
        reach = g + sum_g / m + e_mean_g + e.size * q + e_product
        e_t = e_mean_g + e_product + roundings(4, u) * reach
    else:
        reach, e_t = g, np.zeros_like(g)
    if len(g):
        _refuse("dx", float(e_t.max()), float(g.max()))
    e_dx = a * (root * e_t + e.root * (reach + e_t))
    e_dx += roundings(2, u) * a * (root + e.root) * (reach + e_t) + f.tiny
    largest = a * root * reach + e_dx
    e_dx += f.stored * largest + f.grain
    if batch:
        return GradientBounds(SAFETY * e_dx, SAFETY * e_gamma, SAFETY * e_beta, 0.0, 0.0)
    rooted = root + e.root
    e_rm = a * (root * e_beta + e.root * (sum_g + e_beta)) + roundings(3, u) * a * rooted * (sum_g + e_beta)
    square = 2 * root * e.root + e.root**2
    e_rv = a / 2 * (root**2 * e_gamma + square * (inner + e_gamma))
    e_rv += roundings(4, u) * a / 2 * rooted**2 * (inner + e_gamma)
    e_rm, e_rv = e_rm + 2 * f.tiny, e_rv + 2 * f.tiny
    return GradientBounds(SAFETY * e_dx, SAFETY * e_gamma, SAFETY * e_beta, SAFETY * e_rm, SAFETY * e_rv)


def _normalized(
    e_mean: float, e_v: float, e_c: Floats, c: Floats, s: Statistics, eps: float, f: Format, h: int
) -> Errors:
    u, square, root = f.unit, float(s.square), float(s.root)
    e_w = e_v + u * eps
    e_w += u * (square + e_w)
    _refuse("v + eps", e_w, square)
    e_r = root * ((1 - e_w / square) ** -0.5 * (1 + roundings(4, u)) - 1)
    size = c * root
    e_x = c * e_r + root * e_c + e_c * e_r
    e_x += u * (size + e_x) + f.tiny
    if len(c):
        _refuse("xhat", float(e_x.max()), float(size.max()))
    return Errors(SAFETY * e_mean, SAFETY * e_v, SAFETY * e_r, SAFETY * e_x, size, h)


def _refuse(what: str, bound: Any, size: float) -> None:
    if not bound <= VACUOUS * size:
        raise VacuousBoundError(
            f"the bound {bound:.3g} on {what} is above 2^-4 of its size, {size:.3g}: it certifies nothing"
        )
