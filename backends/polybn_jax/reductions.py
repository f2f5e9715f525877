"""Sums over a channel, on arrays of shape ``(before, channels, after)``, in stages of 16 values or so.

``jnp.sum`` may be one long chain of additions on the CPU: it errs by ``m u``, and a constant channel is then not
constant (S8). Stages keep the chain below ``64 + log2(m)``. What XLA makes of them decides the speed:

- The first stage reads the array and what is computed on the way, in one fused loop without intermediate arrays. It
  adds up complex numbers: two sums in one pass, and unlike a reduction of two operands JAX can transpose it.
- Real and imaginary parts part company after it. With two users XLA does not merge it into the stages that follow.
- The other stages, on a sixteenth of the size, are products with a vector of ones, which XLA does not merge either.

docs/jax.md has the figures, and what else was tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

GROUP = 16
LAST = 32
LANES = 512


def totals(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add up each channel of two arrays, in one pass."""
    if not a.size:
        return (jnp.zeros(a.shape[1], a.dtype),) * 2
    both = _add_first(lax.complex(a, b))
    return _finish(lax.real(both)), _finish(lax.imag(both))


def total(z: jax.Array) -> jax.Array:
    """Add up each channel: both halves of it at once, side by side in memory where the inner axis is the longer one."""
    axis = _halved(z.shape[0], z.shape[2])
    length, half = z.shape[axis], z.shape[axis] // 2
    part = partial(lax.slice_in_dim, z, axis=axis)
    left, right = totals(part(0, half), part(length - half, length))
    if length % 2:
        left = left + _finish(part(half, half + 1))
    return left + right


def _halved(before: int, after: int) -> int:
    """Choose the axis to halve: the longer one, or the other one where only that is even."""
    lengths = {0: before, 2: after}
    longer, other = (2, 0) if after > before else (0, 2)
    return other if lengths[longer] % 2 and not lengths[other] % 2 else longer


def spread(v: jax.Array, like: jax.Array) -> jax.Array:
    """Repeat a value per channel over the channel."""
    return jnp.broadcast_to(v[:, None], like.shape)


def spread_both(a: jax.Array, b: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeat two values per channel: the transpose of :func:`totals`, stage by stage."""
    if not like.size:
        return spread(a, like), spread(b, like)
    axis, group = _first(like.shape)
    rest = tuple(-(-n // group) if i == axis else n for i, n in enumerate(like.shape))
    both = lax.complex(_begin(a, rest), _begin(b, rest))
    both = _repeat_first(both, axis, group, like.shape[axis])
    return lax.real(both), lax.imag(both)


def _first(shape: tuple[int, ...]) -> tuple[int, int]:
    """Choose axis and group of the first stage: the outer axis, which leaves the inner ones to the vector units."""
    axis = 0 if shape[0] >= 4 or shape[2] == 1 else 2
    return axis, _group(shape[axis], GROUP)


def _stages(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield axis, its length and the size of a group for each later stage."""
    for axis in (0, 2):
        length = shape[axis]
        while length > 1:
            group = _group(length, LAST)
            yield axis, length, group
            length = -(-length // group)


def _group(length: int, most: int) -> int:
    if length <= most:
        return length
    best = _divisor(length, GROUP)
    return best if best >= 4 else GROUP


def _divisor(length: int, most: int) -> int:
    return max(d for d in range(1, most + 1) if length % d == 0)


def _padded(z: jax.Array, axis: int, group: int) -> jax.Array:
    missing = -z.shape[axis] % group
    return jnp.pad(z, [(0, missing if a == axis else 0) for a in range(3)]) if missing else z


def _add_first(z: jax.Array) -> jax.Array:
    axis, group = _first(z.shape)
    z = _padded(z, axis, group)
    before, channels, after = z.shape
    if axis == 2:
        return z.reshape(before, channels, after // group, group).sum(axis=3)
    groups, lanes = before // group, _lanes(before // group, channels * after)
    parts = z.reshape(groups // lanes, group, lanes, channels, after)
    return parts.sum(axis=1).reshape(groups, channels, after)


def _repeat_first(z: jax.Array, axis: int, group: int, length: int) -> jax.Array:
    before, channels, after = z.shape
    if axis == 2:
        z = jnp.broadcast_to(z[..., None], (*z.shape, group)).reshape(before, channels, after * group)
    else:
        lanes = _lanes(before, channels * after)
        z = z.reshape(before // lanes, 1, lanes, channels, after)
        z = jnp.broadcast_to(z, (z.shape[0], group, *z.shape[2:])).reshape(before * group, channels, after)
    return lax.slice_in_dim(z, 0, length, axis=axis)


def _lanes(groups: int, width: int) -> int:
    """Return how many neighbouring groups to add up side by side, where channels alone do not fill the vector units."""
    return _divisor(groups, max(1, LANES // width))


def _finish(z: jax.Array) -> jax.Array:
    for axis, _, group in _stages(z.shape):
        z = _padded(z, axis, group)
        before, channels, after = z.shape
        if axis == 0:
            z = _product(jnp.ones(group, z.dtype), z.reshape(group, -1)).reshape(-1, channels, after)
        else:
            z = _product(z.reshape(-1, group), jnp.ones(group, z.dtype)).reshape(before, channels, -1)
    return z.reshape(z.shape[1])


def _begin(v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    z, channels = v.reshape(1, -1, 1), len(v)
    for axis, length, group in reversed(list(_stages(shape))):
        ones = jnp.ones(group, v.dtype)
        if axis == 0:
            z = _product(ones[:, None], z.reshape(1, -1)).reshape(-1, channels, z.shape[2])
        else:
            z = _product(z.reshape(-1, 1), ones[None]).reshape(z.shape[0], channels, -1)
        z = lax.slice_in_dim(z, 0, length, axis=axis)
    return z


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
