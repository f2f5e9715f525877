"""The layers of a network but batch norm, as pure functions on batches laid out for matrix products.

A batch of images has shape ``(n, H, 1, W * C)``: NHWC, a row of pixels being one axis of *columns*, channels
innermost. On the way to a max-pool it has shape ``(n, H / s, s * s, W / s * C)`` instead, in *squares*: what the pool
compares lies side by side, in blocks that vectorize. A batch of vectors has shape ``(n, features)``.

Why these forms: see ``docs/jax-forms.md``, where the others are timed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shape = tuple[int, ...]

BLOCK = 4
"""Columns of a convolution's result that one matrix product makes, at least."""


def convolution(x: jax.Array, weight: jax.Array, bias: jax.Array, size: int) -> jax.Array:
    """Convolve as matrix products of the batch; leave the result in squares of ``size``.

    Each product makes a block of columns of the result. Along W the kernel is written out as a banded matrix; along H
    the input is copied ``kernel`` times, shifted by one row. Compared with im2col, less is copied the wider the block
    is, and the arithmetic is ``(block + kernel - 1) / kernel`` times as much.
    """
    _, inputs, kernel, _ = weight.shape
    n, rows, _, columns = x.shape
    height, width = rows - kernel + 1, columns // inputs - kernel + 1
    block = next(k for k in range(size, width + 1, size) if width % k == 0 and k >= min(BLOCK, width))
    seen = block + kernel - 1
    band = contract("ocij,jwv->iwcvo", weight, _diagonals(seen, kernel, size)).reshape(kernel * seen * inputs, -1)

    def product(start: int) -> jax.Array:
        part = x[:, :, 0, start * inputs : (start + seen) * inputs]
        windows = jnp.concatenate([part[:, shift : shift + height] for shift in range(kernel)], axis=2)
        y = contract("rk,kc->rc", windows.reshape(n * height, -1), band)
        return y.reshape(n, height // size, size * size, -1)

    squares = jnp.concatenate([product(start) for start in range(0, width, block)], axis=3)
    return squares + repeat(bias, squares)


def _diagonals(width: int, kernel: int, size: int) -> jax.Array:
    """Return 1 where output column ``v``, columns of a square last, sees input column ``w`` through tap ``j``."""
    out = np.arange(width - kernel + 1).reshape(-1, size).T.ravel()
    return jnp.asarray(np.arange(kernel)[:, None, None] == np.arange(width)[:, None] - out, jnp.float32)


def dense(x: jax.Array, weight: jax.Array, bias: jax.Array, shape: Shape) -> jax.Array:
    """Return ``weight @ x + bias``; an image input ``shape`` is flattened in the order C, H, W."""
    if len(shape) == 3:
        weight = weight.reshape(-1, *shape).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return contract("nk,ok->no", x.reshape(len(x), -1), weight) + bias


def sigmoid(x: jax.Array) -> jax.Array:
    """Return ``1 / (1 + exp(-x))`` as ``(tanh(x / 2) + 1) / 2``: no overflow."""
    return jnp.tanh(x * 0.5) * 0.5 + 0.5


def to_squares(x: jax.Array, size: int, channels: int) -> jax.Array:
    """Bring plain rows into squares; those that a convolution left so stay."""
    n, rows, places, columns = x.shape
    if places == size * size:
        return x
    split = x.reshape(n, rows // size, size, columns // (size * channels), size, channels)
    return split.transpose(0, 1, 2, 4, 3, 5).reshape(n, rows // size, size * size, -1)


@partial(jax.custom_vjp, nondiff_argnums=())
def max_pool(squares: jax.Array, sign: jax.Array) -> jax.Array:
    """Take the value of each square whose product with its channel's sign is largest; of equals, the first."""
    return _max_pool_forward(squares, sign)[0]


def _max_pool_forward(squares: jax.Array, sign: jax.Array) -> tuple[jax.Array, tuple[jax.Array, int]]:
    sign = repeat(sign, squares)
    best = squares[:, :, 0]
    place = jnp.zeros(best.shape, jnp.uint8)
    for index in range(1, squares.shape[2]):
        rival = squares[:, :, index]
        better = (rival * sign > best * sign) | jnp.isnan(rival)
        place, best = jnp.where(better, np.uint8(index), place), jnp.where(better, rival, best)
    return best[:, :, None], (place, squares.shape[2])


def _max_pool_backward(saved: tuple[jax.Array, int], dy: jax.Array) -> tuple[jax.Array, None]:
    place, places = saved
    return jnp.where(place[:, :, None] == np.arange(places, dtype=np.uint8)[:, None], dy, 0), None


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def repeat(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Repeat a value per channel along the columns of ``x``.

    XLA fuses ``tile`` into the loop over ``x``, one modulo per element; a sum it computes once.
    """
    own = np.arange(x.shape[-1]) % len(vector) == np.arange(len(vector))[:, None]
    return jnp.where(own, vector[:, None], 0).sum(axis=0)


def contract(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in float32 proper: GPUs would round the factors to 10 bits."""
    return jnp.einsum(formula, a, b, precision=lax.Precision.HIGHEST)
