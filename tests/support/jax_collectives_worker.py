"""Compile batch norm and its gradients for several devices, and print as JSON what crosses them.

The number of devices is fixed when JAX starts, so this runs in a process of its own; no test runs in it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import polybn

COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"(?:[a-z]+\d+|pred)\[([\d,]*)\]")
CHANNELS = 24
LAYOUTS = {
    # name: (shape, channel axis). A device holds 9, 5, 17 or 3 images, or half as many: groups of 16 fit no shard.
    "NCHW": ((72, CHANNELS, 7, 3), 1),
    "NHWC": ((40, 7, 3, CHANNELS), 3),
    "NC": ((136, CHANNELS), 1),
    "NLC": ((24, 37, CHANNELS), 2),
}
SHARDINGS = ("data", "model", "data and model")


def crossing(program: Any) -> list[tuple[str, int]]:
    """List what crosses devices in a compiled program: the kind, and the number of values of the largest array."""
    found = []
    for line in program.as_text().splitlines():
        kind = COLLECTIVE.search(line)
        if kind is not None:
            result = line[: kind.start()]
            sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in SHAPE.findall(result)]
            found.append((kind.group(1), max(sizes)))
    return found


def specs(name: str, sharding: str) -> tuple[PartitionSpec, PartitionSpec]:
    """Return how ``x``, and the vectors of one value per channel, lie on the mesh."""
    shape, axis = LAYOUTS[name]
    data, model = ("data" if "data" in sharding else None), ("model" if "model" in sharding else None)
    return PartitionSpec(*(data if i == 0 else model if i == axis else None for i in range(len(shape)))), PartitionSpec(
        model
    )


def mesh_of(sharding: str, devices: int, kind: AxisType) -> Mesh:
    sizes = {"data": (devices, 1), "model": (1, devices), "data and model": (devices // 2, 2)}[sharding]
    return jax.make_mesh(sizes, ("data", "model"), axis_types=(kind, kind))


def training(axis: int, axis_name: Any = None, order: int = 1) -> Callable[..., Any]:
    """Return a function of x, dy, gamma and beta: y and running statistics, and gradients of the given order."""

    def loss(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        result = polybn.batch_norm(x, gamma, beta, gamma, gamma, training=True, axis=axis, axis_name=axis_name)
        return (result.y * dy).sum(), tuple(result)

    def first(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, gamma, beta, dy)

    def second(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        def size(*a: Any) -> Any:
            _, gradients = first(a[0], a[1], a[2], dy)
            return sum((g * g).sum() for g in gradients)

        return jax.grad(size, argnums=(0, 1, 2))(x, gamma, beta)

    return first if order == 1 else second


def compiled(function: Callable[..., Any], name: str, place: Callable[[PartitionSpec], Any], sharding: str) -> Any:
    of_x, of_vector = (place(spec) for spec in specs(name, sharding))
    x, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (LAYOUTS[name][0], (CHANNELS,)))
    return jax.jit(function, in_shardings=(of_x, of_vector, of_vector, of_x)).lower(x, vector, vector, x).compile()


def automatic(name: str, sharding: str, devices: int, order: int) -> Any:
    """Let the compiler partition one program for the whole batch."""
    mesh = mesh_of(sharding, devices, AxisType.Auto)
    return compiled(training(LAYOUTS[name][1], order=order), name, lambda spec: NamedSharding(mesh, spec), sharding)


def explicit(name: str, sharding: str, devices: int, order: int) -> Any:
    """Do so on a mesh of Explicit axes, on which JAX knows the shardings when it traces."""
    mesh = mesh_of(sharding, devices, AxisType.Explicit)
    of_x, of_vector = (NamedSharding(mesh, spec) for spec in specs(name, sharding))
    x = jax.ShapeDtypeStruct(LAYOUTS[name][0], jnp.float32, sharding=of_x)
    vector = jax.ShapeDtypeStruct((CHANNELS,), jnp.float32, sharding=of_vector)
    with jax.set_mesh(mesh):
        return jax.jit(training(LAYOUTS[name][1], order=order)).lower(x, vector, vector, x).compile()


def mapped(name: str, sharding: str, devices: int, order: int) -> Any:
    """Write the program of one device, with statistics over the devices that share the batch."""
    mesh = mesh_of(sharding, devices, AxisType.Auto)
    of_x, of_vector = specs(name, sharding)
    axis_name = "data" if "data" in sharding else None
    of_loss = ((PartitionSpec(mesh.axis_names), (of_x, of_vector, of_vector)), (of_x, of_vector, of_vector))
    gradients = (of_x, of_vector, of_vector)
    function = training(LAYOUTS[name][1], axis_name, order)

    def own(*arrays: Any) -> Any:
        if order == 2:
            return function(*arrays)
        (loss, result), found = function(*arrays)
        return (loss[None], result), found

    run = jax.shard_map(
        own, mesh=mesh, in_specs=(of_x, of_vector, of_vector, of_x), out_specs=of_loss if order == 1 else gradients
    )
    return compiled(run, name, lambda spec: NamedSharding(mesh, spec), sharding)


def pairs(devices: int) -> Any:
    """Add up pairs of neighbours that begin at the second image."""
    mesh = mesh_of("data", devices, AxisType.Auto)

    def sums(x: Any, *_: Any) -> Any:
        return jnp.roll(x, 1, 0).reshape(-1, 2, *x.shape[1:]).sum(axis=(0, 1))

    return compiled(sums, "NHWC", lambda spec: NamedSharding(mesh, spec), "data")


def main(forms: str) -> None:
    devices = jax.device_count()
    if forms == "pairs":
        sys.stdout.write(json.dumps(crossing(pairs(devices))) + "\n")
        return
    for form in forms.split(","):
        make = {"automatic": automatic, "explicit": explicit, "mapped": mapped}[form]
        for name in LAYOUTS:
            for sharding in SHARDINGS:
                orders = (1, 2) if (name, sharding) == ("NHWC", "data") else (1,)
                for order in orders:
                    found = crossing(make(name, sharding, devices, order))
                    sys.stdout.write(json.dumps([form, name, sharding, devices, order, found]) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
