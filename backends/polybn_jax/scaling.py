"""Powers of two, and products of several factors that leave the range of a dtype where their result does not (S10)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def power_of_two(z: jax.Array) -> jax.Array:
    """Return the power of two at or below each value, where it and its inverse are normal; 1 for what is not finite."""
    info = jnp.finfo(z.dtype)
    bits = _bits(z)
    exponent = bits & ~np.array((1 << info.nmant) - 1, bits.dtype)
    power = lax.bitcast_convert_type(exponent, z.dtype)
    most = 2.0 ** (info.maxexp - 2)
    return jnp.where(jnp.isfinite(z), jnp.clip(power, 1 / most, most), 1)


def in_range(product: jax.Array, *factors: jax.Array) -> jax.Array:
    """Tell whether a product of factors has all its digits: it is finite, and normal or truly 0."""
    zero = jnp.any(jnp.stack(jnp.broadcast_arrays(*factors)) == 0, axis=0)
    return jnp.isfinite(product) & (zero | (jnp.abs(product) >= jnp.finfo(product.dtype).tiny))


def two_factors(*factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two numbers, both large or both small, whose product is that of all factors.

    A value times the one, and that times the other, leaves the range only where the result does.
    """
    powers = [power_of_two(jnp.abs(z)) for z in factors]
    digits = math.prod(z / power for z, power in zip(factors, powers, strict=True))
    exponent = sum(map(_exponent, powers))
    most = jnp.finfo(digits.dtype).maxexp - 8  # digits are below 2 to the number of factors
    half = jnp.clip(exponent // 2, -most, most)
    return digits * _two_to(half, digits), _two_to(jnp.clip(exponent - half, -most, most), digits)


def products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return ``a * b`` of shape ``(before, channels, after)``, scaled so that each channel's largest is near 1.

    Beside it are the factors, powers of two, that scale it back.
    """
    powers = [power_of_two(jnp.abs(z)) for z in (a, b)]
    digits = (a / powers[0]) * (b / powers[1])
    least = 4 * jnp.finfo(a.dtype).minexp
    exponents = jnp.where(digits == 0, least, sum(map(_exponent, powers)))
    top = jnp.max(exponents, axis=(0, 2), initial=least)
    below = jnp.maximum(exponents - top[:, None], jnp.finfo(a.dtype).minexp)
    third = top // 3
    return digits * _two_to(below, digits), tuple(_two_to(n, digits) for n in (third, third, top - 2 * third))


def _bits(z: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(z, jnp.int32 if jnp.finfo(z.dtype).bits == 32 else jnp.int64)


def _exponent(power: jax.Array) -> jax.Array:
    info = jnp.finfo(power.dtype)
    return (_bits(power) >> info.nmant) - (info.maxexp - 1)


def _two_to(exponent: jax.Array, like: jax.Array) -> jax.Array:
    info = jnp.finfo(like.dtype)
    return lax.bitcast_convert_type((exponent + (info.maxexp - 1)) << info.nmant, like.dtype)
