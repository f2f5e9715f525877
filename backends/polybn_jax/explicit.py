"""Meshes with Explicit axes, on which JAX asks each reshape how its result is to be sharded.

The compiler finds the answers, as it does on a mesh of Auto axes. So our compiled programs take all axes for Auto, and
state only how their results are sharded: each as an argument is, or the channels of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

P = ParamSpec("P")
R = TypeVar("R")


class Shardings:
    """How arrays lie on a mesh."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh

    def of(self, array: Any) -> NamedSharding:
        """Return the sharding of an array; of None, for which there is no result, any."""
        return NamedSharding(self.mesh, PartitionSpec(*([] if array is None else jax.typeof(array).sharding.spec)))

    def of_channels(self, x: Any, axis: int) -> NamedSharding:
        """Return the sharding of a vector of one value for each channel of ``x``."""
        return NamedSharding(self.mesh, PartitionSpec(jax.typeof(x).sharding.spec[axis]))


def settle(results: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function of arrays, and keywords that are none, run on a mesh with Explicit axes.

    ``results`` gets :class:`Shardings` and the same arguments. It returns the shardings of what the function returns,
    or of branches of it. All this runs where JAX traces the function, once for each program, and without Explicit axes
    the function runs as it is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            mesh = _explicit_mesh(args)
            if mesh is None:
                return function(*args, **kwargs)
            stated = results(Shardings(mesh), *args, **kwargs)
            automatic: Callable[P, R] = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=stated)
            return automatic(*args, **kwargs)

        return run

    return decorate


def _explicit_mesh(arrays: Any) -> Any:
    """Return the mesh of the first array that knows Explicit axes, or None."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)
