"""MXNet's arrays as memory: what is one, how to look at its values from the host, how to make a new one.

MXNet computes in the background. Whoever looks at memory must wait for what is still to be written into it; an
array made here has nothing to wait for until it is given away.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from polybn.spec import Array, BackendError
from polybn_mxnet.compat import mxnet as mx

Host: TypeAlias = "NDArray[Any]"

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""How MXNet describes it to NumPy."""


_lock = threading.RLock()  # a collection of garbage may come back to it


def is_array(value: object) -> bool:
    """Tell a dense array, of either of MXNet's two kinds, from sparse ones and others' subclasses."""
    return type(value) in (mx.nd.NDArray, mx.np.ndarray)


def check_contexts(function: str, **arrays: Array | None) -> None:
    """Raise BackendError unless all arrays are in one context."""
    given = {name: array.ctx for name, array in arrays.items() if array is not None}
    first = next(iter(given.values()))
    if any(context != first for context in given.values()):
        owners = ", ".join(f"{name}: {context}" for name, context in given.items())
        raise BackendError(
            f"polybn.{function}: all arrays must be in one MXNet context; got {owners} (polybn moves nothing "
            "between devices: see as_in_context)"
        )


def deletes(where: Array | None) -> bool:
    """Tell whether a mask deletes anything, as far as that can be seen without waiting for a device."""
    return where is not None and not (on_host(where) and bool(view(where).all()))


def on_host(array: Array) -> bool:
    """Tell whether the values lie in memory that the host can read."""
    return bool(array.ctx.device_type.startswith("cpu"))


def view(array: Array) -> Host:
    """Look at the memory of an array in a CPU context, once it has been written.

    The view does not keep the memory alive: it is for as long as somebody holds the array.
    """
    array.wait_to_read()
    return view_settled(array)


def view_settled(array: Array) -> Host:
    """Look at the memory of an array that nothing is going to write."""
    shape, dtype = array.shape, np.dtype(array.dtype)
    if 0 in shape:
        return np.empty(shape, dtype)
    pointer = ctypes.c_void_p()
    # This asks for MXNet's standard layout, too, where oneDNN left another one behind.
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    address = pointer.value
    assert address is not None
    size = dtype.itemsize * math.prod(shape)
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def values(array: Array) -> Host:
    """Look at the values of an array in a CPU context; bfloat16, which NumPy lacks, is copied to float32."""
    host = view(array)
    if host.dtype == BFLOAT16:
        return (host.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return host


def fetch(array: Array) -> Host:
    """Copy the values of an array in any context to the host, bfloat16 as float32."""
    if on_host(array):
        return values(array).copy()
    wide = mx.nd.amp_cast(array.as_nd_ndarray(), dtype="float32") if array.dtype == BFLOAT16 else array
    return cast("Host", wide.asnumpy())


def store(host: Host, array: Array) -> None:
    """Write host values into an array that nothing else writes, rounding to its dtype."""
    target = view_settled(array)
    if target.dtype == BFLOAT16:
        bits = host.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, ties to even
        target.view(np.uint16)[...] = np.where(np.isnan(host), 0x7FC0, rounded)
    else:
        np.copyto(target, host, casting="same_kind")


def rounded(host: Host, like: Array) -> Array:
    """Send host values to the shape, dtype, kind and context of another array."""
    if like.dtype != BFLOAT16:
        return send(np.asarray(host).astype(like.dtype), like)
    if not host.size:
        return send(np.empty(host.shape, BFLOAT16), like)
    new = mx.nd.empty(like.shape, mx.cpu(), BFLOAT16)
    store(host, new)
    return as_kind(new.as_in_context(like.ctx), like)


def assign(values: Array, array: Array) -> None:
    """Write MXNet's own values into an array by its operators, rounding to its dtype."""
    values = values.as_nd_ndarray()
    cast = mx.nd.amp_cast(values, dtype=BFLOAT16) if array.dtype == BFLOAT16 else values.astype(array.dtype, copy=False)
    cast.copyto(array.as_nd_ndarray())


def put(host: Host, array: Array) -> None:
    """Write host values into an array of any context that nothing else writes."""
    store(host, array) if on_host(array) else assign(send(host, array), array)


def add(values: Array, array: Array) -> None:
    """Add to an array that nothing else writes, in place."""
    if on_host(array) and array.dtype != BFLOAT16:
        target = view_settled(array)
        target += view(values)  # which MXNet's operators may still be writing
    else:
        assign(array.as_nd_ndarray() + values.as_nd_ndarray(), array)


def described(array: Array) -> Any:
    """Return what the argument checks look at: bfloat16 is a record to NumPy, and has no name."""
    if not is_array(array) or array.dtype != BFLOAT16:
        return array
    return SimpleNamespace(shape=array.shape, dtype=SimpleNamespace(name="bfloat16"))


def widened(array: Array, dtype: str) -> Array:
    """Copy to the type of the statistics, as the kind that broadcasts."""
    array = array.as_nd_ndarray()
    new = mx.nd.amp_cast(array, dtype=dtype) if array.dtype == BFLOAT16 else array.astype(dtype)
    return new.as_np_ndarray()


class Owned:
    """Memory that nobody else sees, so that there is nothing to wait for, ever.

    MXNet gives the memory of a CPU array back to the system, and fresh pages cost more than the arithmetic on them:
    up to KEPT bytes stay for the next call.
    """

    KEPT = 1 << 26
    _free: ClassVar[list[tuple[int, Any]]] = []

    def __init__(self, like: Array, dtype: DTypeLike) -> None:
        size = math.prod(like.shape) * np.dtype(dtype).itemsize
        array = self._take(size)
        self.view = view_settled(array).view(dtype).reshape(like.shape)
        # Not __del__: in a cycle, MXNet's array might be finalized first.
        weakref.finalize(self, self._give, size, array).atexit = False

    @classmethod
    def _take(cls, size: int) -> Any:
        with _lock:
            for place, (candidate, array) in enumerate(cls._free):
                if candidate == size:
                    del cls._free[place]
                    return array
        return mx.nd.empty((size,), mx.cpu(), np.uint8)

    @classmethod
    def _give(cls, size: int, array: Any) -> None:
        with _lock:
            cls._free.append((size, array))
            while sum(size for size, _ in cls._free) > cls.KEPT:
                del cls._free[0]


def vector(array: Array | None) -> Any:
    """Copy a small array to the host; None stays None."""
    return None if array is None else view(array).copy() if on_host(array) else array.asnumpy()


def empty(like: Array, dtype: DTypeLike | None = None) -> Array:
    """Allocate an array of the same shape, kind and context."""
    new = mx.nd.empty(like.shape, like.ctx, like.dtype if dtype is None else dtype)
    return as_kind(new, like)


def send(host: Host, like: Array) -> Array:
    """Copy host values to the kind and context of another array."""
    if not (host.size and host.shape):
        with zero_sizes():
            new = mx.nd.empty(host.shape, like.ctx, host.dtype)
            if host.size:
                new[()] = float(host)  # MXNet cannot spell a bool here
        return as_kind(new, like)
    new = mx.nd.empty(host.shape, like.ctx, host.dtype)
    if on_host(new):
        view_settled(new)[...] = host
    else:
        new[:] = host
    return as_kind(new, like)


def as_kind(array: Array, like: Array) -> Array:
    """Hand over the same memory as the kind of array that another one is."""
    return array.as_np_ndarray() if type(like) is mx.np.ndarray else array.as_nd_ndarray()


def zero_sizes() -> AbstractContextManager[Any]:
    """Let 0 in a shape mean nothing, rather than something unknown, for this thread and this block."""
    scope: AbstractContextManager[Any] = mx.util.np_shape(True)
    return scope
