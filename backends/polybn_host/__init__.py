"""The host kernels: batch norm in C on host memory, for every library whose arrays lie there.

The kernels take addresses, strides and numbers; they know no array library. A caller describes how the arrays of a call
lie in memory once, by :func:`geometry`, and then calls :func:`forward` and :func:`backward` with addresses. Nothing is
checked here: shapes, dtypes and strides must be right.

Where the library was not built, or ``POLYBN_KERNELS=0`` asks to do without it, :data:`missing` says why, and callers
use another implementation. ``POLYBN_NUM_THREADS`` limits the threads; the default is one for each processor that the
process may use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
"""The kernels' numbers for dtypes of ``x``; parameters are float64 with float64, else float32."""

NULL = 0
"""The address of an array that is not given, or of a result that is not wanted."""

missing: str | None = None
"""Why the kernels do not run here; None if they do."""

_ffi: Any = None
_lib: Any = None
if os.environ.get("POLYBN_KERNELS") == "0":
    missing = "POLYBN_KERNELS=0"
else:
    try:
        from polybn_host._kernels import ffi as _ffi  # type: ignore[import-not-found]
        from polybn_host._kernels import lib as _lib
    except ImportError as error:
        missing = f"not compiled ({error})"

Strides = tuple[int, ...]
"""Bytes from one element to the next along each axis of an array that has the shape of ``x``."""


@lru_cache(maxsize=1024)
def geometry(
    shape: tuple[int, ...], axis: int, dtype: str, x: Strides, result: Strides, dy: Strides = (), where: Strides = ()
) -> Any:
    """Describe how the arrays of a call lie in memory; results are remembered.

    ``result`` has the strides of ``y``, or of ``dx``. An array that a call lacks has no strides.
    """
    given = (x, dy, result, where)
    axes = [k for k in range(len(shape)) if k != axis and shape[k] != 1]
    sizes = list[int]()
    strides = [list[int]() for _ in given]
    for k in axes:  # an axis that continues the one before it is no axis
        if sizes and all(not s or s[axes_before] == s[k] * shape[k] for s in given):
            sizes[-1] *= shape[k]
            for into, of in zip(strides, given, strict=True):
                into[-1:] = [of[k] if of else 0]
        else:
            sizes.append(shape[k])
            for into, of in zip(strides, given, strict=True):
                into.append(of[k] if of else 0)
        axes_before = k
    if not sizes:
        size = 2 if dtype in ("float16", "bfloat16") else 4 if dtype == "float32" else 8
        sizes, strides = [1], [[size]] * 3 + [[1]]
    count = 1
    for size in sizes:
        count *= size
    channel = [s[axis] if s else 0 for s in given]
    return _ffi.new("polybn_geometry *", (shape[axis], count, DTYPES[dtype], len(sizes), sizes, channel, strides))


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

    ``arrays`` holds the addresses of ``x, where, counts, gamma, beta, running_mean, running_var``: where is bool, counts
    are int64, one per channel, of the values that ``where`` keeps. ``results`` holds those of ``y, running_mean,
    running_var, mean, m2, saved``; saved is float64 of shape ``(5, channels)``, and what :func:`backward` needs: m1, delta,
    v, r, and 1 where the channel left the range. An address is an int or a cffi pointer.
    """
    call = _ffi.new(
        "polybn_forward_call *", (geometry, *map(_pointer, (*arrays, *results)), momentum, eps, training, unbiased)
    )
    if _lib.polybn_forward(call):
        raise MemoryError


def backward(geometry: Any, arrays: Sequence[Any], results: Sequence[Any], *, eps: float, training: bool) -> None:
    """Run the backward pass (S13) on memory.

    ``arrays`` holds the addresses of ``x, where, counts, gamma, dy, saved``, ``results`` those of the gradients of ``x,
    gamma, beta, running_mean, running_var``.
    """
    call = _ffi.new("polybn_backward_call *", (geometry, *map(_pointer, (*arrays, *results)), eps, training))
    if _lib.polybn_backward(call):
        raise MemoryError


def buffer(array: Any) -> Any:
    """Point at the memory of a contiguous buffer; the pointer keeps it alive."""
    return _ffi.from_buffer(array)


def bad_variances(variance: Any, channels: int, dtype: str) -> tuple[int, int]:
    """Count the values that are no variance (negative, NaN or infinite), and say where the first is."""
    first = _ffi.new("int64_t *")
    return _lib.polybn_bad_variances(_pointer(variance), channels, DTYPES[dtype], first), first[0]


def instructions() -> str:
    """Name the instruction set in use: avx512, avx2, or baseline, which every processor has."""
    name: str = _ffi.string(_lib.polybn_instructions()).decode()
    return name


def use_instructions(name: str) -> bool:
    """Choose the instruction set, for tests; tell whether the processor has it. All give the same bits."""
    return bool(_lib.polybn_use_instructions(name.encode()))


def use_threads(number: int) -> None:
    """Let so many threads share a large call, the caller's among them. The number changes no bit."""
    _lib.polybn_set_threads(number)


def _pointer(address: Any) -> Any:
    return _ffi.cast("void *", address) if isinstance(address, int) else address


def _processors() -> int:
    asked = os.environ.get("POLYBN_NUM_THREADS", "")
    if asked.isdecimal():
        return max(1, int(asked))
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


if _lib is not None:
    use_threads(_processors())
