"""Compare eight devices with one, in a process of its own: the number of devices is fixed when JAX starts."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

import polybn

DEVICES, SHAPE = 8, (16, 5, 3)
SPLIT, WHOLE = PartitionSpec("i"), PartitionSpec()
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}


def arrays(dtype: str, kappa: float) -> list[Any]:
    rng = np.random.default_rng(1)
    x, dy = rng.normal(kappa * 1.7, 1.7, SHAPE), rng.normal(0.3, 1, SHAPE)
    vectors = [rng.uniform(0.5, 2, 5) * s for s in (1, -1, 3, 1)]
    return [jnp.asarray(a, dtype) for a in (x, dy, *vectors)]


def mask(kind: str) -> Any:
    """Keep everything; uneven shares; or uneven shares, nothing on two devices and nothing in a channel."""
    where = np.ones(SHAPE, bool) if kind == "full" else np.random.default_rng(2).random(SHAPE) < 0.6
    if kind == "empty":
        where[4:8], where[:, 2] = False, False
    return jnp.asarray(where)


def by_grad(axis_name: Any, training: bool, x: Any, dy: Any, where: Any, *vectors: Any) -> Any:
    def loss(*a: Any) -> Any:
        result = polybn.batch_norm(
            *a, training=training, where=where, axis_name=axis_name, running_variance="unbiased", momentum=0.75
        )
        return (result.y * dy).sum(), tuple(result)

    (_, result), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, *vectors)
    return result, gradients


def by_pullback(axis_name: Any, training: bool, x: Any, dy: Any, where: Any, *vectors: Any) -> Any:
    result, pullback = polybn.batch_norm_vjp(
        x, *vectors, training=training, where=where, axis_name=axis_name, running_variance="unbiased", momentum=0.75
    )
    return tuple(result), tuple(pullback(dy))[:3]


def moments(axis_name: Any, _training: bool, x: Any, _dy: Any, where: Any, *_vectors: Any) -> Any:
    return tuple(polybn.moments(x, where=where, axis_name=axis_name))


@functools.cache
def alone(function: Any, training: bool) -> Any:
    return jax.jit(functools.partial(function, None, training))


@functools.cache
def sharded(function: Any, training: bool) -> Any:
    """Cut the first axis into eight; vectors are on every device."""
    mesh = jax.make_mesh((DEVICES,), ("i",), axis_types=(AxisType.Auto,))
    out = WHOLE if function is moments else ((SPLIT, WHOLE, WHOLE), (SPLIT, WHOLE, WHOLE))
    body = lambda *a: function("i", training, *a)  # noqa: E731
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(SPLIT,) * 3 + (WHOLE,) * 4, out_specs=out))


def compare(dtype: str, kappa: float, kind: str) -> None:
    x, dy, *vectors = arrays(dtype, kappa)
    where, unit = mask(kind), UNIT[dtype]
    for function in (by_grad, by_pullback, moments):
        for training in (True, False) if function is not moments else (True,):
            got = jax.tree.leaves(sharded(function, training)(x, dy, where, *vectors))
            expected = jax.tree.leaves(alone(function, training)(x, dy, where, *vectors))
            for a, b in zip(got, expected, strict=True):
                a, b = np.asarray(a), np.asarray(b)
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                # Two sums of 48 values in another order, each within 54 roundings of sums of absolute values, a few
                # times the largest result; kappa costs nothing (S2).
                error, size = np.abs(a.astype(float) - b).max(), max(1.0, float(np.abs(b).max()))
                assert error <= 4 * 108 * unit * size, (function.__name__, dtype, kappa, kind, training, error, size)


def main() -> None:
    assert jax.device_count() == DEVICES
    for dtype in UNIT:
        for kind in ("full", "uneven", "empty"):
            for kappa in (1.0, 1e4):
                compare(dtype, kappa, kind)
    x = jnp.asarray(np.full((16, 2), 1234.567), jnp.float32)
    one = jax.vmap(lambda z: polybn.batch_norm(z, training=True, axis_name="k").y, axis_name="k")(x.reshape(8, 2, 2))
    assert not one.any()
    huge = arrays("float32", 0.0)[0] * jnp.float32(1e25)
    y = jax.pmap(lambda z: polybn.batch_norm(z, training=True, axis_name="k").y, axis_name="k")(
        huge.reshape(8, 2, 5, 3)
    )
    assert np.abs(np.asarray(y).reshape(SHAPE) - polybn.batch_norm(huge, training=True).y).max() <= 1e-5
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
