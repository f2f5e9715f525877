"""MXNet's arrays as memory: describe one, access its values from the host, and make a new one.

MXNet computes in the background, so reading an array's memory must wait until the array has been written. An array made
here needs no waiting until it is passed to MXNet. The C API is called directly, because each attribute of
``mxnet.nd.NDArray`` takes several microseconds, and a small batch norm needs dozens.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Array, Description
from polybn_mxnet.compat import mxnet as mx

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

Host: TypeAlias = NDArray[Any]

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""The dtype that MXNet uses for bfloat16 in NumPy."""
KINDS = (mx.nd.NDArray, mx.np.ndarray)
"""The types that are served; sparse arrays and subclasses have other meanings."""

_NAMES = {
    number: "bfloat16" if dtype == BFLOAT16 else np.dtype(dtype).name
    for number, dtype in mx.nd.ndarray._DTYPE_MX_TO_NP.items()
    if dtype is not None
}
_NUMBERS = {name: number for number, name in _NAMES.items()}
_NUMPY = {name: BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in _NUMBERS}
_NAMES_OF = {dtype: name for name, dtype in _NUMPY.items()}
_int, _any, _pointer = ctypes.c_int, ctypes.c_void_p, ctypes.POINTER
_size, _suffix = (ctypes.c_int64, "Ex64") if mx.nd.ndarray._int64_enabled() else (ctypes.c_int, "Ex")
_four, _sizes = _int * 4, _pointer(_size)


def _function(name: str, *arguments: Any, waits: bool = False) -> Callable[..., int]:
    # A call that does not wait keeps the interpreter lock, because releasing it would cost more than the call.
    prototype = (ctypes.CFUNCTYPE if waits else ctypes.PYFUNCTYPE)(_int, *arguments)
    return prototype((name, mx.base._LIB))


_shape = _function(f"MXNDArrayGetShape{_suffix}", _any, _any, _pointer(_pointer(_size)))
_dtype = _function("MXNDArrayGetDType", _any, _any)
_context = _function("MXNDArrayGetContext", _any, _any, _any)
_data = _function("MXNDArrayGetData", _any, _pointer(_any), waits=True)
_wait_to_read = _function("MXNDArrayWaitToRead", _any, waits=True)
_wait_to_write = _function("MXNDArrayWaitToWrite", _any, waits=True)
_create = _function(f"MXNDArrayCreate{_suffix}", _pointer(_size), _int, _int, _int, _int, _int, _pointer(_any))


def _check(status: int) -> None:
    if status:
        raise mx.base.get_last_ffi_error()


def inspect(value: object, /) -> Description | None:
    """Describe a dense array of either kind; return None for all else."""
    return describe(value) if type(value) in KINDS else None


def describe(array: Array) -> Description:
    """Return shape, dtype and device of an array without waiting for its values."""
    handle: Any = array.handle
    numbers, sizes = _four(), _sizes()
    address = ctypes.addressof(numbers)
    _check(_shape(handle, address, sizes) or _dtype(handle, address + 4) or _context(handle, address + 8, address + 12))
    rank, dtype, device, index = numbers
    return Description(tuple(sizes[:rank]), _NAMES[dtype], _device(device, index))


@cache
def _device(number: int, index: int) -> str:
    return f"{mx.Context.devtype2str[number]}({index})"


def is_on_host(array: Array) -> bool:
    """Return whether the host can read the array's memory."""
    numbers = _four()
    address = ctypes.addressof(numbers)
    _check(_context(array.handle, address, address + 4))
    return _device(*numbers[:2]).startswith("cpu")


def view(array: Array, what: Description | None = None) -> Host:
    """View the memory of an array in a CPU context after it has been written; the view keeps the array alive."""
    _check(_wait_to_read(array.handle))
    return view_settled(array, what)


def view_settled(array: Array, what: Description | None = None) -> Host:
    """View the memory of an array in a CPU context to which no write is pending."""
    shape, name, _ = what or describe(array)
    dtype = _NUMPY[name]
    if 0 in shape:
        return np.empty(shape, dtype)
    address = ctypes.c_void_p()
    # This also converts an array that oneDNN left in a layout of its own to the standard one.
    _check(_data(array.handle, address))
    assert address.value is not None
    memory: Any = (ctypes.c_char * (dtype.itemsize * math.prod(shape))).from_address(address.value)
    memory.owner = array
    return np.ndarray(shape, dtype, memory)


def wide(host: Host) -> Host:
    """Copy bfloat16, which NumPy lacks, to float32; all else stays as it is."""
    return (host.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if host.dtype == BFLOAT16 else host


def fetch(array: Any) -> Any:
    """Copy values to the host, bfloat16 as float32; return None and host arrays unchanged."""
    if array is None or isinstance(array, np.ndarray):
        return array
    return wide(view(array).copy() if is_on_host(array) else np.asarray(array.asnumpy()))


def new(what: Description, kind: type) -> Array:
    """Allocate an array of one of the two kinds, without initializing it."""
    if what.shape and 0 not in what.shape:
        return _new(what, kind)
    with zero_sizes():
        return _new(what, kind)


def _new(what: Description, kind: type) -> Array:
    handle = mx.base.NDArrayHandle()
    _check(_create(*_request(what), handle))
    array: Array = kind(handle)
    return array


@lru_cache(maxsize=256)
def _request(what: Description) -> tuple[Any, ...]:
    device, _, index = str(what.device).rstrip(")").partition("(")
    context = mx.Context.devstr2type[device], int(index)
    return (_size * len(what.shape))(*what.shape), len(what.shape), *context, 0, _NUMBERS[what.dtype]


def empty(like: Array) -> Array:
    """Allocate an array of the same shape, dtype, kind and context."""
    return new(describe(like), type(like))


def send(host: Host, like: Array) -> Array:
    """Copy host values to the kind and context of another array."""
    name = _NAMES_OF.get(host.dtype) or host.dtype.name  # dtype.name is slow
    what = Description(host.shape, name, describe(like).device)
    array = new(what, type(like))
    write(host, array, what)
    return array


def write(host: Host, array: Array, what: Description | None = None) -> None:
    """Write host values into an array that nothing else reads or writes, rounding to its dtype."""
    what = what or describe(array)
    if not host.size:
        return
    if not str(what.device).startswith("cpu"):
        assign(mx.nd.array(host, mx.cpu(), host.dtype).as_in_context(array.ctx), array)
        return
    target = view_settled(array, what)
    if target.dtype == BFLOAT16 and host.dtype != BFLOAT16:
        bits = host.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, ties to even
        target.view(np.uint16)[...] = np.where(np.isnan(host), 0x7FC0, rounded)
    else:
        np.copyto(target, host, casting="same_kind")


def rounded(host: Host, like: Array) -> Array:
    """Send host values to an array of the shape, dtype, kind and context of another one."""
    array = empty(like)
    write(host, array)
    return array


def assign(source: Array, array: Array) -> None:
    """Copy an MXNet array into another one with MXNet's operators, rounding to its dtype.

    On the CPU the host rounds to bfloat16: MXNet's cast there makes 0 of subnormal numbers.
    """
    if array.dtype == BFLOAT16 != source.dtype and is_on_host(array):
        write(fetch(source), array)
        return
    source, target = source.as_nd_ndarray(), array.as_nd_ndarray()
    cast = mx.nd.amp_cast if BFLOAT16 in (source.dtype, target.dtype) else mx.nd.cast
    same = source.dtype == target.dtype
    (source if same else cast(source, dtype=target.dtype)).copyto(target)


def overwrite(array: Array, source: Array) -> None:
    """Copy values to an array of the same shape and dtype, after all pending reads and writes of it."""
    if is_on_host(array):
        _check(_wait_to_write(array.handle))
        view_settled(array)[...] = view(source)
    else:
        source.copyto(array)


def add(source: Array, array: Array) -> None:
    """Add to an array that nothing else reads or writes, in place."""
    if is_on_host(array) and array.dtype != BFLOAT16:
        target = view_settled(array)
        target += view(source)
    else:
        assign(array.as_nd_ndarray() + source.as_nd_ndarray(), array)


def widened(array: Array, dtype: str) -> Array:
    """Copy to the type of the statistics, as an ``mxnet.np.ndarray``, which broadcasts."""
    array = array.as_nd_ndarray()
    wide = mx.nd.amp_cast(array, dtype=dtype) if array.dtype == BFLOAT16 else array.astype(dtype)
    return wide.as_np_ndarray()


def zero_sizes() -> AbstractContextManager[Any]:
    """Let 0 in a shape mean an empty axis, not an unknown one, for this thread and this block."""
    scope: AbstractContextManager[Any] = mx.util.np_shape(True)
    return scope
