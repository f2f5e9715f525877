"""The JAX backend: the specification as pure functions that compose with every transformation of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from polybn.arguments import check_arrays
from polybn.spec import DTypeError
from polybn_jax.batch_norm import batch_norm, batch_norm_vjp, fold, merge_moments, moments
from polybn_jax.derivatives import is_array
from polybn_jax.program import compile

name = "jax"
jit = jax.jit
"""Compiles functions of arrays; `polybn bench` and the conformance kit ask for it."""


def why_not() -> str | None:
    """Return None if a computation ran on the default device and came back, else the reason why not.

    See :meth:`polybn.spec.Backend.why_not`.
    """
    try:
        y = to_numpy(batch_norm(asarray(np.array([[1.0], [3.0]], np.float32)), training=True, eps=0).y)
    except Exception as error:  # whatever a driver throws
        return f"{type(error).__name__}: {error}"
    return None if y.tolist() == [[-1.0], [1.0]] else f"batch_norm of [1, 3] gave {y.tolist()}"


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on; see :meth:`polybn.spec.Backend.describe`."""
    device = jax.devices()[0]
    return {"jax": jax.__version__, "device": f"{device.platform} ({device.device_kind})"}


def asarray(host: NDArray[Any], /) -> jax.Array:
    """Copy a NumPy array to the default device; float64 needs ``jax_enable_x64``.

    See :meth:`polybn.spec.Backend.asarray`.
    """
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        raise DTypeError(
            f"polybn.asarray: host must have a dtype that JAX holds as it is set; got {host.dtype.name} "
            "(64 bits need jax.config.update('jax_enable_x64', True))"
        )
    # Not jnp.array(host): it reads the host's memory when it comes to it, after the caller may have written there.
    return jnp.asarray(host.copy())


def to_numpy(array: jax.Array, /) -> NDArray[Any]:
    """Copy a JAX array to the host; see :meth:`polybn.spec.Backend.to_numpy`."""
    check_arrays("to_numpy", "JAX", is_array, array=array)
    return np.array(array)


__all__ = [
    "asarray",
    "batch_norm",
    "batch_norm_vjp",
    "compile",
    "describe",
    "fold",
    "merge_moments",
    "moments",
    "name",
    "to_numpy",
    "why_not",
]
