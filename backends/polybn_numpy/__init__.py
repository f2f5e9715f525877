"""The NumPy backend: compiled kernels on the arrays' memory, or plain NumPy if they are not compiled."""

from __future__ import annotations

import platform
from collections.abc import Hashable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import polybn_host
from polybn.arguments import dtype_name
from polybn.spec import Description, Traits
from polybn_numpy.batch_norm import backward, fold, forward, merge_moments, moments
from polybn_numpy.derivatives import double_backward
from polybn_numpy.host import serves, without_kernels
from polybn_numpy.program import compile

_TYPES = frozenset({np.ndarray, np.memmap, type(None)})


def _signature(arrays: tuple[Any, ...]) -> Hashable:
    types = tuple(map(type, arrays))
    if not _TYPES.issuperset(types):
        return None
    return types, tuple([None if array is None else (array.shape, array.dtype) for array in arrays])


name = "numpy"
traits = Traits(
    library="NumPy",
    devices=lambda: {"cpu": nullcontext},
    integers=True,
    variants={"plain": without_kernels},
    own=frozenset({"out"}),
    own_of_pullback=frozenset({"out"}),
    signature=_signature,
)


def why_not() -> str | None:
    """Return None: where NumPy can be imported, it can compute."""
    return None


def inspect(value: Any, /) -> Description | None:
    """Describe an ndarray; None for subclasses that change its meaning: masked arrays, matrices, quantities."""
    return _description(value.shape, value.dtype) if type(value) in (np.ndarray, np.memmap) else None


@lru_cache(maxsize=1024)
def _description(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Description:
    return Description(shape, dtype_name(dtype))


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on."""
    kernels = polybn_host.instructions() if serves() else polybn_host.missing or "not used"
    return {"numpy": np.__version__, "kernels": kernels, "device": f"cpu ({platform.machine()})"}


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
