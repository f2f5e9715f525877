"""The specification over the Array API standard: the forward call, ``moments``, ``merge_moments`` and ``fold``.

Read it beside :mod:`polybn.spec`. ``xp`` is the namespace of any library.
"""

from __future__ import annotations

from typing import Any

from polybn.arguments import Arrays, fail_single_value, fail_variance
from polybn.spec import Affine, Arguments, Array, BatchNormResult, Moments
from polybn_array_api.arithmetic import (
    Statistics,
    center,
    given,
    halving,
    inverse_root,
    measure,
    multiply,
    normal,
    split,
    times,
    unscaled,
)
from polybn_array_api.layout import Layout, layout_of


def forward(xp: Any, arguments: Arguments) -> tuple[BatchNormResult, Statistics | None]:
    """Normalize (S1 to S12)."""
    x, vectors = arguments.x, arguments[2:6]
    a = layout_of(xp, arguments, x)
    if not arguments.training:
        arguments = arguments._replace(running_var=checked_variance(a, arguments))
    if 0 in x.shape:
        return BatchNormResult(xp.zeros_like(x), *(copy(xp, old) for old in vectors[2:])), None
    gamma, beta, old_mean, old_var = map(a.column, arguments[2:6])
    kept = a.kept(arguments.where)
    rows, counts = a.values(x, kept), a.counts(kept)
    new: tuple[Array, ...] = vectors[2:]
    if arguments.training:
        _check_counts(a, arguments, counts)
        s = measure(a, rows, kept, a.divisor(counts), arguments.eps)
        if old_mean is not None:
            new = _update(a, arguments, (old_mean, old_var), s, counts)
    else:
        s = given(a, old_mean, old_var, arguments.eps)
        new = tuple(copy(xp, old) for old in vectors[2:])
    c, half = center(a, rows, s, kept), halving(a, beta)
    if arguments.training:
        y = times(c * times(s.r, half), gamma)
    else:
        (gamma, small), (r, size) = normal(a, gamma), split(a, s.r)
        y = multiply(a, c * times(r, half), gamma, times(size, small), None if s.scale is None else 1 / s.scale)
    y = a.mask(y if beta is None else y + times(beta, half), kept)
    y = y if half is None else y / half
    return BatchNormResult(a.array(y, x.dtype), *new), s


def moments(xp: Any, arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15)."""
    a = layout_of(xp, arguments, arguments.x)
    kept, dtype = a.kept(arguments.where), getattr(xp, arguments.dtype)
    counts = a.counts(kept)
    tally = a.vector(counts, xp.int64)
    if 0 in arguments.x.shape:
        return Moments(tally, *(xp.zeros(tally.shape, dtype=dtype, device=a.device) for _ in range(3)))
    n = a.divisor(counts)
    s = measure(a, a.values(arguments.x, kept), kept, n, 0.0)
    mean = a.vector(unscaled(a, s.m1 + s.delta, s.scale), dtype)
    m1, delta = (a.vector(unscaled(a, z, s.scale), a.wide) for z in (s.m1, s.delta))
    low = xp.astype((m1 - xp.astype(mean, a.wide)) + delta, dtype)
    return Moments(tally, mean, a.vector(unscaled(a, s.v * n, s.scale, s.scale), dtype), low)


def merge_moments(xp: Any, a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
    wide, dtype = layout_of(xp, _NOTHING, a.mean).wide, a.mean.dtype
    a, b = (part if part.low is not None else part._replace(low=xp.zeros_like(part.mean)) for part in (a, b))
    fewer = a.count < b.count
    large, small = (Moments(*(xp.where(fewer, p, q) for p, q in zip(*pair, strict=True))) for pair in ((b, a), (a, b)))
    (n, mean, m2, low), (n_small, *others) = ([xp.astype(z, wide) for z in part] for part in (large, small))
    share = n_small / xp.maximum(n + n_small, xp.ones_like(n))
    distance = (others[0] - mean) + (others[2] - low)
    total, rest = _two_sum(mean, distance * share)
    total, rest = _two_sum(total, rest + low)
    new_mean = xp.astype(total + rest, dtype)
    new_low = xp.astype((total - xp.astype(new_mean, wide)) + rest, dtype)
    new_m2 = xp.astype(m2 + others[1] + distance * distance * share * n, dtype)
    merged = zip(large[1:], (new_mean, new_m2, new_low), strict=True)
    return Moments(a.count + b.count, *(xp.where(small.count == 0, alone, both) for alone, both in merged))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its exact rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fold(xp: Any, arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    dtype = arguments.running_mean.dtype
    a = layout_of(xp, arguments, arguments.running_mean)
    variance = a.column(checked_variance(a, arguments))
    gamma, beta, mean = map(a.column, arguments[2:5])
    scale = times(inverse_root(a, variance, a.number(arguments.eps)), gamma)
    shift = -mean * scale if beta is None else beta - mean * scale
    return Affine(a.vector(scale, dtype), a.vector(shift, dtype))


def copy(xp: Any, vector: Array | None) -> Array | None:
    """Copy a vector; None stays None."""
    return None if vector is None else xp.astype(vector, vector.dtype, copy=True)


def checked_variance(a: Layout, arguments: Arguments) -> Array:
    """Refuse bad running variances; if values cannot be read, bad ones become NaN (S14)."""
    variance = arguments.running_var
    good = (variance >= 0) & a.xp.isfinite(variance)
    found = _any(a, ~good)
    if found is None:
        return a.xp.where(good, variance, a.xp.full_like(variance, float("nan")))
    if found:
        first = int(a.xp.argmax(a.xp.astype(~good, a.xp.int64)))
        bad = int(a.xp.sum(a.xp.astype(~good, a.xp.int64)))
        fail_variance(arguments.function, bad, first, float(variance[first]))
    return variance


def _check_counts(a: Layout, arguments: Arguments, counts: Array) -> None:
    """Refuse an unbiased variance of one value."""
    if not arguments.unbiased or arguments.where is None:
        return
    single = a.xp.reshape(counts, (-1,)) == 1
    if _any(a, single):
        first = int(a.xp.argmax(a.xp.astype(single, a.xp.int64)))
        fail_single_value(arguments.function, f"where keeps one value in channel {first}")


def _any(a: Layout, flags: Array) -> bool | None:
    """Return whether any flag is set; None if values cannot be read, as in a graph and under PyTorch's ``vmap``."""
    if a.blocks:
        return None
    try:
        return bool(a.xp.any(flags))
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def _update(
    a: Layout, arguments: Arguments, old: tuple[Array, Array], s: Statistics, counts: Array
) -> tuple[Array, ...]:
    """Return the new running statistics (S4); a weighted batch variance may be in range if the variance is not."""
    rho, xp, v = arguments.momentum, a.xp, s.v
    if arguments.unbiased:  # NaN for one value, in place of an error that depends on values
        n = xp.astype(counts, a.wide)
        v = v * n / xp.where(n == 1, a.number(float("nan")), xp.maximum(n - 1, a.number(1)))
    mean = s.m1 + s.delta
    news = []
    for before, batch, scales in ((old[0], mean, (s.scale,)), (old[1], v, (s.scale, s.scale))):
        part = unscaled(a, batch if rho == 0 else (1 - rho) * batch, *scales)
        new = part if rho == 0 else before if rho == 1 else rho * before + part
        news.append(a.vector(xp.where(counts == 0, before, new), getattr(xp, arguments.dtype)))
    return tuple(news)


_NOTHING = Arguments("", *Arrays(), True, 1.0, 0.0, False, 1, 0, 0, "float64")
"""The arguments of a call without arrays."""
