"""Clause S13 over the Array API standard, and its derivative, whose formulas :mod:`polybn.pullback` states."""

from __future__ import annotations

from typing import Any

from polybn.spec import Arguments, Array, Gradients, SecondGradients
from polybn_array_api.arithmetic import Statistics, center, multiply, normal, power, split, times
from polybn_array_api.layout import Layout, layout_of


def backward(xp: Any, arguments: Arguments, s: Statistics | None, dy: Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    if s is None:
        return _zeros(xp, arguments)
    a = layout_of(xp, arguments, arguments.x)
    kept, gamma = a.kept(arguments.where), normal(a, a.column(arguments.gamma))
    g, c = a.values(dy, kept), center(a, a.values(arguments.x, kept), s, kept)
    lift, reach = power(a, g), power(a, c)
    down = None if lift is None else 1 / lift
    back = None if reach is None else 1 / (reach if arguments.training else reach * s.scale)
    scaled, (r, size) = times(g, lift), split(a, s.r)
    sum_g, sum_gx = a.total(scaled), a.total(scaled * times(c, reach)) * r
    shift, stretch = multiply(a, sum_g, None, down), multiply(a, sum_gx, None, size, back, down)
    if arguments.training:
        n = a.divisor(a.counts(kept))
        projected = scaled - sum_g / n - c * s.r * (multiply(a, sum_gx, None, size, back) / n)
        dx = multiply(a, projected * s.r, gamma[0], s.unit, times(gamma[1], down))
        return _gradients(a, arguments, dx, kept, (stretch, shift))
    slope = gamma[0], times(size, gamma[1])
    along = -multiply(a, sum_g * r, *slope, down), multiply(a, stretch * r * r, *slope, size) / -2
    return _gradients(a, arguments, multiply(a, scaled * r, *slope, down), kept, (stretch, shift, *along))


def double_backward(
    xp: Any, arguments: Arguments, s: Statistics | None, dy: Array, cotangents: Gradients
) -> SecondGradients:
    """Differentiate :func:`backward`."""
    if s is None:
        return _second(xp.zeros_like(dy), _zeros(xp, arguments))
    a = layout_of(xp, arguments, arguments.x)
    kept, one = a.kept(arguments.where), a.number(1)
    g, c = a.values(dy, kept), center(a, a.values(arguments.x, kept), s, kept)
    p = 0 * g if cotangents.x is None else a.values(cotangents.x, kept)
    of_gamma, of_beta, of_mean, of_var = (0 * one if z is None else a.column(z) for z in cotangents[1:])
    gamma = one if arguments.gamma is None else a.column(arguments.gamma)
    r = times(s.r, s.unit)
    if arguments.training:
        n, xhat = a.divisor(a.counts(kept)), c * s.r
        slope = gamma * r

        def along(z: Array) -> Array:
            return a.total(z * xhat) / n

        def project(z: Array) -> Array:
            return z - a.total(z) / n - xhat * along(z)

        inner = a.total(project(p) * g)
        ddy = slope * project(p) + of_gamma * xhat + of_beta
        dx = r * project(of_gamma * g - slope * (along(g) * p + along(p) * g)) - slope * r * xhat * inner / n
        vectors: tuple[Array, ...] = (r * inner, one)
    else:
        xhat, half = times(c * r, None if s.scale is None else 1 / s.scale), r * r * of_var / 2
        per_gamma = r * (p - of_mean) - half * xhat
        ddy, dx = gamma * per_gamma + of_gamma * xhat + of_beta, r * (of_gamma - gamma * half) * g
        by_var = -r * r / 2 * a.total(g * (gamma * per_gamma + (of_gamma - 2 * gamma * half) * xhat))
        vectors = (a.total(g * per_gamma), one, -a.total(dx), by_var)
    return _second(a.array(a.mask(ddy, kept), dy.dtype), _gradients(a, arguments, dx, kept, vectors))


def _gradients(a: Layout, arguments: Arguments, dx: Array, kept: Array | None, columns: tuple[Array, ...]) -> Gradients:
    """Return results in the shapes of the arguments, with None for arguments that were None."""
    wanted = (arguments.gamma is not None, arguments.beta is not None, True, True)
    dtype = getattr(a.xp, arguments.dtype)
    vectors = (a.vector(z, dtype) if want else None for z, want in zip(columns, wanted, strict=False))
    return Gradients(a.array(a.mask(dx, kept), arguments.x.dtype), *vectors)


def _second(ddy: Array, rest: Gradients) -> SecondGradients:
    return SecondGradients(ddy, rest.x, rest.gamma, rest.running_mean, rest.running_var)


def _zeros(xp: Any, arguments: Arguments) -> Gradients:
    """Return the gradients of a call without values (S11)."""
    given = (*arguments[2:4], *(() if arguments.training else arguments[4:6]))
    return Gradients(*(None if z is None else xp.zeros_like(z) for z in (arguments.x, *given)))
