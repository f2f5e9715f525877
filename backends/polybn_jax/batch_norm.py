"""The specification over JAX arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from polybn.arguments import (
    Problem,
    check_arrays,
    check_batch_norm,
    check_fold,
    check_merge_moments,
    check_moments,
    check_negative_variance,
    fail_single_value,
)
from polybn.spec import Affine, BatchNormResult, Moments, RunningVariance
from polybn_jax import kernels
from polybn_jax.derivatives import Pullback, is_array, normalize
from polybn_jax.kernels import AxisName, Statistics

Array: TypeAlias = jax.Array


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
    axis_name: AxisName = None,
) -> BatchNormResult:
    """Normalize JAX arrays; see :func:`polybn.batch_norm`.

    It composes with ``jit``, ``grad``, ``jvp``, ``vmap`` and what else JAX has. Under tracing no value is
    looked at: a negative ``running_var`` is then no error.
    """
    return _forward(
        "batch_norm", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where, axis_name=axis_name,
    )[0]  # fmt: skip


def batch_norm_vjp(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
    axis_name: AxisName = None,
) -> tuple[BatchNormResult, Pullback]:
    """Normalize and return the derivative, too; see :func:`polybn.batch_norm_vjp`."""
    return _forward(
        "batch_norm_vjp", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where, axis_name=axis_name,
    )  # fmt: skip


def moments(x: Array, *, axis: int = 1, where: Array | None = None, axis_name: AxisName = None) -> Moments:
    """Return the mergeable statistics of a JAX array; see :func:`polybn.moments`."""
    check_arrays("moments", "JAX", is_array, x=x, where=where)
    problem = check_moments("moments", x, axis=axis, where=where)
    return _moments(x, where, axis=problem.axis, axis_name=axis_name)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15); see :func:`polybn.merge_moments`."""
    check_merge_moments("JAX", is_array, a, b)
    return _merge(a, b)


def fold(
    gamma: Array | None, beta: Array | None, running_mean: Array, running_var: Array, *, eps: float = 1e-5
) -> Affine:
    """Turn inference into ``scale * x + shift``; see :func:`polybn.fold`."""
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays("fold", "JAX", is_array, **arrays)
    check_fold(**arrays, eps=eps)
    _check_variance("fold", running_var)
    return _fold(gamma, beta, running_mean, running_var, _number(eps, running_var.dtype))


def _forward(
    function: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    axis: int,
    running_variance: str,
    where: Array | None,
    axis_name: AxisName,
) -> tuple[BatchNormResult, Pullback]:
    arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays(function, "JAX", is_array, **arrays, where=where)
    # One value here may be one of many: what is too few shows on all devices together, where nobody looks at values.
    checked = "biased" if axis_name is not None and running_variance == "unbiased" else running_variance
    problem = check_batch_norm(
        function, *arrays.values(), training=training, momentum=momentum, eps=eps, axis=axis,
        running_variance=checked, where=where,
    )  # fmt: skip
    if training and running_variance == "unbiased" and where is not None:
        _check_counts(function, where, x.shape, problem)
    if not training:
        _check_variance(function, running_var)
    keep, eps_ = (_number(v, problem.dtype) for v in (momentum, eps))
    take = _number(1 - float(momentum), problem.dtype)
    result, statistics = _normalize(
        x, gamma, beta, running_mean, running_var, where, keep, take, eps_,
        training=training, axis=problem.axis, unbiased=running_variance == "unbiased", axis_name=axis_name,
    )  # fmt: skip
    how: dict[str, Any] = {"axis": problem.axis, "training": training, "axis_name": axis_name}
    return result, Pullback(x, gamma, beta, where, statistics, eps_, **how)


@partial(jax.jit, static_argnames=("training", "axis", "unbiased", "axis_name"))
def _normalize(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    where: Array | None,
    keep: Array,
    take: Array,
    eps: Array,
    *,
    training: bool,
    axis: int,
    unbiased: bool,
    axis_name: AxisName,
) -> tuple[BatchNormResult, Statistics]:
    view = kernels.view(x, where, axis, axis_name)
    if training:
        s = kernels.batch_statistics(view.x, view.kept, view.counts, eps, axis_name)
    else:
        assert running_mean is not None  # check_batch_norm saw to both
        assert running_var is not None
        s = kernels.running_statistics(running_mean, running_var, eps)
    y = normalize(view.x, gamma, beta, s, view.kept, view.counts if training else None, axis_name)
    y = y.reshape(x.shape).astype(x.dtype)
    if running_mean is None or running_var is None:
        return BatchNormResult(y, None, None), s
    if not training or not x.size:
        return BatchNormResult(y, jnp.copy(running_mean), jnp.copy(running_var)), s
    n, variance = view.counts, s.variance
    if unbiased:
        variance = variance * (n / jnp.maximum(n - 1, 1))
    new_mean = _blend(running_mean, s.mean, keep, take, view.empty)
    new_var = _blend(running_var, variance, keep, take, view.empty)
    return BatchNormResult(y, lax.stop_gradient(new_mean), lax.stop_gradient(new_var)), s


@partial(jax.jit, static_argnames=("axis", "axis_name"))
def _moments(x: Array, where: Array | None, *, axis: int, axis_name: AxisName) -> Moments:
    view = kernels.view(x, where, axis, axis_name)
    dtype = view.counts.dtype
    s = kernels.batch_statistics(view.x, view.kept, view.counts, jnp.zeros((), dtype), axis_name)
    n = jnp.where(view.empty, 0, view.counts)
    return Moments(view.tally, s.mean, s.variance * n)


@jax.jit
def _merge(a: Moments, b: Moments) -> Moments:
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


@jax.jit
def _fold(gamma: Array | None, beta: Array | None, mean: Array, variance: Array, eps: Array) -> Affine:
    scale = kernels.inverse_root(variance, eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return Affine(scale, shift if beta is None else shift + beta)


def _blend(old: Array, batch: Array, keep: Array, take: Array, empty: Array) -> Array:
    """Move ``old`` towards ``batch``: exact at the ends (S4), and not at all where nothing was kept (S12)."""
    new = jnp.where(keep == 0, batch, keep * old + take * batch)
    return jnp.where(empty | (take == 0), old, new)


def _number(value: Any, dtype: Any) -> Any:
    """Round a Python number once, on the host: an operand of the compiled program, whose values do not retrace it."""
    return np.dtype(dtype).type(float(value))


def _check_counts(function: str, where: Array, shape: tuple[int, ...], problem: Problem) -> None:
    if isinstance(where, jax.core.Tracer):
        return
    kept: NDArray[np.bool_] = np.moveaxis(np.broadcast_to(np.asarray(where), shape), problem.axis, 0)
    single = np.flatnonzero(np.count_nonzero(kept.reshape(problem.channels, problem.count), axis=1) == 1)
    if len(single):
        fail_single_value(function, f"where keeps one value in channel {single[0]}")


def _check_variance(function: str, running_var: Any) -> None:
    if isinstance(running_var, jax.core.Tracer) or not running_var.is_fully_addressable:
        return
    values = np.asarray(running_var)
    bad = ~((values >= 0) & (values < math.inf))
    if bad.any():
        first = int(np.argmax(bad))
        check_negative_variance(function, int(bad.sum()), first, float(values[first]))
