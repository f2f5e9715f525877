"""Clause S13 over JAX arrays: the derivative of one call, and the derivative of that.

Both are transposes, which JAX makes, of the tangent rules in :mod:`polybn_jax.kernels`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_jax import kernels
from polybn_jax.call import Operands, Plan, number, operands_of, plan_of
from polybn_jax.explicit import settle
from polybn_jax.kernels import Statistics, View, centered, largest, mask
from polybn_jax.reductions import spread, spread_both, totals, varies_over
from polybn_jax.scaling import power_of_two, products, two_factors


def backward(arguments: Arguments, residuals: Statistics, dy: jax.Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    return _backward(dy, operands_of(arguments), residuals, plan=plan_of(arguments))


def double_backward(
    arguments: Arguments, residuals: Statistics, dy: jax.Array, cotangents: Gradients
) -> SecondGradients:
    """Differentiate :func:`backward`; a cotangent that is None stands for 0."""
    running = None if arguments.training else residuals.mean
    expected = (arguments.x, arguments.gamma, arguments.beta, running, running)
    given = Gradients(*map(_filled, cotangents, expected))
    eps = number(arguments.eps, arguments.dtype)
    return _double_backward(given, dy, operands_of(arguments), residuals, eps, plan=plan_of(arguments))


@partial(jax.jit, static_argnames="plan")
@settle(lambda lie, _dy, operands, _s, **_: Gradients(*map(lie.of, operands[:5])))
def _backward(dy: jax.Array, operands: Operands, s: Statistics, *, plan: Plan) -> Gradients:
    x, gamma, beta = operands[:3]
    view = kernels.view(x, operands.where, plan.axis, plan.axis_name)
    wide = dy.reshape(view.x.shape).astype(view.x.dtype)
    # In shard_map a sum over devices may be a part of these, and no branch that only some of them take can hold it.
    alone = plan.axis_name is None and not varies_over(view.x)
    if plan.training and alone:
        dx, dgamma, dbeta = _in_training(view, s, mask(wide, view.kept))
        vectors = (None if gamma is None else dgamma, None if beta is None else dbeta)
        return Gradients(dx.reshape(x.shape).astype(x.dtype), *vectors)
    counts = view.counts if plan.training else None
    given = (view.x, gamma, beta, s)
    _, transpose = jax.vjp(lambda *t: kernels.tangent(view.x, s, view.kept, counts, plan.axis_name, t), *given)
    dx, dgamma, dbeta, ds = transpose(wide)
    running = (None, None) if plan.training else (ds.mean, ds.variance)
    usual = Gradients(dx.reshape(x.shape).astype(x.dtype), dgamma, dbeta, *running)
    return _rescued(usual, mask(wide, view.kept), view, gamma, s) if alone else usual


def _in_training(view: View, s: Statistics, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the cotangents of ``x``, gamma and beta; channels whose sums leave the range are added up again (S10)."""

    # Each of these standardizes x anew, as XLA would write to memory what a branch took from outside.
    def sums_of(g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return totals(g, g * kernels.standardized(view.x, s, view.kept))

    def finish(g: jax.Array, sum_g: jax.Array, sum_gx: jax.Array, *factors: jax.Array) -> jax.Array:
        mean, product = spread_both(sum_g / view.counts, sum_gx / view.counts, g)
        dx = (g - mean) - kernels.standardized(view.x, s, view.kept) * product
        for factor in factors:
            dx = dx * spread(factor, dx)
        return mask(dx, view.kept)

    sums = sums_of(dy)
    # A channel whose x holds NaN or infinity has nothing to save, and must leave the others in their usual branch.
    lost = ~(jnp.isfinite(sums[0]) & jnp.isfinite(sums[1])) & jnp.isfinite(s.r)

    def usual() -> tuple[jax.Array, ...]:
        return finish(dy, *sums, s.second, s.first), *sums

    def again() -> tuple[jax.Array, ...]:
        unit = jnp.where(lost, power_of_two(largest(dy)), 1)
        root = power_of_two(jnp.sqrt(unit))  # half of it before each factor of gamma r: products then stay in range
        g = dy / spread(unit, dy)
        sum_g, sum_gx = (jnp.where(lost, z, old) for z, old in zip(sums_of(g), sums, strict=True))
        return finish(g, sum_g, sum_gx, root, s.first, unit / root, s.second), sum_g * unit, sum_gx * unit

    dx, dbeta, dgamma = lax.cond(lost.any(), again, usual)
    return dx, dgamma, dbeta


def _rescued(usual: Gradients, dy: jax.Array, view: View, gamma: jax.Array | None, s: Statistics) -> Gradients:
    """Add up again, with ``dy`` and ``x`` near 1, where sums or their terms have left the range (S10)."""
    sums = [z for z in usual[1:] if z is not None]
    if not sums:
        return usual
    lost, info = jnp.any(jnp.stack([~jnp.isfinite(z) for z in sums]), axis=0), jnp.finfo(s.r.dtype)
    few = info.tiny / info.eps
    small = s.slope < info.tiny**0.25  # normalized values may be tiny: the branch looks at them
    if usual.running_var is not None:
        product = usual.running_var if usual.gamma is None else usual.gamma
        lost |= jnp.abs(product) < few

    def again() -> list[jax.Array]:
        # All that is taken out is a power of two, which costs no rounding.
        x = centered(view.x, s, view.kept)
        of_x, of_dy, of_r, of_slope = (power_of_two(z) for z in (largest(x), largest(dy), s.r, s.slope))
        of_gamma = jnp.ones_like(s.r) if gamma is None else power_of_two(jnp.abs(gamma))
        slope = s.slope / of_slope
        product = slope if gamma is None else slope * (gamma / of_gamma)
        terms, of_terms = products(dy, x)
        sum_g, sum_gx = totals(dy / spread(of_dy, dy), terms * spread(s.r / of_r, x))
        found = (
            _times(sum_gx, *of_terms, of_r),
            _times(sum_g, of_dy),
            _times(-sum_g * product, of_dy, of_slope, of_gamma),
            _times(-sum_gx / 2 * product * slope, *of_terms, of_r, of_slope, of_slope, of_gamma),
        )
        due = lost | small & (of_x * of_r < few)
        return [jnp.where(due, z, old) for z, old in zip(found, usual[1:], strict=True) if old is not None]

    chosen = iter(lax.cond((lost | small).any(), again, lambda: sums))
    return Gradients(usual.x, *(None if z is None else next(chosen) for z in usual[1:]))


def _times(z: jax.Array, *factors: jax.Array) -> jax.Array:
    first, second = two_factors(*factors)
    return z * first * second


@partial(jax.jit, static_argnames="plan")
@settle(lambda lie, _, dy, given, *_s, **_plan: SecondGradients(*map(lie.of, (dy, *given[:2], *given[3:5]))))
def _double_backward(
    cotangents: Gradients, dy: jax.Array, operands: Operands, s: Statistics, eps: jax.Array, *, plan: Plan
) -> SecondGradients:
    def gradients(
        dy: jax.Array, x: jax.Array, gamma: jax.Array | None, mean: jax.Array, variance: jax.Array
    ) -> Gradients:
        if plan.training:
            view = kernels.view(x, operands.where, plan.axis, plan.axis_name)
            again = kernels.batch_statistics(view.x, view.kept, view.counts, gamma, eps, plan.axis_name)
        else:
            again = kernels.running_statistics(mean, variance, gamma, eps)
        return _backward(dy, operands._replace(x=x, gamma=gamma), again, plan=plan)

    # What is wide stays wide until the end: halves would be rounded at each place that contributes to them.
    wide = [z.astype(eps.dtype) for z in (dy, operands.x, cotangents.x)]
    _, transpose = jax.vjp(gradients, *wide[:2], operands.gamma, s.mean, s.variance)
    of_dy, of_x, of_gamma, *running = transpose(cotangents._replace(x=wide[2]))
    of_dy, of_x = of_dy.astype(dy.dtype), of_x.astype(operands.x.dtype)
    return SecondGradients(of_dy, of_x, of_gamma, *((None, None) if plan.training else running))


def _filled(cotangent: jax.Array | None, gradient: jax.Array | None) -> jax.Array | None:
    """Put 0 in the place of a cotangent that was left out."""
    return jnp.zeros_like(gradient) if cotangent is None and gradient is not None else cotangent
