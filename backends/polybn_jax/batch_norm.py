"""The specification over JAX arrays: the forward call, ``moments``, ``merge_moments`` and ``fold``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from polybn.arguments import fail_single_value, fail_variance
from polybn.spec import Affine, Arguments, BatchNormResult, Moments
from polybn_jax import kernels
from polybn_jax.call import Numbers, Operands, Plan, number, numbers_of, operands_of, plan_of
from polybn_jax.kernels import Statistics, View


def forward(
    arguments: Arguments,
    *,
    differentiable: bool,  # noqa: ARG001  # the statistics are at hand in any case
) -> tuple[BatchNormResult, Statistics]:
    """Normalize (S1 to S12). Under tracing no value is looked at."""
    plan = plan_of(arguments)
    if arguments.training:
        _check_counts(arguments, plan)
    else:
        _check_variance(arguments)
    return _forward(operands_of(arguments), numbers_of(arguments), plan=plan)


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15)."""
    return _moments(operands_of(arguments), plan=plan_of(arguments))


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    _check_variance(arguments)
    return _fold(operands_of(arguments), number(arguments.eps, arguments.dtype))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
    return _merge_moments(a, b)


@jax.jit
def _merge_moments(a: Moments, b: Moments) -> Moments:
    count, dtype = a.count + b.count, a.mean.dtype
    n_a, n_b = (z.count.astype(dtype) for z in (a, b))
    share = n_b / jnp.maximum(count, 1).astype(dtype)
    distance = b.mean - a.mean
    mean = a.mean + distance * share
    m2 = a.m2 + b.m2 + distance * distance * share * n_a
    only_a, only_b = b.count == 0, a.count == 0
    return Moments(
        count,
        jnp.where(only_a, a.mean, jnp.where(only_b, b.mean, mean)),
        jnp.where(only_a, a.m2, jnp.where(only_b, b.m2, m2)),
    )


@partial(jax.jit, static_argnames="plan")
def _forward(operands: Operands, numbers: Numbers, *, plan: Plan) -> tuple[BatchNormResult, Statistics]:
    x, gamma, beta, running_mean, running_var, where = operands
    view = kernels.view(x, where, plan.axis, plan.axis_name)
    if plan.training:
        s = kernels.batch_statistics(view.x, view.kept, view.counts, numbers.eps, plan.axis_name)
    else:
        s = kernels.running_statistics(running_mean, running_var, numbers.eps)
    y = kernels.normalize(view.x, gamma, beta, s, view.kept, view.counts if plan.training else None, plan.axis_name)
    y = y.reshape(x.shape).astype(x.dtype)
    return BatchNormResult(y, *_update(operands, numbers, plan, view, s)), s


@partial(jax.jit, static_argnames="plan")
def _moments(operands: Operands, *, plan: Plan) -> Moments:
    view = kernels.view(operands.x, operands.where, plan.axis, plan.axis_name)
    eps = jnp.zeros((), view.counts.dtype)
    s = kernels.batch_statistics(view.x, view.kept, view.counts, eps, plan.axis_name)
    n = jnp.where(view.empty, 0, view.counts)
    return Moments(view.tally, s.mean, s.variance * n)


@jax.jit
def _fold(operands: Operands, eps: jax.Array) -> Affine:
    _, gamma, beta, mean, variance, _ = operands
    assert mean is not None
    assert variance is not None
    scale = kernels.inverse_root(variance, eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return Affine(scale, shift if beta is None else shift + beta)


def _update(operands: Operands, numbers: Numbers, plan: Plan, view: View, s: Statistics) -> tuple[Any, Any]:
    """Return the new running statistics (S4)."""
    old_mean, old_var = operands.running_mean, operands.running_var
    if old_mean is None or old_var is None:
        return None, None
    if not plan.training or not operands.x.size:
        return jnp.copy(old_mean), jnp.copy(old_var)
    n, variance = view.counts, s.variance
    if plan.unbiased:
        variance = variance * (n / jnp.maximum(n - 1, 1))
    new_mean = _blend(old_mean, s.mean, numbers, view.empty)
    new_var = _blend(old_var, variance, numbers, view.empty)
    return lax.stop_gradient(new_mean), lax.stop_gradient(new_var)


def _blend(old: jax.Array, batch: jax.Array, numbers: Numbers, empty: jax.Array) -> jax.Array:
    """Move ``old`` towards ``batch``: exact at the ends (S4), and not at all where nothing was kept (S12)."""
    keep, take, _ = numbers
    new = jnp.where(keep == 0, batch, keep * old + take * batch)
    return jnp.where(empty | (take == 0), old, new)


def _check_counts(arguments: Arguments, plan: Plan) -> None:
    """Refuse an unbiased variance of one value, where the mask can be looked at and tells."""
    where = arguments.where
    if not arguments.unbiased or where is None or plan.axis_name is not None or isinstance(where, jax.core.Tracer):
        return
    kept: NDArray[np.bool_] = np.moveaxis(np.broadcast_to(np.asarray(where), arguments.x.shape), plan.axis, 0)
    single = np.flatnonzero(np.count_nonzero(kept.reshape(arguments.channels, arguments.m), axis=1) == 1)
    if len(single):
        fail_single_value(arguments.function, f"where keeps one value in channel {single[0]}")


def _check_variance(arguments: Arguments) -> None:
    """Refuse a bad running variance, where it can be looked at."""
    running_var: Any = arguments.running_var
    if isinstance(running_var, jax.core.Tracer) or not running_var.is_fully_addressable:
        return
    values = np.asarray(running_var)
    bad = ~((values >= 0) & (values < math.inf))
    if bad.any():
        first = int(np.argmax(bad))
        fail_variance(arguments.function, int(bad.sum()), first, float(values[first]))
