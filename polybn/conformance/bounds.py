"""How far a result may lie from the exact one: a rigorous envelope, value by value, for each form of batch norm.

This is a proof that runs, not a tolerance. :mod:`polybn.conformance.forms` bounds the statistics; the rest,
here, is common to all forms. With ``W = v + eps``, ``r = W^-1/2``, ``xhat = c r``, step by step:

W       ``W^ = W (1 + t)``, ``|t| <= e_W / W``: eps and the sum are each rounded.
r       A root and a division, or an approximate inverse root: ``e_r = r ((1 - e_W / W)^-1/2 (1 + g(4)) - 1)``.
xhat    ``e_x = |c| e_r + r e_c + e_c e_r`` and a rounding.
y       ``xhat * gamma + beta``: two roundings, a third for the folded form's shift, and that of storing.
dbeta   ``g(h+2) sum|dy|``.
dgamma  ``sum(|dy| e_x) + g(h+3) sum(|dy| (|xhat| + e_x))``.
dx      ``gamma r (dy - mean(dy) - xhat q)`` with ``q = dgamma / m``. Automatic differentiation computes the mean
        of the two other terms, ``mean(dy) + mean(xhat) q``: as many roundings, and the mean error of xhat once more.
running ``rho * old + (1 - rho) * batch``: two roundings, and the batch's error times its weight. The weights also err.
        The one that is passed, rho or ``1 - rho``, is a Python float and is rounded to the arithmetic. The other is
        1 minus that, rounded again, so it has the same absolute error however small it is. Both err by at most
        ``u (1 + u) <= g(1)``; where rho is a multiple of u, so is ``1 - rho``, and neither errs at all.

No term of second order is dropped. Every product may underflow, so each step allows for that, too. Bounds are
evaluated in float64 from exact magnitudes and multiplied by SAFETY to cover that evaluation. Overflow is not modelled:
form K must not overflow (S10), and the others are certified only where the sum of the squares of x is finite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from polybn.conformance.forms import (
    VACUOUS,
    Channel,
    Floats,
    Form,
    Format,
    VacuousBoundError,
    additions,
    given,
    measured,
    roundings,
)

SAFETY = 1 + 1e-9


class Errors(NamedTuple):
    """Bounds on the statistics, the inverse root and the normalized values, and what later steps need."""

    mean: float
    variance: float
    root: float
    xhat: Floats
    size: Floats
    """The magnitudes ``|xhat|``."""
    h: int


def envelope(form: Form, ch: Channel, f: Format, h: int | None = None) -> dict[str, Floats]:
    """Bound every result of a call, for one channel; ``h`` is the longest chain of additions, by default the form's.

    The bounds on y and dx have the shape ``(m,)``, all others ``(1,)``. VacuousBoundError is raised if the bound on
    ``v + eps``, y or dx is above a sixteenth of what it bounds.
    """
    e = normalized(form, ch, f, additions(form, ch.m, ch.length) if h is None else h)
    found: dict[str, Floats | float] = {"y": output(form, e, ch, f), **gradients(e, ch, f)}
    if ch.training:
        found |= running(e, ch, f)
    for name in ("running_mean", "running_var"):
        if np.isinf(found.get(name, 0.0)):
            raise VacuousBoundError(f"the bound on {name} is infinite")
    return {name: SAFETY * np.atleast_1d(np.asarray(bound)) for name, bound in found.items()}


def normalized(form: Form, ch: Channel, f: Format, h: int) -> Errors:
    """Bound the statistics and the normalized values."""
    mean, e_v, e_c = measured(form, ch, f, h) if ch.training else given(form, ch, f)
    u = f.unit
    e_w = e_v + u * ch.eps
    e_w += u * (ch.square + e_w)
    _refuse("v + eps", e_w, ch.square)
    relative = e_w / ch.square if ch.square else 0.0
    e_r = ch.root * ((1 - relative) ** -0.5 * (1 + roundings(4, u)) - 1)
    size = ch.c * ch.root
    e_x = ch.c * e_r + ch.root * e_c + e_c * e_r
    if not (ch.constant and form == "K"):
        e_x += u * (size + e_x) + f.tiny
    return Errors(mean, e_v, e_r, e_x, size, h)


def output(form: Form, e: Errors, ch: Channel, f: Format) -> Floats:
    """Bound ``y = xhat * gamma + beta``, as stored."""
    if ch.constant and form == "K":
        return np.full_like(ch.c, abs(ch.stored_beta - ch.beta))
    scaled = abs(ch.gamma) * e.size
    error = abs(ch.gamma) * e.xhat
    error += f.unit * (scaled + error) + f.tiny
    if form != "K":
        error += f.unit * abs(ch.beta)
    largest = scaled + abs(ch.beta) + error
    error += f.unit * largest
    error += f.stored * (largest + error) + f.grain
    _refuse("y", float(error.max()), float((scaled + abs(ch.beta)).max()))
    return error


def running(e: Errors, ch: Channel, f: Format) -> dict[str, float]:
    """Bound the running statistics (S4)."""
    variance, error = ch.variance, e.variance
    if ch.unbiased and ch.m > 1:
        factor = ch.m / (ch.m - 1)
        variance *= factor
        error = factor * error + roundings(2, f.unit) * (variance + factor * error)
    batches = {
        "running_mean": (ch.old_mean, ch.mean, e.mean, math.ldexp(f.tiny, -ch.exponent)),
        "running_var": (ch.old_variance, variance, error, math.ldexp(f.tiny, -2 * ch.exponent)),
    }
    return {name: _blended(*values, ch.momentum, f) for name, values in batches.items()}


def _blended(old: float, batch: float, error: float, underflow: float, momentum: float, f: Format) -> float:
    share, reach = 1 - momentum, abs(batch) + error
    weight = 0.0 if (momentum / f.unit).is_integer() else roundings(1, f.unit)
    size = (momentum + weight) * abs(old) + (share + weight) * reach
    return share * error + weight * (abs(old) + reach) + (roundings(2, f.unit) + 2 * f.kept) * size + 3 * underflow


def gradients(e: Errors, ch: Channel, f: Format) -> dict[str, Floats | float]:
    """Bound the derivatives (S13), of training or of inference."""
    u, h, m, g, a = f.unit, e.h, ch.m, ch.dy, abs(ch.gamma)
    sum_g, inner = float(g.sum()), float((g * (e.size + e.xhat)).sum())
    e_beta = roundings(h + 2, u) * sum_g + m * f.lost + f.tiny
    e_gamma = (
        float((g * e.xhat).sum()) + roundings(h + 3, u) * inner + float(((e.size + 1) * f.lost).sum()) + m * f.tiny
    )
    reach, e_t = _projected(e, ch, f, e_beta, e_gamma, inner) if ch.training else (g, np.full_like(g, f.lost))
    if m:
        _refuse("dx", float(e_t.max()), float(g.max()))
    e_dx = a * (ch.root * e_t + e.root * (reach + e_t))
    e_dx += roundings(2, u) * a * (ch.root + e.root) * (reach + e_t)
    # An underflow happens in the caller's units: the last term is its size in the units of the scaled channel.
    e_dx += f.stored * (a * ch.root * reach + e_dx) + math.ldexp(f.tiny + f.grain, ch.exponent)
    found: dict[str, Floats | float] = {
        "dx": e_dx,
        "dgamma": _kept(e_gamma, inner, f),
        "dbeta": _kept(e_beta, sum_g, f),
    }
    if ch.training:
        return found
    rooted = ch.root + e.root
    e_rm = a * (ch.root * e_beta + e.root * (sum_g + e_beta)) + roundings(3, u) * a * rooted * (sum_g + e_beta)
    square = 2 * ch.root * e.root + e.root**2
    e_rv = a / 2 * (ch.root**2 * e_gamma + square * (inner + e_gamma))
    e_rv += roundings(4, u) * a / 2 * rooted**2 * (inner + e_gamma)
    sizes = (a * ch.root * sum_g, a * ch.root**2 * inner / 2)
    return found | {
        "drunning_mean": _kept(e_rm, sizes[0], f) + 2 * math.ldexp(f.tiny, ch.exponent),
        "drunning_var": _kept(e_rv, sizes[1], f) + 2 * math.ldexp(f.tiny, 2 * ch.exponent),
    }


def _projected(e: Errors, ch: Channel, f: Format, e_beta: float, e_gamma: float, inner: float) -> tuple[Floats, Floats]:
    """Bound ``t = dy - mean(dy) - xhat q``: return the sum of magnitudes, and the error."""
    u, m, g = f.unit, ch.m, ch.dy
    mean_g, q = float(g.mean()), float((g * e.size).mean())
    e_mean_g = (e_beta + roundings(1, u) * (m * mean_g + e_beta)) / m
    e_q = (e_gamma + roundings(1, u) * (inner + e_gamma)) / m
    e_product = e.size * e_q + q * e.xhat + e.xhat * e_q
    e_product += u * (e.size * q + e_product) + f.tiny
    by_machine = q * float(e.xhat.mean()) + roundings(e.h + 3, u) * q * float(e.size.mean())
    reach = g + mean_g + e_mean_g + e.size * q + e_product
    return reach, e_mean_g + e_product + by_machine + roundings(8, u) * reach + f.lost


def _kept(error: float, size: float, f: Format) -> float:
    return error + f.kept * (size + error)


def _refuse(what: str, bound: float, size: float) -> None:
    if not bound <= VACUOUS * size:
        raise VacuousBoundError(
            f"the bound {bound:.3g} on {what} is above 2^-4 of its size, {size:.3g}: it certifies nothing"
        )
