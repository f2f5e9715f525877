"""The specification over NumPy arrays: forward and backward calls, ``moments``, ``merge_moments`` and ``fold``.

This file allocates memory and chooses the implementation; the arithmetic is in the compiled kernels
(:mod:`polybn_numpy.host`) or in plain NumPy (:mod:`polybn_numpy.plain`), which have the same functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.arguments import fail_single_value
from polybn.spec import Affine, Arguments, BatchNormResult, DTypeError, Gradients, Moments
from polybn_numpy import host, integers, plain
from polybn_numpy.call import (
    Residuals,
    Results,
    arrays_of,
    check_variances,
    count_kept,
    hand_over,
    make_result,
    native,
)

Array = NDArray[Any]


def forward(arguments: Arguments, *, differentiable: bool) -> tuple[BatchNormResult, Residuals | None]:
    """Normalize (S1 to S12); ``y`` is ``out``, or a new array with the memory layout of ``x``."""
    given, arguments = arguments, _native(arguments)
    counts = count_kept(arguments)
    engine = host if host.serves() else plain
    if not arguments.training:
        if engine is plain or host.bad_variances(arguments):
            check_variances(arguments.function, arguments.running_var)
    elif arguments.unbiased and counts is not None and np.any(counts == 1):
        fail_single_value(arguments.function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
    out = arguments.own.get("out")
    y = make_result(arguments.function, given, out)
    mean, var = arguments.running_mean, arguments.running_var
    if mean is not None and var is not None:
        mean, var = mean.copy(), var.copy()
    saved = np.zeros((5, arguments.channels)) if differentiable else None
    if y.size:
        engine.normalize(arguments, counts, Results(y, mean, var, None, None, saved))
    result = BatchNormResult(hand_over(y, given.x, out), mean, var)
    return result, None if saved is None else Residuals(counts, saved)


def backward(arguments: Arguments, residuals: Residuals, dy: Array, *, out: Array | None = None) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13); ``dx`` is ``out`` if that is given."""
    given, arguments, training = arguments, _native(arguments), arguments.training
    dx = make_result("batch_norm_vjp", given, out, dy)
    wanted = (arguments.gamma is not None, arguments.beta is not None, not training, not training)
    gradients = Gradients(dx, *[np.zeros(arguments.channels, arguments.dtype) if w else None for w in wanted])
    if dx.size:
        engine = host if host.serves() else plain
        engine.differentiate(arguments, residuals, native(dy), gradients)
    result = hand_over(dx, given.x, out)
    return gradients if result is dx else gradients._replace(x=result)


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15)."""
    if arguments.own:
        raise DTypeError(f"polybn.moments: out must be left out; got {arguments.own} (moments are new arrays)")
    if arguments.x.dtype.kind in "iu":
        return integers.moments(arguments.x, arguments.axis, arguments.where)
    arguments = _native(arguments)
    channels, counts = arguments.channels, count_kept(arguments)
    mean, m2, saved = np.zeros(channels, arguments.dtype), np.zeros(channels, arguments.dtype), np.zeros((5, channels))
    if arguments.x.size:
        engine = host if host.serves() else plain
        engine.normalize(arguments, counts, Results(None, None, None, mean, m2, saved))
    with np.errstate(invalid="ignore"):  # S9
        low = ((saved[0] - mean) + saved[1]).astype(mean.dtype)
    return Moments(np.full(channels, arguments.m, np.int64) if counts is None else counts, mean, m2, low)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
    a, b = (part if part.low is not None else part._replace(low=np.zeros_like(part.mean)) for part in (a, b))
    fewer = a.count < b.count
    large, small = (Moments(*map(np.where, (fewer,) * 4, *parts)) for parts in ((b, a), (a, b)))
    count, none = a.count + b.count, small.count == 0
    share = small.count / np.maximum(count, 1)
    with np.errstate(all="ignore"):
        distance = (_wide(small.mean) - large.mean) + (_wide(small.low) - large.low)
        mean, low = _two_sum(_wide(large.mean), distance * share)
        mean, low = _split(*_two_sum(mean, low + large.low), large.mean.dtype)
        m2 = (_wide(a.m2) + b.m2 + distance * distance * share * large.count).astype(mean.dtype)
    merged = zip((large.mean, large.m2, large.low), (mean, m2, low), strict=True)
    return Moments(count, *(np.where(none, alone, both) for alone, both in merged))


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    arguments = _native(arguments)
    mean, variance = arguments.running_mean, arguments.running_var
    check_variances(arguments.function, variance)
    gamma = 1 if arguments.gamma is None else arguments.gamma
    with np.errstate(all="ignore"):
        eps = variance.dtype.type(arguments.eps)
        scale = gamma * plain.inverse_root(plain.widest(variance), plain.widest(eps))
        shift = -(mean * scale)
        if arguments.beta is not None:
            shift += arguments.beta
        return Affine(scale.astype(variance.dtype), shift.astype(variance.dtype))


def _native(arguments: Arguments) -> Arguments:
    arrays = arrays_of(arguments)
    for array in arrays:
        if array is not None and not array.dtype.isnative:
            x, gamma, beta, mean, variance, where = map(native, arrays)
            return arguments._replace(x=x, gamma=gamma, beta=beta, running_mean=mean, running_var=variance, where=where)
    return arguments


def _wide(vector: Array) -> Array:
    return vector.astype(np.float64)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum, and exactly what it lost."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _split(high: Array, low: Array, dtype: Any) -> tuple[Array, Array]:
    """Round a sum of two numbers to a dtype; return that, and what it lost."""
    rounded = (high + low).astype(dtype)
    return rounded, ((high - rounded) + low).astype(dtype)
