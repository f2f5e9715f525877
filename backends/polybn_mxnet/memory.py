"""MXNet's arrays as memory: what is one, how to look at its values from the host, how to make a new one.

MXNet computes in the background. Whoever looks at memory must wait for what is still to be written into it; an
array made here has nothing to wait for until it is given away.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Array, BackendError
from polybn_mxnet import handles
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.handles import BFLOAT16, Description

Host: TypeAlias = "NDArray[Any]"

_lock = threading.RLock()  # a collection of garbage may come back to it


def is_array(value: object) -> bool:
    """Tell a dense array, of either of MXNet's two kinds, from sparse ones and others' subclasses."""
    return type(value) in handles.KINDS


def described(array: Any) -> Description | None:
    """Return what the argument checks look at; None stays None."""
    return None if array is None else handles.describe(array)


def check_contexts(function: str, **arrays: Description | None) -> None:
    """Raise BackendError unless all arrays are in one context."""
    given = {name: array.context for name, array in arrays.items() if array is not None}
    if len(set(given.values())) > 1:
        devices = mx.Context.devtype2str
        owners = ", ".join(f"{name}: {devices[device]}({index})" for name, (device, index) in given.items())
        raise BackendError(
            f"polybn.{function}: all arrays must be in one MXNet context; got {owners} (polybn moves nothing "
            "between devices: see as_in_context)"
        )


def deletes(where: Array | None) -> bool:
    """Tell whether a mask deletes anything, as far as that can be seen without waiting for a device."""
    return where is not None and not (on_host(where) and bool(view(where).all()))


def on_host(array: Array) -> bool:
    """Tell whether the values lie in memory that the host can read."""
    return handles.describe(array).on_host


def view(array: Array) -> Host:
    """Look at the memory of an array in a CPU context, once it has been written.

    The view does not keep the memory alive: it is for as long as somebody holds the array.
    """
    handles.wait_to_read(array.handle)
    return view_settled(array)


def view_settled(array: Array) -> Host:
    """Look at the memory of an array that nothing is going to write."""
    what = handles.describe(array)
    dtype = BFLOAT16 if what.dtype == "bfloat16" else what.dtype
    if 0 in what.shape:
        return np.empty(what.shape, dtype)
    return handles.view(array.handle, what.shape, dtype)


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
    """Write host values into an array of their shape and dtype, of any context, that nothing else writes."""
    what = handles.describe(array)
    if what.on_host and host.size:
        handles.view(array.handle, host.shape, host.dtype)[...] = host
    elif host.size:
        assign(place(host, what.context, type(array)), array)


def overwrite(array: Array, values: Array) -> None:
    """Copy values to an array of the same shape and dtype, once nothing reads or writes it."""
    if on_host(array):
        handles.wait_to_write(array.handle)
        view_settled(array)[...] = view(values)
    else:
        values.copyto(array)


def add(values: Array, array: Array) -> None:
    """Add to an array that nothing else writes, in place."""
    if on_host(array) and array.dtype != BFLOAT16:
        target = view_settled(array)
        target += view(values)  # which MXNet's operators may still be writing
    else:
        assign(array.as_nd_ndarray() + values.as_nd_ndarray(), array)


def widened(array: Array, dtype: str) -> Array:
    """Copy to the type of the statistics, as the kind that broadcasts."""
    array = array.as_nd_ndarray()
    new = mx.nd.amp_cast(array, dtype=dtype) if array.dtype == BFLOAT16 else array.astype(dtype)
    return new.as_np_ndarray()


class Owned:
    """Memory that nobody else sees.

    The system takes large arrays back, and fresh pages cost more than the arithmetic on them: up to KEPT bytes stay
    for the next call.
    """

    KEPT = 1 << 26
    _free: ClassVar[list[Host]] = []

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.view = self._take(math.prod(shape), dtype).reshape(shape)

    @classmethod
    def _take(cls, size: int, dtype: str) -> Host:
        with _lock:
            for place, candidate in enumerate(cls._free):
                if candidate.size == size and candidate.dtype == dtype:
                    return cls._free.pop(place)
        return np.empty(size, dtype)

    def __del__(self, lock: Any = _lock, free: list[Host] = _free) -> None:
        with lock:
            free.append(self.view.reshape(-1))
            while sum(array.nbytes for array in free) > self.KEPT:
                del free[0]


def vector(array: Array | None) -> Any:
    """Copy a small array to the host; None stays None."""
    return None if array is None else view(array).copy() if on_host(array) else array.asnumpy()


def new(what: Description, kind: type) -> Array:
    """Allocate an array."""
    if what.shape and 0 not in what.shape:
        return handles.create(*what, kind)
    with zero_sizes():
        return handles.create(*what, kind)


def empty(like: Array) -> Array:
    """Allocate an array of the same shape, dtype, kind and context."""
    return new(handles.describe(like), type(like))


def send(host: Host, like: Array) -> Array:
    """Copy host values to the kind and context of another array."""
    return place(host, handles.describe(like).context, type(like))


def place(host: Host, context: tuple[int, int], kind: type) -> Array:
    """Copy host values to a kind of array and a context."""
    what = Description(host.shape, handles.name(host.dtype), context)
    array = new(what, kind)
    if not host.size:
        return array
    if what.on_host:
        handles.view(array.handle, host.shape, host.dtype)[...] = host
    elif host.shape:
        array[:] = host
    else:
        with zero_sizes():
            array[()] = float(host)  # MXNet cannot spell a bool here
    return array


def as_kind(array: Array, like: Array) -> Array:
    """Hand over the same memory as the kind of array that another one is."""
    return array.as_np_ndarray() if type(like) is mx.np.ndarray else array.as_nd_ndarray()


def zero_sizes() -> AbstractContextManager[Any]:
    """Let 0 in a shape mean nothing, rather than something unknown, for this thread and this block."""
    scope: AbstractContextManager[Any] = mx.util.np_shape(True)
    return scope
