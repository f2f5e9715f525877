"""Batch norm inside a network: on batches whose last axis holds the channels some whole number of times.

``values`` are what gets normalized: ``x`` itself, or what a max-pool took of it. Normalizing rises or falls with
``x``, channel by channel, so a pool may come first, and three quarters of the work fall away.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polybn.lenet.networks import BatchNorm
from polybn_jax.kernels import inverse_root
from polybn_jax.layers import repeat
from polybn_jax.scaling import power_of_two

Axis: TypeAlias = str | None
"""The mesh axis along which devices share a batch, if any."""
Normalized: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
"""Output, mean and biased variance."""

CHUNK = 64


class Statistics(NamedTuple):
    """Statistics in the form of S2 and S3, of ``x * scale``: 1 but for channels that S10 rescues."""

    m1: jax.Array
    delta: jax.Array
    v: jax.Array
    r: jax.Array
    scale: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def batch_norm(
    x: jax.Array, values: jax.Array, gamma: jax.Array, beta: jax.Array, eps: float, axis: Axis
) -> Normalized:
    """Normalize ``values`` by the statistics of ``x``, over all devices along ``axis``."""
    return _forward(x, values, gamma, beta, eps, axis)[0]


def _forward(
    x: jax.Array, values: jax.Array, gamma: jax.Array, beta: jax.Array, eps: float, axis: Axis
) -> tuple[Normalized, tuple[Any, ...]]:
    s = _statistics(x, len(gamma), np.float32(eps), axis)
    y = _standardized(values, s) * repeat(gamma, x) + repeat(beta, x)
    unit = 1 / s.scale
    return (y, (s.m1 + s.delta) * unit, s.v * unit * unit), (x, values, gamma, s)


def _backward(eps: float, axis: Axis, saved: tuple[Any, ...], cotangents: Normalized) -> tuple[jax.Array, ...]:  # noqa: ARG001
    """Differentiate the output (S13), first through the statistics, then directly; the others carry no gradient."""
    (x, values, gamma, s), dy = saved, cotangents[0]
    channels = len(gamma)
    own = jnp.stack([_sums(dy, channels), _sums(dy * _standardized(values, s), channels)])
    mean_g, mean_gx = _shared(own, axis) / _counts(x, channels, axis)
    slope = gamma * s.r * s.scale
    through = -_standardized(x, s) * repeat(slope * mean_gx, x) - repeat(slope * mean_g, x)
    return through, dy * repeat(slope, x), own[1], own[0]


batch_norm.defvjp(_forward, _backward)


def inference(values: jax.Array, own: dict[str, jax.Array], eps: float) -> jax.Array:
    """Normalize by the running statistics (S5)."""
    r = inverse_root(own["running_var"], np.float32(eps))
    xhat = (values - repeat(own["running_mean"], values)) * repeat(r, values)
    return xhat * repeat(own["gamma"], values) + repeat(own["beta"], values)


def native(
    x: jax.Array, own: dict[str, jax.Array], layer: BatchNorm, axis: Axis, *, training: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Apply Flax NNX's batch norm; return its output and its running statistics."""
    from flax import nnx

    channels = len(own["gamma"])
    module = nnx.BatchNorm(channels, momentum=layer.momentum, epsilon=layer.eps, axis_name=axis, rngs=nnx.Rngs(0))
    module.scale, module.bias = nnx.Param(own["gamma"]), nnx.Param(own["beta"])
    module.mean, module.var = nnx.BatchStat(own["running_mean"]), nnx.BatchStat(own["running_var"])
    y = module(x.reshape(*x.shape[:-1], -1, channels), use_running_average=not training)
    return y.reshape(x.shape), {"running_mean": module.mean[...], "running_var": module.var[...]}


def _statistics(x: jax.Array, channels: int, eps: np.float32, axis: Axis) -> Statistics:
    """Measure each channel (S2), scaled into the range first where it leaves it (S10)."""
    m1, delta, v = _measure(x, channels, axis)
    one = jnp.ones_like(v)
    strayed = ~jnp.isfinite(v + eps) | (v + eps < jnp.finfo(x.dtype).tiny * 2.0**64)

    def rescue() -> tuple[jax.Array, ...]:
        largest = jnp.max(jnp.abs(x).reshape(-1, channels), axis=0)
        largest = largest if axis is None else lax.pmax(largest, axis)
        scale = jnp.where(strayed, 1 / power_of_two(jnp.maximum(largest, jnp.sqrt(eps))), one)
        return *_measure(x * repeat(scale, x), channels, axis), scale

    m1, delta, v, scale = lax.cond(strayed.any(), rescue, lambda: (m1, delta, v, one))
    return Statistics(m1, delta, v, inverse_root(v, eps * scale * scale), scale)


def _measure(x: jax.Array, channels: int, axis: Axis) -> tuple[jax.Array, jax.Array, jax.Array]:
    counts = _counts(x, channels, axis)
    m1 = _shared(_sums(x, channels), axis) / counts
    d = x - repeat(m1, x)
    delta, square = _shared(jnp.stack([_sums(d, channels), _sums(d * d, channels)]), axis) / counts
    return m1, delta, jnp.maximum(square - delta * delta, 0)


def _standardized(x: jax.Array, s: Statistics) -> jax.Array:
    d = x * repeat(s.scale, x) - repeat(s.m1, x)
    return (d - repeat(s.delta, x)) * repeat(s.r, x)


def _counts(x: jax.Array, channels: int, axis: Axis) -> jax.Array:
    # XLA turns a division by a constant into a product with its rounded inverse: constant channels would not be.
    shards = 1 if axis is None else lax.psum(1, axis)
    return lax.optimization_barrier(jnp.full(channels, x.size // channels * shards, jnp.float32))


def _sums(z: jax.Array, channels: int) -> jax.Array:
    """Add up each channel, in chunks of chunks: no sum of float32 is longer than CHUNK."""
    z = z.reshape(-1, z.shape[-1])
    while len(z) > CHUNK:
        z = jnp.pad(z, ((0, -len(z) % CHUNK), (0, 0))).reshape(-1, CHUNK, z.shape[-1]).sum(axis=1)
    return z.sum(axis=0).reshape(-1, channels).sum(axis=0)


def _shared(sums: jax.Array, axis: Axis) -> jax.Array:
    return sums if axis is None else lax.psum(sums, axis)
