"""Arrays of the emulated device: host memory between guard zones."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cuda

GUARD, CANARY, FRESH = 256, 0xA5, 0xFF


class Memory:
    """An allocation between two guard zones, which must not change."""

    def __init__(self, size: int) -> None:
        self.room = np.full(size + 3 * GUARD, CANARY, np.uint8)
        self.start = GUARD + -self.room.ctypes.data % GUARD
        self.size = size
        self.room[self.start : self.start + size] = FRESH
        LIVE[id(self)] = self

    def bytes(self) -> NDArray[np.uint8]:
        """Return the allocation without its guard zones."""
        return self.room[self.start : self.start + self.size]

    def intact(self) -> bool:
        """Return whether both guard zones are unchanged."""
        ends = (self.room[: self.start], self.room[self.start + self.size :])
        return all((end == CANARY).all() for end in ends)


LIVE: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def check_guards() -> None:
    """Fail if a kernel wrote beyond the memory of an array."""
    for reference in LIVE.valuerefs():  # a copy of the list: other threads may allocate meanwhile
        memory = reference()
        if memory is not None and not memory.intact():
            raise AssertionError(f"emulated: a kernel wrote beyond an allocation of {memory.size} bytes")


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class ndarray:  # noqa: N801
    """The part of ``cupy.ndarray`` that the backend uses."""

    __module__ = "cupy"

    def __init__(self, host: NDArray[Any], memory: Memory, device: cuda.Device) -> None:
        self.host, self._memory, self.device = host, memory, device

    @classmethod
    def allocate(cls, shape: Any, dtype: Any, *, like: tuple[int, ...] | None = None) -> ndarray:
        """Allocate on the current device, with the axes in the order of the given strides."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        order = sorted(range(len(shape)), key=lambda i: -abs(like[i])) if like else list(range(len(shape)))
        memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        flat = memory.bytes().view(dtype).reshape([shape[i] for i in order])
        return cls(flat.transpose(np.argsort(order)) if shape else flat, memory, cuda.Device())

    def view_of(self, host: NDArray[Any]) -> ndarray:
        """Return another view of the same memory."""
        return type(self)(host, self._memory, self.device)

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    strides = property(lambda self: self.host.strides)
    size = property(lambda self: self.host.size)
    ndim = property(lambda self: self.host.ndim)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    T = property(lambda self: self.view_of(self.host.T))
    data = property(lambda self: _Pointer(self.host.ctypes.data))

    def get(self) -> NDArray[Any]:
        """Copy to the host."""
        cuda.get_current_stream().refuse_capture("get")
        return np.array(self.host, order="C")

    def set(self, host: NDArray[Any]) -> None:
        """Copy from the host."""
        cuda.get_current_stream().refuse_capture("set")
        if host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"set: {host.shape} {host.dtype} into {self.shape} {self.dtype}")
        self.host[...] = host

    def copy(self) -> ndarray:
        """Copy on the device."""
        made = type(self).allocate(self.shape, self.dtype)

        def go() -> None:
            made.host[...] = self.host

        cuda.get_current_stream().do(go)
        return made

    def fill(self, value: Any) -> None:
        """Set all values."""
        cuda.get_current_stream().do(lambda: self.host.fill(value))

    def __getitem__(self, index: Any) -> ndarray:
        host = self.host[index]
        return self.view_of(host if isinstance(host, np.ndarray) else np.asarray(host))

    def transpose(self, *axes: int) -> ndarray:
        """View with the axes in another order."""
        return self.view_of(self.host.transpose(*axes))

    def reshape(self, *shape: Any) -> ndarray:
        """View with another shape; the emulation makes no copy."""
        host = self.host.reshape(*shape)
        if host.size and not np.shares_memory(host, self.host):
            raise ValueError("reshape would copy")
        return self.view_of(host)

    def __setitem__(self, index: Any, value: ndarray) -> None:
        self.host[index] = value.host

    def __len__(self) -> int:
        return len(self.host)

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")
