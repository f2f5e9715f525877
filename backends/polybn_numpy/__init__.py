"""The NumPy backend: the specification's companion, in blocked NumPy on two threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.arguments import dtype_name
from polybn.spec import Description, Traits
from polybn_numpy.batch_norm import fold, forward, merge_moments, moments
from polybn_numpy.derivatives import backward, double_backward
from polybn_numpy.program import compile

name = "numpy"
traits = Traits(library="NumPy")


def why_not() -> str | None:
    """Return None: what imports NumPy can compute with it."""
    return None


def inspect(value: Any, /) -> Description | None:
    """Describe an ndarray; None for subclasses that change its meaning: masked arrays, matrices, quantities."""
    return Description(value.shape, dtype_name(value.dtype)) if type(value) in (np.ndarray, np.memmap) else None


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on."""
    return {"numpy": np.__version__, "device": f"cpu ({platform.machine()})"}


def asarray(host: NDArray[Any], /) -> NDArray[Any]:
    """Copy a NumPy array."""
    return np.array(host)


def to_numpy(array: NDArray[Any], /) -> NDArray[Any]:
    """Copy a NumPy array."""
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
