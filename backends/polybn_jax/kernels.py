"""Arithmetic on channels: arrays of shape ``(before, channels, after)`` in the type of the statistics.

Per-channel vectors have shape ``(channels,)``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from polybn_jax.reductions import spread, spread_both, total, totals
from polybn_jax.scaling import in_range, power_of_two, two_factors

AxisName: TypeAlias = Any
"""A name of a mapped or mesh axis, or a tuple of them, over which statistics are synchronised; None for none."""


class View(NamedTuple):
    """An array as ``(before, channels, after)``, which is free, and what takes part of it."""

    x: jax.Array
    """In the type of the statistics: halves are widened once, so that parts of a gradient add up in that type."""
    kept: jax.Array | None
    counts: jax.Array
    """Values per channel on all devices, at least 1, in the type of the statistics."""
    tally: jax.Array
    """Values per channel on all devices; integers, and the largest one where there are more."""
    empty: jax.Array
    """Whether a channel has no value."""


def view(x: jax.Array, where: jax.Array | None, axis: int, axis_name: AxisName) -> View:
    """Look at ``x`` and ``where`` channel by channel."""
    channels = x.shape[axis]
    shape = (math.prod(x.shape[:axis]), channels, math.prod(x.shape[axis + 1 :]))
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    if where is None:
        kept, own = None, jnp.full(channels, shape[0] * shape[2], int)
    else:
        kept = jnp.broadcast_to(where, x.shape).reshape(shape)
        own = kept.sum(axis=(0, 2))
    whole = across(own.astype(dtype), axis_name)
    most = jnp.iinfo(own.dtype).max
    tally = jnp.where(whole < most, across(own, axis_name), most)
    # XLA turns a division by a constant into a product with its rounded inverse: constant channels would not be.
    counts = lax.optimization_barrier(jnp.maximum(whole, 1))
    return View(x.astype(dtype).reshape(shape), kept, counts, tally, whole == 0)


class Statistics(NamedTuple):
    """Statistics in the form of S2 and S3; ``m1``, ``delta`` and ``r`` describe the values times ``scale``.

    ``scale`` is a power of two, and 1 but for the channels that S10 rescues.
    """

    m1: jax.Array
    delta: jax.Array
    r: jax.Array
    scale: jax.Array
    slope: jax.Array
    """``r`` of the values themselves."""
    mean: jax.Array
    variance: jax.Array
    v: jax.Array
    """The variance of the values times ``scale``: it fits the range where that of the values does not."""
    first: jax.Array
    second: jax.Array
    """``first * second`` is gamma ``slope``, and gamma ``r`` in inference: one factor might leave the range."""


def running_statistics(
    mean: jax.Array | None, variance: jax.Array | None, gamma: jax.Array | None, eps: jax.Array
) -> Statistics:
    """Take running statistics in place of the batch's (S5)."""
    assert mean is not None
    assert variance is not None
    slope, far = inverse_root(variance, eps), _is_far(mean)
    gamma, one = _or_one(gamma, slope), _ones(mean, far)
    product = slope * gamma
    fits = ~far & in_range(product, slope, gamma)

    def rescue() -> tuple[jax.Array, ...]:
        half = jnp.where(far, 0.5, one)
        return mean * half, slope / half, half, *_factors(slope / half, gamma)

    # A branch for the sake of XLA, as in batch_statistics.
    m1, r, scale, *factors = lax.cond(fits.all(), lambda: (mean, slope, one, product, _ones(slope, fits)), rescue)
    return Statistics(m1, jnp.zeros_like(mean), r, scale, slope, mean, variance, variance, *factors)


def _is_far(z: jax.Array) -> jax.Array:
    """Tell whether these numbers, added to others, can move a sum across the end of the range."""
    info = jnp.finfo(z.dtype)
    return jnp.abs(z) > info.max * info.eps / 4


def largest(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Return the largest magnitude of each channel."""
    found = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=(0, 2), initial=0)
    return found if axis_name is None else lax.pmax(found, axis_name)


def mask(z: jax.Array, kept: jax.Array | None) -> jax.Array:
    """Put 0 into deleted places (S12)."""
    return z if kept is None else jnp.where(kept, z, 0)


def across(z: Any, axis_name: AxisName) -> Any:
    """Add up over the devices of an axis. Sums, not means, travel: uneven and empty shards weigh what they hold."""
    return z if axis_name is None else lax.psum(z, axis_name)


def averages(a: jax.Array, b: jax.Array, counts: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """Return the means of two arrays over each channel; deleted places hold 0."""
    sum_a, sum_b = across(totals(a, b), axis_name)
    return sum_a / counts, sum_b / counts


def centered(x: jax.Array, s: Statistics, kept: jax.Array | None) -> jax.Array:
    """Subtract the mean in the two steps of S2."""
    d = x * spread(s.scale, x) - spread(s.m1, x)
    return mask(d - spread(s.delta, x), kept)


def standardized(x: jax.Array, s: Statistics, kept: jax.Array | None) -> jax.Array:
    """Return the normalized values before gamma and beta."""
    return centered(x, s, kept) * spread(s.r, x)


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def batch_statistics(
    x: jax.Array,
    kept: jax.Array | None,
    counts: jax.Array,
    gamma: jax.Array | None,
    eps: jax.Array,
    axis_name: AxisName,
) -> Statistics:
    """Measure each channel (S2), scaled into the range first where it leaves it (S10)."""
    if x.size == 0:
        zero = jnp.zeros_like(counts)
        return Statistics(*(zero,) * 3, zero + 1, *(zero,) * 6)
    x = mask(x, kept)
    m1, delta, v = _measure(x, kept, counts, axis_name)
    square, gamma = v + eps, _or_one(gamma, v)
    info = jnp.finfo(x.dtype)
    strayed = ~jnp.isfinite(square) | (square < info.tiny * 2.0**64)
    usual = _usual(m1, delta, v, gamma, eps, strayed)
    fits = ~strayed & in_range(usual.first, usual.r, gamma)
    # Both branches return finished statistics: XLA repeats arithmetic on vectors in each loop over x that reads its
    # result, once for every value, but not what a branch returns.
    return lax.cond(
        fits.all(),
        lambda: usual,
        lambda: _rescue(x, kept, counts, gamma, eps, strayed, axis_name),
    )


@batch_statistics.defjvp
def _batch_statistics_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    x, kept, counts, gamma, eps = primals
    s = batch_statistics(x, kept, counts, gamma, eps, axis_name)
    a = mask(tangents[0], kept)
    mean, product = averages(a, a * centered(x, s, kept), counts, axis_name)
    inner = s.slope * (s.r * product)
    zero, variance = jnp.zeros_like(mean), 2 * product / s.scale
    v, slope = 2 * product * s.scale, -s.slope * inner
    first = slope / s.second if gamma is None else slope * (gamma / s.second) + tangents[3] * (s.slope / s.second)
    return s, Statistics(mean * s.scale, zero, -s.r * inner, zero, slope, mean, variance, v, first, zero)


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def normalize(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    s: Statistics,
    kept: jax.Array | None,
    counts: jax.Array | None,
    axis_name: AxisName,  # noqa: ARG001  # the tangent rule reads it
) -> jax.Array:
    """Normalize, scale and shift (S3); 0 in deleted places.

    ``s`` are statistics of the batch (``counts`` given), or running statistics. The tangent rule is that of the whole
    call: in training the tangent of ``x`` stands for that of ``s``, too.
    """
    y = centered(x, s, kept) if counts is None else standardized(x, s, kept)
    factors = [s.first, s.second] if counts is None else [] if gamma is None else [gamma]
    unit = None
    if beta is not None and factors:
        # Beta may bring back a product that leaves the range (S10): where beta is large, a quarter of each is added.
        unit = jnp.where(_is_far(beta), 4, jnp.ones_like(beta))
        # Without the barrier, XLA would divide for each value.
        factors[0], beta, unit = lax.optimization_barrier((factors[0] / unit, beta / unit, unit))
    for factor in factors:
        y = y * spread(factor, x)
    if beta is not None:
        y = y + spread(beta, y)
    return mask(y if unit is None else y * spread(unit, y), kept)


@normalize.defjvp
def _normalize_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    x, _, _, s, kept, counts = primals
    y = normalize(*primals, axis_name)
    return y, tangent(x, s, kept, counts, axis_name, tangents[:4])


def tangent(x, s, kept, counts, axis_name, tangents) -> jax.Array:  # type: ignore[no-untyped-def]
    """Map tangents of the arguments to that of ``y``; its transpose is S13."""
    dx, dgamma, dbeta, ds = tangents
    xhat = standardized(x, s, kept)
    first, second = (s.first if counts is not None else s.first * s.scale), s.second
    a = mask(dx, kept) * spread(first, xhat) * spread(second, xhat)
    zero = jnp.zeros_like(first)
    shift, stretch = (zero if z is None else z for z in (dbeta, dgamma))
    if counts is not None:
        mean, product = averages(a, a * xhat, counts, axis_name)
        shift, stretch = shift - mean, stretch - product
    else:
        shift = shift - ds.mean * first * second
        stretch = stretch - ds.variance * s.slope * first * second / 2
    shift, stretch = spread_both(shift, stretch, a)
    dy = (a + shift) + xhat * stretch
    return mask(dy, kept)


def _or_one(gamma: jax.Array | None, like: jax.Array) -> jax.Array:
    return jnp.ones_like(like) if gamma is None else gamma


def _factors(*factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Write a product as two factors; the second one is 1 where the product has all its digits."""
    whole: jax.Array = math.prod(factors)
    fits = in_range(whole, *factors)
    first, second = two_factors(*factors)
    return jnp.where(fits, whole, first), jnp.where(fits, 1, second)


def _measure(
    x: jax.Array, kept: jax.Array | None, counts: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array, jax.Array]:
    m1 = across(total(x), axis_name) / counts
    d = mask(x - spread(m1, x), kept)
    delta, square = averages(d, d * d, counts, axis_name)
    return m1, delta, jnp.maximum(square - delta * delta, 0)


def _usual(
    m1: jax.Array, delta: jax.Array, v: jax.Array, gamma: jax.Array, eps: jax.Array, strayed: jax.Array
) -> Statistics:
    r = inverse_root(v, eps)
    one = _ones(v, strayed)
    return Statistics(m1, delta, r, one, r, m1 + delta, v, v, r * gamma, _ones(r * gamma, strayed))


def _ones(v: jax.Array, strayed: jax.Array) -> jax.Array:
    """Return ones that vary over the mesh axes over which ``strayed`` varies, as both branches must."""
    return jnp.where(strayed, jnp.ones_like(v), 1)


def _rescue(
    x: jax.Array,
    kept: jax.Array | None,
    counts: jax.Array,
    gamma: jax.Array,
    eps: jax.Array,
    strayed: jax.Array,
    axis_name: AxisName,
) -> Statistics:
    size = jnp.maximum(largest(x, axis_name), jnp.sqrt(eps))
    scale = jnp.where(strayed, 1 / power_of_two(size), 1)
    m1, delta, v = _measure(x * spread(scale, x), kept, counts, axis_name)
    unit = 1 / scale
    r = inverse_root(v, (eps * scale) * scale)
    slope = jnp.where(v == 0, inverse_root(v, jnp.broadcast_to(eps, v.shape)), r * scale)
    known = in_range(slope, r)
    factors = _factors(jnp.where(known, slope, r), jnp.where(known, 1, scale), gamma)
    return Statistics(m1, delta, r, scale, slope, (m1 + delta) * unit, (v * unit) * unit, v, *factors)


@jax.custom_jvp
def inverse_root(variance: jax.Array, eps: jax.Array) -> jax.Array:
    """Return ``1 / sqrt(variance + eps)``, and 0 where both are 0 (S3)."""
    square = variance + eps
    overflowed = jnp.isinf(square) & jnp.isfinite(variance)
    root = jnp.sqrt(jnp.where(overflowed, variance / 4 + eps / 4, square))
    return jnp.where(square == 0, 0, jnp.where(overflowed, 0.5, 1) / root)


@inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    r = inverse_root(*primals)
    return r, -r * (r * (r * (tangents[0] + tangents[1]))) / 2
