"""Devices that share a batch: a mesh of one axis, and how host arrays get onto it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from polybn.spec import BackendError, DomainError

AXIS = "devices"
EVERYWHERE = PartitionSpec()
BY_IMAGE = PartitionSpec(None, AXIS)
"""Of indices ``(steps, images)``: each device gets its part of each step."""


def choose(devices: int, batch_size: int) -> Mesh | None:
    """Return a mesh of the first devices, of all processes together; None for a single one.

    Raises
    ------
    DomainError
        If ``devices`` is not positive, does not divide the batch, or leaves out a device of several processes.
    BackendError
        If there are fewer.
    """
    if devices < 1:
        raise DomainError(f"polybn.train: devices must be 1 or more; got {devices} (they share each batch)")
    found = jax.devices()
    if devices == 1 and jax.process_count() == 1:
        return None
    if devices > len(found):
        raise BackendError(
            f"polybn.train: devices must be at most {len(found)}, which JAX finds here; got {devices} "
            f"({found[0].platform}; to try it on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count={devices})"
        )
    if jax.process_count() > 1 and devices != len(found):
        raise DomainError(
            f"polybn.train: devices must be all {len(found)} of the {jax.process_count()} processes; got {devices} "
            "(each takes part with all of its devices)"
        )
    if batch_size % devices:
        raise DomainError(
            f"polybn.train: devices must divide the batch size; got {devices}, and {batch_size} images in a step "
            "(each device takes an equal part)"
        )
    return Mesh(np.array(found[:devices]), (AXIS,))


def put(host: NDArray[Any], mesh: Mesh | None, spec: PartitionSpec = EVERYWHERE) -> jax.Array:
    """Copy a host array, the same one in each process, to the device or devices."""
    # JAX may take over the memory that it is given, and read it later: what it gets is nobody else's.
    if mesh is None:
        return jnp.asarray(host.copy())
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), lambda part: np.array(host[part]))


def here(array: jax.Array) -> jax.Array:
    """Return this process's first copy of an array that is the same everywhere."""
    return array.addressable_data(0)
