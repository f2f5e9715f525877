"""Sums over a channel, on arrays of shape ``(before, channels, after)``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

CHUNK = 64


def total(z: jax.Array) -> jax.Array:
    """Add up each channel."""
    before, channels, after = z.shape
    if not z.size:
        return jnp.zeros(channels, z.dtype)
    if after > 1:
        z = _halve(z.reshape(before * channels, after)).reshape(before, channels)
    else:
        z = z[:, :, 0]
    return _halve(z.T)


def spread(v: jax.Array, like: jax.Array) -> jax.Array:
    """Repeat a value per channel over the channel."""
    return jnp.broadcast_to(v[:, None], like.shape)


def _halve(z: jax.Array) -> jax.Array:
    rows, length = z.shape
    while length > CHUNK:
        chunks = -(-length // CHUNK)
        z = jnp.pad(z, ((0, 0), (0, chunks * CHUNK - length))).reshape(rows, chunks, CHUNK).sum(axis=2)
        length = chunks
    return z.sum(axis=1)
