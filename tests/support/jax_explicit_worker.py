"""Compare arrays on a mesh with Explicit axes with the same ones on one device, in a process of its own.

The number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import polybn

CHANNELS, UNIT = 4, 2.0**-24
CASES: dict[int, Any] = {
    # axis of the channels: shape with 48 values in each, and how x and the vectors lie on a mesh of axes a and b
    1: (
        (8, CHANNELS, 6),
        [("a",), ()],
        [(("a", "b"),), ()],
        [(None, "b"), ("b",)],
        [("a", "b"), ()],
        [("a", "b"), ("b",)],
        [(None, None, "a"), ()],
    ),
    3: ((8, 2, 3, CHANNELS), [("a",), ()], [("a", None, None, "b"), ("b",)], [(None, "b"), ()], [(), ()]),
    0: ((CHANNELS, 48), [(None, "a"), ()], [("a", "b"), ("a",)]),
}


def arrays(shape: tuple[int, ...]) -> list[Any]:
    """Return x, dy, where, and gamma, beta, running mean and variance."""
    rng = np.random.default_rng(1)
    wide = [rng.normal(mean, 1.7, shape).astype(np.float32) for mean in (1.7, 0.3)]
    vectors = [rng.uniform(0.5, 2, CHANNELS).astype(np.float32) for _ in range(4)]
    return [*wide, rng.random(shape) < 0.6, *vectors]


def first_order(axis: int, training: bool) -> Callable[..., Any]:
    """Return a function that makes every call that has no derivative of a derivative."""

    def calls(x: Any, dy: Any, where: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        options: dict[str, Any] = {"training": training, "axis": axis}
        result, pullback = polybn.batch_norm_vjp(x, gamma, beta, mean, var, where=where, **options)

        def y(x: Any, gamma: Any, beta: Any) -> Any:
            return polybn.batch_norm(x, gamma, beta, mean, var, **options).y

        parts = [polybn.moments(z, axis=axis, where=where) for z in (x, dy)]
        plain, transpose = jax.vjp(y, x, gamma, beta)
        return (
            (result, pullback(dy)),
            (plain, transpose(dy), jax.jvp(y, (x, gamma, beta), (dy, beta, gamma))[1]),
            (parts, polybn.merge_moments(*parts), polybn.fold(gamma, beta, mean, var)),
        )

    return calls


def second_order(axis: int, training: bool) -> Callable[..., Any]:
    """Return a function that differentiates derivatives: the pullback's own, and JAX's."""

    def calls(x: Any, dy: Any, where: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        options: dict[str, Any] = {"training": training, "axis": axis, "where": where}
        gradients, again = polybn.batch_norm_vjp(x, gamma, beta, mean, var, **options)[1].vjp(dy)

        def loss(x: Any, gamma: Any) -> Any:
            return (polybn.batch_norm(x, gamma, beta, mean, var, **options).y * dy).sum()

        slopes, tangents = jax.jvp(jax.grad(loss, argnums=(0, 1)), (x, gamma), (dy, beta))
        return again(gradients), slopes, tangents

    return calls


def layouts() -> Iterator[tuple[int, list[Any], list[PartitionSpec]]]:
    """Yield the axis of the channels, arrays, and how each lies on the mesh."""
    for axis, (shape, *cases) in CASES.items():
        for wide, vector in cases:
            yield axis, arrays(shape), [PartitionSpec(*wide)] * 3 + [PartitionSpec(*vector)] * 4


def compare(got: Any, expected: Any, order: int) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # As in jax_sharding_worker: sums of up to 48 values in another order, and of derivatives such sums once more.
        error, size = np.abs(a.astype(float) - b).max(), max(1.0, float(np.abs(b).max()))
        assert error <= order * 4 * 108 * UNIT * size, (order, error, size)


def check_types(got: Any, given: list[Any]) -> None:
    """Check that results lie as their arguments do: under Explicit axes that is a part of their type."""
    x, _, _, gamma, beta, mean, var = map(jax.typeof, given)
    result, gradients = got
    assert [jax.typeof(z) for z in result] == [x, mean, var]
    assert [jax.typeof(z) for z in gradients[:3]] == [x, gamma, beta]


@functools.cache
def alone(make: Any, axis: int, training: bool) -> Any:
    """Return the results of one device."""
    return jax.jit(make(axis, training))(*map(jnp.asarray, arrays(CASES[axis][0])))


def check_functions(mesh: Any) -> None:
    """In jit, with and without a mesh that is set: each layout in training, some of them with the rest, too."""
    for number, (axis, host, specs) in enumerate(layouts()):
        spread = list(map(jax.device_put, host, map(mesh_of(mesh), specs)))
        rest = [[(second_order, True)], [(first_order, False)], []][number % 3]
        for make, training in [(first_order, True), *rest]:
            calls, order = make(axis, training), 1 if make is first_order else 2
            with jax.set_mesh(mesh) if number % 4 < 2 else contextlib.nullcontext():
                got = jax.jit(calls)(*spread)
            compare(got, alone(make, axis, training), order)
            if order == 1:
                check_types(got[0], spread)


def mesh_of(mesh: Any) -> Callable[[PartitionSpec], NamedSharding]:
    return lambda spec: NamedSharding(mesh, spec)


def check_eager_calls(mesh: Any) -> None:
    """Eagerly, of shapes that JAX would refuse to cut into blocks for different reasons."""
    for shape in ((8, 3, 5), (8, CHANNELS)):
        x = np.random.default_rng(2).normal(1.7, 1.7, shape).astype(np.float32)
        found = []
        for z in (jnp.asarray(x), jax.device_put(x, NamedSharding(mesh, PartitionSpec(("a", "b"))))):
            result, pullback = polybn.batch_norm_vjp(z, training=True)
            found.append((result.y, pullback(z).x, polybn.moments(z)))
            assert jax.typeof(result.y) == jax.typeof(z)
        compare(found[1], found[0], order=1)


def check_layer(mesh: Any) -> None:
    """Flax's module has its state on one device, and its images on all."""
    from flax import nnx

    from polybn_jax.nnx import BatchNorm

    x = arrays((8, 2, 3, CHANNELS))[0]
    one, many = (BatchNorm(CHANNELS, rngs=nnx.Rngs(0)) for _ in range(2))
    for run in (lambda layer, x: layer(x), nnx.jit(lambda layer, x: layer(x))):
        got = run(many, jax.device_put(x, NamedSharding(mesh, PartitionSpec("a"))))
        compare([got, many.mean[...], many.var[...]], [run(one, jnp.asarray(x)), one.mean[...], one.var[...]], 1)


def main() -> None:
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    check_functions(mesh)
    check_eager_calls(mesh)
    with contextlib.suppress(ModuleNotFoundError):
        check_layer(mesh)
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
