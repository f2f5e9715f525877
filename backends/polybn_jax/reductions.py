"""Sums over a channel, on arrays of shape ``(before, channels, after)``, in stages of 16 values or so.

``jnp.sum`` may be one long chain of additions on the CPU: it errs by ``m u``, and a constant channel is then not
constant (S8). Stages keep the chain below ``64 + log2(m)``. What XLA makes of them decides the speed:

- The first stage reads the array and what is computed on the way, in one fused loop without intermediate arrays. It
  adds up complex numbers: two sums in one pass, and unlike a reduction of two operands JAX can transpose it.
- Real and imaginary parts part company after it. With two users XLA does not merge it into the stages that follow.
- The other stages, on a sixteenth of the size, are products with a vector of ones, which XLA does not merge either.

Several devices may hold one array in equal blocks along an axis. So both outer axes are cut into as many blocks as the
number of devices allows, all stages stay inside a block, and the last one adds up blocks: only arrays of shape
``(channels,)`` cross devices. Arrays then have shape ``(blocks, before, channels, blocks, after)``.

docs/jax-forms.md has the figures, and what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

GROUP = 16
LAST = 32
LANES = 512
BEFORE, AFTER = 1, 4
"""The axes of a block along which stages add up."""


def totals(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add up each channel of two arrays, in one pass."""
    if a.size == 0:
        return (jnp.zeros(a.shape[1], a.dtype),) * 2
    return _totals(_blocks(a), _blocks(b))


def total(z: jax.Array) -> jax.Array:
    """Add up each channel: both halves of it at once, side by side in memory where the inner axis is the longer one."""
    z = _blocks(z)
    axis = _halved(z.shape)
    length, half = z.shape[axis], z.shape[axis] // 2
    if not half:
        return _totals(z, jnp.zeros_like(z))[0]
    left, right = _totals(*(lax.slice_in_dim(z, start, start + half, axis=axis) for start in (0, length - half)))
    if length % 2:
        left = left + _finish(lax.slice_in_dim(z, half, half + 1, axis=axis))
    return left + right


def spread(v: jax.Array, like: jax.Array) -> jax.Array:
    """Repeat a value per channel over the channel."""
    return jnp.broadcast_to(_varying(v, like)[:, None], like.shape)


def spread_both(a: jax.Array, b: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeat two values per channel: the transpose of :func:`totals`, stage by stage."""
    if like.size == 0:
        return spread(a, like), spread(b, like)
    whole = _cut(like.shape)
    axis, group = _first(whole)
    rest = (*whole[:axis], -(-whole[axis] // group), *whole[axis + 1 :])
    both = lax.complex(*(_begin(_varying(v, like), rest) for v in (a, b)))
    both = _repeat_first(both, axis, group, whole[axis]).reshape(like.shape)
    return lax.real(both), lax.imag(both)


def _varying(v: jax.Array, like: jax.Array) -> jax.Array:
    """Mark a vector as one that differs between the devices of ``shard_map`` where ``like`` does.

    JAX would do so where both meet, in full size, and would add up arrays of full size over devices in the transpose.
    """
    missing = tuple(sorted(varies_over(like) - varies_over(v), key=str))
    if not missing:
        return v
    return lax.pcast(v, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(v, missing)


def varies_over(z: jax.Array) -> frozenset[Any]:
    """Return the mesh axes over which ``shard_map`` knows an array to differ."""
    kind: Any = jax.typeof(z)
    axes: frozenset[Any] = kind.mat.varying if hasattr(kind, "mat") else kind.vma  # JAX 0.10, and before
    return axes


def _cut(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array in blocks."""
    before, channels, after = shape
    outer, inner = (_shards(length) for length in (before, after))
    return outer, before // outer, channels, inner, after // inner


def _shards(length: Any) -> Any:
    """Return into how many equal blocks devices may have cut an axis; a length that is a symbol, into single values."""
    return math.gcd(length, jax.device_count()) if isinstance(length, int) else length


def _blocks(z: jax.Array) -> jax.Array:
    return z.reshape(_cut(z.shape))


def _totals(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = _add_first(lax.complex(a, b))
    return _finish(lax.real(both)), _finish(lax.imag(both))


def _halved(shape: tuple[int, ...]) -> int:
    """Choose the axis to halve: the longer one, or the other one where only that is even."""
    longer, other = (AFTER, BEFORE) if shape[AFTER] > shape[BEFORE] else (BEFORE, AFTER)
    return other if shape[longer] % 2 and not shape[other] % 2 else longer


def _first(shape: tuple[int, ...]) -> tuple[int, int]:
    """Choose axis and group of the first stage: the outer axis, which leaves the inner ones to the vector units."""
    axis = BEFORE if shape[BEFORE] >= 4 or shape[AFTER] == 1 else AFTER
    return axis, _group(shape[axis], GROUP)


def _stages(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield axis, its length and the size of a group for each later stage."""
    for axis in (BEFORE, AFTER):
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
    return jnp.pad(z, [(0, missing if a == axis else 0) for a in range(z.ndim)]) if missing else z


def _add_first(z: jax.Array) -> jax.Array:
    axis, group = _first(z.shape)
    z = _padded(z, axis, group)
    outer, before, channels, inner, after = z.shape
    if axis == AFTER:
        return z.reshape(outer, before, channels, inner, after // group, group).sum(axis=5)
    groups, lanes = before // group, _lanes(before // group, channels * inner * after)
    parts = z.reshape(outer, groups // lanes, group, lanes, channels, inner, after)
    return parts.sum(axis=2).reshape(outer, groups, channels, inner, after)


def _repeat_first(z: jax.Array, axis: int, group: int, length: int) -> jax.Array:
    outer, before, channels, inner, after = z.shape
    if axis == AFTER:
        z = jnp.broadcast_to(z[..., None], (*z.shape, group)).reshape(outer, before, channels, inner, after * group)
    else:
        lanes = _lanes(before, channels * inner * after)
        z = z.reshape(outer, before // lanes, 1, lanes, channels, inner, after)
        z = jnp.broadcast_to(z, (outer, before // lanes, group, *z.shape[3:]))
        z = z.reshape(outer, before * group, channels, inner, after)
    return lax.slice_in_dim(z, 0, length, axis=axis)


def _lanes(groups: int, width: int) -> int:
    """Return how many neighbouring groups to add up side by side, where channels alone do not fill the vector units."""
    return _divisor(groups, max(1, LANES // width))


def _finish(z: jax.Array) -> jax.Array:
    for axis, _, group in _stages(z.shape):
        z = _padded(z, axis, group)
        rest = (*z.shape[:axis], z.shape[axis] // group, *z.shape[axis + 1 :])
        z = _weigh(z, axis, group).reshape(rest)
    outer, _, channels, inner, _ = z.shape
    return z.reshape(channels) if outer == inner == 1 else z.sum(axis=(0, 1, 3, 4))


def _weigh(z: jax.Array, axis: int, group: int) -> jax.Array:
    """Add up ``group`` places along an axis of a block: far ones of the outer axis, neighbours of the inner one."""
    ones = jnp.ones(group, z.dtype)
    if axis == AFTER:
        return _product(z.reshape(*z.shape[:AFTER], -1, group), ones)
    return _contract(ones, z.reshape(z.shape[0], group, -1, *z.shape[2:]), 0)


def _begin(v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    outer, _, channels, inner, _ = shape
    z = jnp.broadcast_to(v[None, None, :, None, None], (outer, 1, channels, inner, 1))
    for axis, length, group in reversed(list(_stages(shape))):
        ones = jnp.ones(group, v.dtype)
        if axis == AFTER:
            z = _product(z[..., None], ones[None])
            z = z.reshape(*z.shape[:AFTER], -1)
        else:
            z = _contract(ones[:, None], z[:, None], 1)
            z = jnp.moveaxis(z, 0, 1).reshape(outer, -1, *z.shape[3:])
        z = lax.slice_in_dim(z, 0, length, axis=axis)
    return z


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _contract(a: jax.Array, z: jax.Array, axis: int) -> jax.Array:
    """Multiply along an axis of ``a`` and the second one of ``z``. No axis is merged with that of the channels."""
    return lax.dot_general(a, z, (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
