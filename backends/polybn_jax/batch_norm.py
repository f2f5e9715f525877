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
from polybn.spec import Affine, Arguments, BatchNormResult, DomainError, Moments
from polybn_jax import kernels
from polybn_jax.call import Numbers, Operands, Plan, number, numbers_of, operands_of, plan_of
from polybn_jax.explicit import Shardings, settle
from polybn_jax.kernels import Statistics, View
from polybn_jax.processes import check_process


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
    _check_total("moments", "the number of values per channel must be", arguments.m, jnp.zeros((), int).dtype)
    return _moments(operands_of(arguments), plan=plan_of(arguments))


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    _check_variance(arguments)
    return _fold(operands_of(arguments), number(arguments.eps, arguments.dtype))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15). Counts never wrap: too many are an error, and NaN under tracing."""
    check_process("merge_moments")
    counts = [z.count for z in (a, b)]
    if all(map(_visible, counts)):
        whole = np.asarray(counts[0]).astype(float) + np.asarray(counts[1])
        _check_total("merge_moments", "counts must add up to", float(whole.max(initial=0)), counts[0].dtype)
    return _merge_moments(a, b)


@jax.jit
@settle(lambda lie, a, _: lie.of(a.mean))
def _merge_moments(a: Moments, b: Moments) -> Moments:
    a, b = (z if z.low is not None else z._replace(low=jnp.zeros_like(z.mean)) for z in (a, b))
    fewer = a.count < b.count
    large, small = (jax.tree.map(partial(jnp.where, fewer), *parts) for parts in ((b, a), (a, b)))
    most = jnp.iinfo(a.count.dtype).max
    lost, alone = a.count > most - b.count, small.count == 0
    n_large, n_small = (z.count.astype(a.mean.dtype) for z in (large, small))
    share = n_small / jnp.maximum(n_large + n_small, 1)
    distance = (small.mean - large.mean) + (small.low - large.low)
    total, rest = _two_sum(large.mean, distance * share)
    mean, low = _two_sum(total, rest + large.low)
    m2 = large.m2 + small.m2 + distance * distance * share * n_large
    nan = jnp.full_like(mean, jnp.nan)
    return Moments(
        jnp.where(lost, most, a.count + b.count),
        jnp.select([lost, alone], [nan, large.mean], mean),
        jnp.select([lost, alone], [nan, large.m2], m2),
        lax.stop_gradient(jnp.select([lost, alone], [nan, large.low], low)),
    )


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the rounded sum, and exactly what it lost."""
    total = a + b
    part = total - a
    return total, lax.stop_gradient((a - (total - part)) + (b - part))


def _as_given(lie: Shardings, given: Operands, _: Numbers, *, plan: Plan) -> Any:
    """Say that ``y`` lies as ``x`` does, a new running statistic as the old one, and all else as the channels."""
    result = BatchNormResult(*map(lie.of, (given.x, given.running_mean, given.running_var)))
    return result, lie.of_channels(given.x, plan.axis)


@partial(jax.jit, static_argnames="plan")
@settle(_as_given)
def _forward(operands: Operands, numbers: Numbers, *, plan: Plan) -> tuple[BatchNormResult, Statistics]:
    x, gamma, beta, running_mean, running_var, where = operands
    view = kernels.view(x, where, plan.axis, plan.axis_name)
    if plan.training:
        s = kernels.batch_statistics(view.x, view.kept, view.counts, gamma, numbers.eps, plan.axis_name)
    else:
        s = kernels.running_statistics(running_mean, running_var, gamma, numbers.eps)
    y = kernels.normalize(view.x, gamma, beta, s, view.kept, view.counts if plan.training else None, plan.axis_name)
    y = y.reshape(x.shape).astype(x.dtype)
    return BatchNormResult(y, *_update(operands, numbers, plan, view, s)), s


@partial(jax.jit, static_argnames="plan")
@settle(lambda lie, operands, *, plan: lie.of_channels(operands.x, plan.axis))
def _moments(operands: Operands, *, plan: Plan) -> Moments:
    view = kernels.view(operands.x, operands.where, plan.axis, plan.axis_name)
    eps = jnp.zeros((), view.counts.dtype)
    s = kernels.batch_statistics(view.x, view.kept, view.counts, None, eps, plan.axis_name)
    lost = view.tally == jnp.iinfo(view.tally.dtype).max
    n = jnp.where(view.empty, 0, jnp.where(lost, jnp.nan, view.counts))
    low = lax.stop_gradient(((s.m1 - s.mean * s.scale) + s.delta) / s.scale)
    return Moments(view.tally, jnp.where(lost, jnp.nan, s.mean), s.variance * n, jnp.where(lost, jnp.nan, low))


@jax.jit
@settle(lambda lie, operands, _: lie.of(operands.running_mean))
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
    if not plan.training or operands.x.size == 0:
        return jnp.copy(old_mean), jnp.copy(old_var)
    share = jnp.ones_like(s.v)
    if plan.unbiased:  # one value has no unbiased variance: NaN stands for the error where values cannot be seen
        n = view.counts
        share = jnp.where(n == 1, jnp.nan, n / jnp.maximum(n - 1, 1))
    new_mean = _blend(old_mean, s.mean, numbers, view.empty)
    # The share of the batch may be in range where its variance is not.
    new_var = _blend(old_var, s.v * share, numbers, view.empty, 1 / s.scale)
    return lax.stop_gradient(new_mean), lax.stop_gradient(new_var)


def _blend(old: jax.Array, batch: jax.Array, numbers: Numbers, empty: jax.Array, unit: Any = 1) -> jax.Array:
    """Move ``old`` towards ``batch * unit^2``: exact at the ends (S4), not at all where nothing was kept (S12)."""
    keep, take, _ = numbers
    part = jnp.where(keep == 0, batch, take * batch) * unit * unit
    return jnp.where(empty | (take == 0), old, jnp.where(keep == 0, part, keep * old + part))


def _check_counts(arguments: Arguments, plan: Plan) -> None:
    """Refuse an unbiased variance of one value, where the mask can be looked at and tells."""
    where = arguments.where
    if not arguments.unbiased or where is None or plan.axis_name is not None or not _visible(where):
        return
    kept: NDArray[np.bool_] = np.moveaxis(np.broadcast_to(np.asarray(where), arguments.x.shape), plan.axis, 0)
    single = np.flatnonzero(np.count_nonzero(kept.reshape(arguments.channels, arguments.m), axis=1) == 1)
    if len(single):
        fail_single_value(arguments.function, f"where keeps one value in channel {single[0]}")


def _check_variance(arguments: Arguments) -> None:
    """Refuse a bad running variance, where it can be looked at."""
    running_var: Any = arguments.running_var
    if not _visible(running_var):
        return
    values = np.asarray(running_var)
    bad = ~((values >= 0) & (values < math.inf))
    if bad.any():
        first = int(np.argmax(bad))
        fail_variance(arguments.function, int(bad.sum()), first, float(values[first]))


def _check_total(function: str, rule: str, values: Any, dtype: Any) -> None:
    """Refuse more values than a count can hold."""
    most = np.iinfo(dtype).max
    if isinstance(values, int | float) and values > most:
        raise DomainError(
            f"polybn.{function}: {rule} at most {most}; got {int(values)} "
            f"(counts are {dtype}: jax.config.update('jax_enable_x64', True) makes them int64)"
        )


def _visible(array: Any) -> bool:
    """Tell whether the values of an array can be looked at here and now."""
    return not isinstance(array, jax.core.Tracer) and array.is_fully_addressable
