"""A stand-in for the few names of CuPy that the backend uses, for tests without a GPU.

Device memory is host memory between guard zones, and kernels are compiled by g++ with ``include/emulator.h``. The
stand-in is found as ``cupy`` only if this folder's parent is on the path.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import _module as _module
from . import cuda
from ._array import ndarray

__version__ = "0 (emulated)"

os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")  # _module.py has its own cache, whose key includes emulator.h


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Allocate an array full of NaN, so that reading a value that was never written shows."""
    return ndarray.allocate(shape, dtype)


def empty_like(a: ndarray) -> ndarray:
    """Allocate an array whose axes have the same order in memory as those of another."""
    return ndarray.allocate(a.shape, a.dtype, like=a.strides)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Allocate zeros."""
    made = ndarray.allocate(shape, dtype)
    made.fill(0)
    return made


def zeros_like(a: ndarray) -> ndarray:
    """Allocate zeros whose axes have the same order in memory as those of another array."""
    made = empty_like(a)
    made.fill(0)
    return made


def array(values: Any, dtype: Any = None) -> ndarray:
    """Copy host values, or an array, to the current device; keep Fortran order, and turn any other into C order."""
    cuda.get_current_stream().refuse_capture("array")
    host = values.host if isinstance(values, ndarray) else np.asarray(values, dtype)
    fortran = host.flags.f_contiguous and not host.flags.c_contiguous
    made = ndarray.allocate(host.shape, host.dtype, like=host.strides if fortran else None)
    made.host[...] = host
    return made


def asarray(values: Any, dtype: Any = None) -> ndarray:
    """Copy host values to the current device; leave an array where it is."""
    return values if isinstance(values, ndarray) else array(values, dtype)


def ascontiguousarray(a: ndarray) -> ndarray:
    """Copy to memory in C order."""
    return array(np.ascontiguousarray(a.host))


def broadcast_to(a: ndarray, shape: tuple[int, ...]) -> ndarray:
    """View an array with added or longer axes, of stride 0."""
    return a.view_of(np.broadcast_to(a.host, shape))


def get_default_memory_pool() -> Any:
    """Return a pool that has nothing to free."""
    return SimpleNamespace(free_all_blocks=lambda: None)


def copyto(target: ndarray, source: ndarray) -> None:
    """Copy on the device."""

    def go() -> None:
        target.host[...] = source.host

    cuda.get_current_stream().do(go)


__all__ = [
    "array",
    "asarray",
    "ascontiguousarray",
    "broadcast_to",
    "copyto",
    "cuda",
    "empty",
    "empty_like",
    "get_default_memory_pool",
    "ndarray",
    "zeros",
    "zeros_like",
]
