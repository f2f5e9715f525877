"""The specification over NumPy arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
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
from polybn_numpy import blocks, kernels
from polybn_numpy.derivatives import Call, Pullback
from polybn_numpy.kernels import Statistics

Array = NDArray[Any]


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
) -> BatchNormResult:
    """Normalize NumPy arrays; see :func:`polybn.batch_norm`.

    ``y`` has the memory layout of ``x``. Subclasses such as masked arrays and matrices are refused;
    memory maps are served.
    """
    return _forward(
        "batch_norm", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where,
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
) -> tuple[BatchNormResult, Pullback]:
    """Normalize and return the derivative, too; see :func:`polybn.batch_norm_vjp`.

    The pullback holds references to ``x``, ``gamma`` and ``where``, not copies: do not write to them before it ran.
    """
    result, call = _forward(
        "batch_norm_vjp", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where,
    )  # fmt: skip
    return result, Pullback(call)


def moments(x: Array, *, axis: int = 1, where: Array | None = None) -> Moments:
    """Return the mergeable statistics of a NumPy array; see :func:`polybn.moments`."""
    check_arrays("moments", "NumPy", is_array, x=x, where=where)
    problem = check_moments("moments", x, axis=axis, where=where)
    kept = blocks.mask_rows(where, x.shape, problem.axis)
    counts = blocks.count_kept(kept, problem.channels, problem.count)
    mean, m2 = (np.zeros(problem.channels, problem.dtype) for _ in range(2))
    first = blocks.channels_first(x, problem.axis)

    def measure(block: slice) -> None:
        part = blocks.gather_mask(kept, block)
        load = partial(blocks.gather, first, block, problem.dtype, part)
        _, statistics = kernels.standardize(load, np.maximum(counts[block, None], 1), 0.0, part)
        mean[block] = statistics.mean()[:, 0]
        m2[block] = np.ldexp(statistics.v * counts[block, None], 2 * statistics.exponent)[:, 0]

    if x.size:
        blocks.for_each_block(measure, problem.channels, problem.count)
    return Moments(counts, mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15); see :func:`polybn.merge_moments`."""
    check_merge_moments("NumPy", is_array, a, b)
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    with np.errstate(all="ignore"):
        distance = b.mean.astype(np.float64) - a.mean
        mean = (a.mean + distance * share).astype(a.mean.dtype)
        m2 = (a.m2.astype(np.float64) + b.m2 + distance * distance * share * a.count).astype(a.m2.dtype)
    conditions = [b.count == 0, a.count == 0]
    return Moments(
        count, np.select(conditions, [a.mean, b.mean], default=mean), np.select(conditions, [a.m2, b.m2], default=m2)
    )


def fold(
    gamma: Array | None, beta: Array | None, running_mean: Array, running_var: Array, *, eps: float = 1e-5
) -> Affine:
    """Turn inference into ``scale * x + shift``; see :func:`polybn.fold`."""
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays("fold", "NumPy", is_array, **arrays)
    check_fold(**arrays, eps=eps)
    _check_variance("fold", running_var)
    scale = kernels.inverse_root(running_var, running_var.dtype.type(eps))
    with np.errstate(all="ignore"):
        if gamma is not None:
            scale *= gamma
        shift = -running_mean * scale
        return Affine(scale, shift if beta is None else shift + beta)


def is_array(value: object) -> bool:
    """Tell an ndarray from the subclasses that change its meaning: masked arrays, matrices, quantities."""
    return type(value) in (np.ndarray, np.memmap)


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
) -> tuple[BatchNormResult, Call]:
    arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays(function, "NumPy", is_array, **arrays, where=where)
    problem = check_batch_norm(
        function, *arrays.values(), training=training, momentum=momentum, eps=eps, axis=axis,
        running_variance=running_variance, where=where,
    )  # fmt: skip
    momentum, eps = float(momentum), float(eps)  # 1 - momentum in float16 would round
    kept = blocks.mask_rows(where, x.shape, problem.axis)
    counts = blocks.count_kept(kept, problem.channels, problem.count)
    if training and running_variance == "unbiased" and np.any(counts == 1):
        fail_single_value(function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
    if not training:
        assert running_mean is not None  # check_batch_norm saw to both
        assert running_var is not None
        _check_variance(function, running_var)
        statistics = _from_running(running_mean, running_var, eps)
    else:
        statistics = _empty_statistics(problem)
    call = Call(x, gamma, beta, kept, counts, statistics, problem, training)
    y = _normalize(call, eps)
    if not training or not x.size or running_mean is None or running_var is None:
        return BatchNormResult(y, _copy(running_mean), _copy(running_var)), call
    with np.errstate(all="ignore"):
        variance = statistics.variance()[:, 0]
        if running_variance == "unbiased":
            variance = (variance * (counts / np.maximum(counts - 1, 1))).astype(variance.dtype)
        new_mean = _blend(running_mean, statistics.mean()[:, 0], momentum, counts)
        new_var = _blend(running_var, variance, momentum, counts)
    return BatchNormResult(y, new_mean, new_var), call


def _normalize(call: Call, eps: float) -> Array:
    """Compute ``y`` block by block; in training, fill in the statistics on the way."""
    y = np.empty_like(call.x)
    source, target = (blocks.channels_first(a, call.problem.axis) for a in (call.x, y))

    def normalize(block: slice) -> None:
        kept = blocks.gather_mask(call.kept, block)
        if call.training:
            load = partial(blocks.gather, source, block, call.problem.dtype, kept)
            rows, statistics = kernels.standardize(load, call.divisor(block), eps, kept)
            for whole, part in zip(call.statistics, statistics, strict=True):
                whole[block] = part
        else:
            rows = call.centered(block, kept)
        r = call.statistics.r[block]
        kernels.affine(rows, r, blocks.column(call.gamma, block), blocks.column(call.beta, block), kept)
        blocks.scatter(rows, target, block)

    if call.x.size:
        blocks.for_each_block(normalize, call.problem.channels, call.problem.count)
    return y


def _empty_statistics(problem: Problem) -> Statistics:
    m1, delta, v, r = (np.zeros((problem.channels, 1), problem.dtype) for _ in range(4))
    return Statistics(m1, delta, v, r, np.zeros((problem.channels, 1), np.int32))


def _from_running(mean: Array, variance: Array, eps: float) -> Statistics:
    v = variance[:, None]
    r = kernels.inverse_root(v, v.dtype.type(eps))
    return Statistics(mean[:, None], np.zeros_like(v), v, r, np.zeros(v.shape, np.int32))


def _blend(old: Array, batch: Array, momentum: float, counts: NDArray[np.int64]) -> Array:
    """Move ``old`` towards ``batch``: exact at the ends (S4), and not at all where nothing was kept (S12)."""
    if momentum in (0, 1):
        new = old if momentum == 1 else batch
    else:
        new = old.dtype.type(momentum) * old + old.dtype.type(1 - momentum) * batch
    return np.where(counts == 0, old, new)


def _check_variance(function: str, running_var: Array) -> None:
    bad = ~((running_var >= 0) & (running_var < np.inf))
    if bad.any():
        first = int(np.argmax(bad))
        check_negative_variance(function, int(bad.sum()), first, float(running_var[first]))


def _copy(array: Array | None) -> Array | None:
    return None if array is None else array.copy()
