"""The specification over NumPy arrays: the forward call, ``moments``, ``merge_moments`` and ``fold``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.arguments import fail_single_value, fail_variance
from polybn.spec import Affine, Arguments, BatchNormResult, Moments
from polybn_numpy import blocks, kernels
from polybn_numpy.derivatives import Call, Residuals
from polybn_numpy.kernels import Statistics

Array = NDArray[Any]


def forward(
    arguments: Arguments,
    *,
    differentiable: bool,  # noqa: ARG001  # the statistics are at hand in any case
) -> tuple[BatchNormResult, Residuals]:
    """Normalize (S1 to S12); ``y`` has the memory layout of ``x``."""
    x, m, training = arguments.x, arguments.m, arguments.training
    kept = blocks.mask_rows(arguments.where, x.shape, arguments.axis)
    counts = blocks.count_kept(kept, arguments.channels, m)
    if training and arguments.unbiased and np.any(counts == 1):
        fail_single_value(arguments.function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
    if training:
        statistics = _empty_statistics(arguments)
    else:
        _check_variance(arguments)
        statistics = _from_running(arguments.running_mean, arguments.running_var, arguments.eps)
    call = Call(arguments, Residuals(kept, counts, statistics))
    y = _normalize(call)
    return BatchNormResult(y, *_update(arguments, counts, statistics)), call.residuals


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15)."""
    x, channels, dtype = arguments.x, arguments.channels, arguments.dtype
    kept = blocks.mask_rows(arguments.where, x.shape, arguments.axis)
    counts = blocks.count_kept(kept, channels, arguments.m)
    mean, m2 = (np.zeros(channels, dtype) for _ in range(2))
    first = blocks.channels_first(x, arguments.axis)

    def measure(block: slice) -> None:
        part = blocks.gather_mask(kept, block)
        load = partial(blocks.gather, first, block, dtype, part)
        _, statistics = kernels.standardize(load, np.maximum(counts[block, None], 1), 0.0, part)
        mean[block] = statistics.mean()[:, 0]
        m2[block] = np.ldexp(statistics.v * counts[block, None], 2 * statistics.exponent)[:, 0]

    if x.size:
        blocks.for_each_block(measure, channels, arguments.m)
    return Moments(counts, mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
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


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    _check_variance(arguments)
    mean, variance = arguments.running_mean, arguments.running_var
    scale = kernels.inverse_root(variance, variance.dtype.type(arguments.eps))
    with np.errstate(all="ignore"):
        if arguments.gamma is not None:
            scale *= arguments.gamma
        shift = -mean * scale
        return Affine(scale, shift if arguments.beta is None else shift + arguments.beta)


def _update(arguments: Arguments, counts: NDArray[np.int64], statistics: Statistics) -> tuple[Any, Any]:
    """Return the new running statistics (S4)."""
    old_mean, old_var = arguments.running_mean, arguments.running_var
    if old_mean is None or old_var is None:
        return None, None
    if not arguments.training or not arguments.x.size:
        return old_mean.copy(), old_var.copy()
    with np.errstate(all="ignore"):
        variance = statistics.variance()[:, 0]
        if arguments.unbiased:
            variance = (variance * (counts / np.maximum(counts - 1, 1))).astype(variance.dtype)
        new_mean = _blend(old_mean, statistics.mean()[:, 0], arguments.momentum, counts)
        return new_mean, _blend(old_var, variance, arguments.momentum, counts)


def _normalize(call: Call) -> Array:
    """Compute ``y`` block by block; in training, fill in the statistics on the way."""
    arguments, (mask, _, statistics) = call
    x, gamma, beta = arguments.x, arguments.gamma, arguments.beta
    y: Array = np.empty_like(x)
    source, target = (blocks.channels_first(a, arguments.axis) for a in (x, y))

    def normalize(block: slice) -> None:
        kept = blocks.gather_mask(mask, block)
        if arguments.training:
            load = partial(blocks.gather, source, block, arguments.dtype, kept)
            rows, measured = kernels.standardize(load, call.divisor(block), arguments.eps, kept)
            for whole, part in zip(statistics, measured, strict=True):
                whole[block] = part
        else:
            rows = call.centered(block, kept)
        kernels.affine(rows, statistics.r[block], blocks.column(gamma, block), blocks.column(beta, block), kept)
        blocks.scatter(rows, target, block)

    if x.size:
        blocks.for_each_block(normalize, arguments.channels, arguments.m)
    return y


def _empty_statistics(arguments: Arguments) -> Statistics:
    m1, delta, v, r = (np.zeros((arguments.channels, 1), arguments.dtype) for _ in range(4))
    return Statistics(m1, delta, v, r, np.zeros((arguments.channels, 1), np.int32))


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


def _check_variance(arguments: Arguments) -> None:
    variance = arguments.running_var
    bad = ~((variance >= 0) & (variance < np.inf))
    if bad.any():
        first = int(np.argmax(bad))
        fail_variance(arguments.function, int(bad.sum()), first, float(variance[first]))
