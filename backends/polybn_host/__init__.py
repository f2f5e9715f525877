"""The host kernels: batch norm in C on host memory, for every library whose arrays are there.

A caller describes the memory layout of a call's arrays with :func:`geometry`, and then calls :func:`forward` and
:func:`backward` with views of the memory: NumPy arrays, or None. Nothing is checked here: shapes, dtypes and strides
must be right.

If the library is not built, or ``POLYBN_KERNELS=0`` disables it, :data:`missing` says why, and callers use another
implementation. ``POLYBN_NUM_THREADS`` limits the threads; the default is one for each processor that the process may
use.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from polybn_host.sources import digest

DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
"""The kernels' numbers for dtypes of ``x``; parameters are float64 with float64, else float32."""

missing: str | None = None
"""Why the kernels cannot run here; None if they can."""

_ffi: Any = None
_lib: Any = None
if os.environ.get("POLYBN_KERNELS") == "0":
    missing = "POLYBN_KERNELS=0"
else:
    try:
        from polybn_host import _kernels  # type: ignore[attr-defined]
    except ImportError as error:
        missing = f"not compiled ({error})"
    else:
        made_from = getattr(_kernels.lib, "POLYBN_SOURCES", None)
        if made_from == (digest() or made_from):
            _ffi, _lib = _kernels.ffi, _kernels.lib
        else:  # it would misread what it is given, or compute as it did before a change
            missing = "compiled from other sources than these (pip install --editable . compiles them again)"

_null: Any = None if _ffi is None else _ffi.NULL
_from_buffer: Any = None if _ffi is None else _ffi.from_buffer

Strides = tuple[int, ...]
"""Bytes from one element to the next along each axis of an array that has the shape of ``x``."""


@lru_cache(maxsize=1024)
def geometry(
    shape: tuple[int, ...], axis: int, dtype: str, x: Strides, result: Strides, dy: Strides = (), where: Strides = ()
) -> Any:
    """Describe the memory layout of the arrays of a call; results are cached.

    ``result`` holds the strides of ``y``, or of ``dx``. The strides of an array that the call lacks are ``()``.
    """
    given = (x, dy, result, where)
    merged = list[tuple[int, list[int]]]()
    for k, size in enumerate(shape):
        if k == axis or size == 1:
            continue
        steps = [strides[k] if strides else 0 for strides in given]
        if merged and merged[-1][1] == [step * size for step in steps]:  # this axis continues the previous one
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    if not merged:  # one value per channel
        itemsize = {"float64": 8, "float32": 4}.get(dtype, 2)
        merged = [(1, [itemsize, itemsize, itemsize, 1])]
    sizes, steps_of = zip(*merged, strict=True)
    channel = [strides[axis] if strides else 0 for strides in given]
    count, rank = math.prod(sizes), len(sizes)
    return _ffi.new(
        "polybn_geometry *",
        (shape[axis], count, DTYPES[dtype], rank, sizes, channel, list(zip(*steps_of, strict=True))),
    )


def forward(
    geometry: Any,
    arrays: Sequence[Any],
    results: Sequence[Any],
    *,
    momentum: float,
    eps: float,
    training: bool,
    unbiased: bool,
) -> None:
    """Run the forward pass (S1 to S12) on memory.

    ``arrays`` holds ``x, where, counts, gamma, beta, running_mean, running_var``: where is bool, counts are int64, the
    number of values that ``where`` keeps in each channel. ``results`` holds ``y, running_mean, running_var, mean, m2,
    saved``; saved is float64 of shape ``(5, channels)`` and what :func:`backward` needs: m1, delta, v, r, and 1 where
    the channel left the range.
    """
    addresses = _addresses((*arrays, *results))
    call = _ffi.new(_FORWARD, (geometry, *addresses, momentum, eps, training, unbiased))
    if _lib.polybn_forward(call):
        raise MemoryError


def backward(geometry: Any, arrays: Sequence[Any], results: Sequence[Any], *, eps: float, training: bool) -> None:
    """Run the backward pass (S13) on memory.

    ``arrays`` holds ``x, where, counts, gamma, dy, saved``; ``results`` holds the gradients of ``x, gamma, beta,
    running_mean, running_var``.
    """
    addresses = _addresses((*arrays, *results))
    call = _ffi.new(_BACKWARD, (geometry, *addresses, eps, training))
    if _lib.polybn_backward(call):
        raise MemoryError


def _addresses(arrays: Sequence[Any]) -> list[Any]:
    """Return a pointer to the memory of each array, null for None; what is returned keeps the memory."""
    try:
        return [_null if array is None else _from_buffer(array) for array in arrays]
    except (ValueError, BufferError):  # some have gaps, or a dtype that buffers do not know
        return [_address(array) for array in arrays]


def _address(array: Any) -> Any:
    if array is None:
        return _null
    if array.ndim == 1 and not array.flags.c_contiguous:  # the kernels read vectors without strides
        return _from_buffer(array.copy())
    return _ffi.cast("void *", array.ctypes.data)


def bad_variances(variance: Any, dtype: str) -> bool:
    """Return whether some values are no variance: negative, NaN or infinite."""
    return bool(_lib.polybn_bad_variances(*_addresses([variance]), variance.size, DTYPES[dtype]))


def instructions() -> str:
    """Return the instruction set in use: avx512, avx2, or baseline, which every processor has."""
    name: str = _ffi.string(_lib.polybn_instructions()).decode()
    return name


def use_instructions(name: str) -> bool:
    """Choose the instruction set, for tests; return whether the processor has it. All give the same bits."""
    return bool(_lib.polybn_use_instructions(name.encode()))


def use_threads(number: int) -> None:
    """Set the number of threads that share a large call, the caller's included. It changes no bit."""
    _lib.polybn_set_threads(number)


def _processors() -> int:
    asked = os.environ.get("POLYBN_NUM_THREADS", "")
    if asked.isdecimal():
        return max(1, int(asked))
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


if _lib is not None:
    _FORWARD, _BACKWARD = _ffi.typeof("polybn_forward_call *"), _ffi.typeof("polybn_backward_call *")
    use_threads(_processors())
