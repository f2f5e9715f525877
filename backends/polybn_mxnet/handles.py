"""MXNet's C API, asked directly.

``mxnet.ndarray`` takes several microseconds for every attribute of an array; a small batch norm asks for dozens.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from polybn_mxnet.compat import mxnet as mx

if TYPE_CHECKING:
    from collections.abc import Callable

    from polybn.spec import Array

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""How MXNet describes it to NumPy."""

KINDS = (mx.nd.NDArray, mx.np.ndarray)
_CPUS = {number for number, name in mx.Context.devtype2str.items() if name.startswith("cpu")}
_NAMES = {
    number: "bfloat16" if dtype == BFLOAT16 else np.dtype(dtype).name
    for number, dtype in mx.nd.ndarray._DTYPE_MX_TO_NP.items()
    if dtype is not None
}
_NUMBERS = {name: number for number, name in _NAMES.items()}
_NAMES_OF = {BFLOAT16 if name == "bfloat16" else np.dtype(name): name for name in _NUMBERS}
_int, _size = ctypes.c_int, ctypes.c_int64 if mx.nd.ndarray._int64_enabled() else ctypes.c_int
_four = _int * 4
_suffix = "Ex64" if _size is ctypes.c_int64 else "Ex"


def _function(name: str, *arguments: Any, waits: bool = False) -> Callable[..., int]:
    # What does not wait keeps the interpreter lock: to give it up is to ask another thread to take it, and to wait.
    prototype = (ctypes.CFUNCTYPE if waits else ctypes.PYFUNCTYPE)(_int, *arguments)
    return prototype((name, mx.base._LIB))


_pointer = ctypes.POINTER
_any = ctypes.c_void_p
_shape = _function(f"MXNDArrayGetShape{_suffix}", _any, _any, _pointer(_pointer(_size)))
_dtype = _function("MXNDArrayGetDType", _any, _any)
_context = _function("MXNDArrayGetContext", _any, _any, _any)
_data = _function("MXNDArrayGetData", ctypes.c_void_p, _pointer(ctypes.c_void_p), waits=True)
_wait_to_read = _function("MXNDArrayWaitToRead", ctypes.c_void_p, waits=True)
_wait_to_write = _function("MXNDArrayWaitToWrite", ctypes.c_void_p, waits=True)
_create = _function(
    f"MXNDArrayCreate{_suffix}", _pointer(_size), _int, _int, _int, _int, _int, _pointer(ctypes.c_void_p)
)


def name(dtype: np.dtype[Any]) -> str:
    """Name a dtype; NumPy itself takes longer for that than for a small sum."""
    return _NAMES_OF.get(dtype) or dtype.name


class Description(NamedTuple):
    """What the argument checks look at."""

    shape: tuple[int, ...]
    dtype: str
    """By name: bfloat16 is a record to NumPy."""
    context: tuple[int, int]

    @property
    def on_host(self) -> bool:
        """Whether the values lie in memory that the host can read."""
        return self.context[0] in _CPUS


def describe(array: Array) -> Description:
    """Look at what an array is, not at its values."""
    handle: Any = array.handle
    numbers, sizes = _four(), _pointer(_size)()
    if (
        _shape(handle, ctypes.byref(numbers), ctypes.byref(sizes))
        or _dtype(handle, ctypes.byref(numbers, 4))
        or _context(handle, ctypes.byref(numbers, 8), ctypes.byref(numbers, 12))
    ):
        raise mx.base.get_last_ffi_error()
    rank, dtype, device, index = numbers
    return Description(tuple(sizes[:rank]), _NAMES[dtype], (device, index))


def create(shape: tuple[int, ...], dtype: str, context: tuple[int, int], kind: type) -> Array:
    """Allocate an array, of one value or more, with nothing in it."""
    handle = mx.base.NDArrayHandle()
    if _create(*_request(shape, dtype, context), ctypes.byref(handle)):
        raise mx.base.get_last_ffi_error()
    array: Array = kind(handle)
    return array


@lru_cache(maxsize=256)
def _request(shape: tuple[int, ...], dtype: str, context: tuple[int, int]) -> tuple[Any, ...]:
    return (_size * len(shape))(*shape), len(shape), *context, 0, _NUMBERS[dtype]


def wait_to_read(handle: Any) -> None:
    """Wait until nothing is going to write the values."""
    if _wait_to_read(handle):
        raise mx.base.get_last_ffi_error()


def wait_to_write(handle: Any) -> None:
    """Wait until nothing is going to read or write the values."""
    if _wait_to_write(handle):
        raise mx.base.get_last_ffi_error()


def address(handle: Any) -> int:
    """Tell where the memory of an array begins that holds one value or more."""
    pointer = ctypes.c_void_p()
    # This asks for MXNet's standard layout, too, where oneDNN left another one behind.
    if _data(handle, ctypes.byref(pointer)):
        raise mx.base.get_last_ffi_error()
    assert pointer.value is not None
    return pointer.value


def view(handle: Any, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Look at the memory of an array in a CPU context that holds one value or more, and that nothing writes.

    The view does not keep the memory alive.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    memory: Any = (ctypes.c_char * size).from_address(address(handle))
    return np.ndarray(shape, dtype, memory)
