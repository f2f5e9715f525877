"""Clause S13 over JAX arrays: the derivative of one call, and the derivative of that.

Both are transposes, which JAX makes, of the tangent rules in :mod:`polybn_jax.kernels`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_jax import kernels
from polybn_jax.call import Operands, Plan, number, operands_of, plan_of
from polybn_jax.kernels import Statistics


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
def _backward(dy: jax.Array, operands: Operands, s: Statistics, *, plan: Plan) -> Gradients:
    x, gamma, beta = operands[:3]
    view = kernels.view(x, operands.where, plan.axis, plan.axis_name)
    counts = view.counts if plan.training else None
    given = (view.x, gamma, beta, s)
    _, transpose = jax.vjp(lambda *t: kernels.tangent(view.x, gamma, s, view.kept, counts, plan.axis_name, t), *given)
    dx, dgamma, dbeta, ds = transpose(dy.reshape(view.x.shape).astype(view.x.dtype))
    running = (None, None) if plan.training else (ds.mean, ds.variance)
    return Gradients(dx.reshape(x.shape).astype(x.dtype), dgamma, dbeta, *running)


@partial(jax.jit, static_argnames="plan")
def _double_backward(
    cotangents: Gradients, dy: jax.Array, operands: Operands, s: Statistics, eps: jax.Array, *, plan: Plan
) -> SecondGradients:
    def gradients(
        dy: jax.Array, x: jax.Array, gamma: jax.Array | None, mean: jax.Array, variance: jax.Array
    ) -> Gradients:
        if plan.training:
            view = kernels.view(x, operands.where, plan.axis, plan.axis_name)
            again = kernels.batch_statistics(view.x, view.kept, view.counts, eps, plan.axis_name)
        else:
            again = kernels.running_statistics(mean, variance, eps)
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
