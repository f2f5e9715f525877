"""The JAX backend: the specification as pure functions that compose with every transformation of JAX."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from polybn.spec import BackendError, Description, DTypeError, Traits
from polybn_jax.batch_norm import fold, forward, merge_moments, moments
from polybn_jax.derivatives import backward, double_backward
from polybn_jax.processes import check_process
from polybn_jax.program import compile
from polybn_jax.team import is_first_process as is_first_process
from polybn_jax.team import join_processes as join_processes


def _devices() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """List the devices of the default platform, and of the CPU unless JAX_PLATFORMS leaves it out."""
    found = jax.local_devices()
    if found[0].platform != "cpu":
        with suppress(RuntimeError):
            found = [*found, *jax.local_devices(backend="cpu")]
    return {f"{device.platform}:{device.id}": partial(jax.default_device, device) for device in found}


def _hint(value: object) -> str:
    """Say what makes plain what is refused: a sparse array, or an option that JAX traces."""
    if isinstance(value, jax.core.Tracer):
        return (
            "jax.jit traces it: name options in static_argnames, as in "
            "jax.jit(polybn.batch_norm, static_argnames=('training', 'momentum', 'eps', 'axis'))"
        )
    return "it is sparse: todense() makes it plain" if hasattr(value, "todense") else ""


def _fleeting(value: object) -> str:
    """Say what to use in place of a layer where JAX traces a program."""
    if not isinstance(value, jax.core.Tracer):
        return ""
    return (
        "JAX is tracing, in jit, vmap or scan, and does not see what a layer keeps: call polybn.batch_norm, which "
        "returns the statistics, y, mean, var = polybn.batch_norm(x, gamma, beta, mean, var, training=True), or use "
        "polybn_jax.nnx.BatchNorm"
    )


name = "jax"
traits = Traits(
    library="JAX",
    devices=_devices,
    flushes_subnormals=True,
    jit=jax.jit,
    several_devices=True,
    native_norm=find_spec("flax") is not None,
    instead_of_integers="polybn.moments(numpy.asarray(x)) is exact; x.astype('float32') stays on the device",
    own=frozenset({"axis_name"}),
    joins="axis_name",
    hint=_hint,
    fleeting=_fleeting,
)


def why_not() -> str | None:
    """Return None if a computation ran on the default device and came back, else the reason why not."""
    try:
        doubled = to_numpy(jax.jit(lambda z: z * 2)(asarray(np.array([1, 3], np.float32))))
    except Exception as error:  # whatever a driver throws
        return f"{type(error).__name__}: {error}"
    return None if doubled.tolist() == [2, 6] else f"twice [1, 3] gave {doubled.tolist()}"


def inspect(value: object, /) -> Description | None:
    """Describe an array, or what stands for one under tracing."""
    if not isinstance(value, jax.Array | jax.core.Tracer):
        return None
    return Description(value.shape, value.dtype.name)


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on."""
    device = jax.devices()[0]
    return {"jax": jax.__version__, "device": f"{device.platform} ({device.device_kind})"}


def asarray(host: NDArray[Any], /) -> jax.Array:
    """Copy a NumPy array to the default device; float64 needs ``jax_enable_x64``."""
    check_process("asarray")
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        raise DTypeError(
            f"polybn.asarray: host must have a dtype that JAX holds as it is set; got {host.dtype.name} "
            "(64 bits need jax.config.update('jax_enable_x64', True))"
        )
    # Not jnp.array(host): it reads the host's memory when it comes to it, after the caller may have written there.
    # Nor jnp.asarray, which compiles a program for each shape.
    return jax.device_put(host.copy())


def to_numpy(array: jax.Array, /) -> NDArray[Any]:
    """Copy a JAX array to the host."""
    if inspect(array) is None:
        raise BackendError(
            f"polybn.to_numpy: array must be a plain JAX array; got {type(array).__name__} (nothing is converted)"
        )
    return np.array(array)


__all__ = [
    "asarray",
    "backward",
    "compile",
    "describe",
    "double_backward",
    "fold",
    "forward",
    "inspect",
    "merge_moments",
    "moments",
    "name",
    "to_numpy",
    "traits",
    "why_not",
]
