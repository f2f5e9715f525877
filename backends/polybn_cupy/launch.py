"""Load kernels by name and launch them; allocate the memory through which groups of blocks communicate."""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple, TypeAlias

import cupy
import numpy as np

from polybn_cupy.binaries import binary
from polybn_cupy.plan import THREADS, Device, power_of_two

TOO_LARGE = 720  # CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, another stream in each thread


class Kernel(NamedTuple):
    """A compiled kernel on one device."""

    function: Any
    shared_limit: int

    def __call__(self, blocks: int, arguments: bytes, *, shared: int = 0, together: bool = False) -> None:
        """Launch on the current stream; with ``together``, all blocks run at once, because they wait for each other."""
        value = np.frombuffer(arguments, np.dtype((np.void, len(arguments))))  # a struct, passed by value
        self.function((blocks,), (THREADS,), (value,), shared_mem=shared, enable_cooperative_groups=together)

    def resident(self, shared: int) -> int:
        """Return how many blocks a multiprocessor holds at once."""
        return _resident(self.function.ptr, shared)


def kernel(file: str, expression: str) -> Kernel:
    """Return a kernel for the current device; it is compiled on first use."""
    return _kernel(cupy.cuda.runtime.getDevice(), file, expression)


def device() -> Device:
    """Describe the current device to the planner."""
    number = cupy.cuda.runtime.getDevice()
    found, granted = _device(number), _granted.get(number)
    return found._replace(multiprocessors=granted) if granted else found


def take_less(error: Exception) -> None:
    """Plan for half the multiprocessors from now on, if a launch failed because its blocks cannot all run at once.

    Under MPS, a process may use fewer multiprocessors than the device reports. Any other error is raised again.
    """
    multiprocessors = device().multiprocessors
    if getattr(error, "status", None) != TOO_LARGE or multiprocessors == 1:
        raise error
    _granted[cupy.cuda.runtime.getDevice()] = multiprocessors // 2


def barriers() -> Any:
    """Return the counters of the barriers between blocks; they are zeros before and after every launch.

    Launches on one stream run one after the other, so there is one set of counters per stream. The stream is kept, too,
    because CUDA gives the handle of a deleted stream to a new one while work of the old one may still be running.
    """
    key, stream = _queue()
    found, _ = _barriers.get(key, (None, None))
    if found is None:
        most = device().multiprocessors * (2048 // THREADS)
        if stream.is_capturing():  # a captured fill would not run before the graph is replayed
            with cupy.cuda.Stream(non_blocking=True) as aside:
                found = cupy.zeros((most, 2), np.uint32)
                aside.synchronize()
        else:
            found = cupy.zeros((most, 2), np.uint32)
        found, _ = _barriers.setdefault(key, (found, stream))
    return found


def mail(numbers: int) -> Any:
    """Return float64 memory through which the blocks of a group on this stream exchange their sums.

    Memory that has become too small is kept, because a captured graph may hold its address.
    """
    key, _ = _queue()
    boxes = _mail.setdefault(key, [])
    found = next((box for box in boxes if box.size >= numbers), None)
    if found is None:
        found = cupy.empty(power_of_two(numbers), np.float64)
        boxes.append(found)
    return found


_granted: dict[int, int] = {}
Queue: TypeAlias = tuple[int, int, int]
_barriers: dict[Queue, tuple[Any, Any]] = {}
_mail: dict[Queue, list[Any]] = {}


def _queue() -> tuple[Queue, Any]:
    """Return a key for the current stream, and the stream."""
    stream = cupy.cuda.get_current_stream()
    thread = threading.get_ident() if stream.ptr == PER_THREAD_STREAM else 0
    return (cupy.cuda.runtime.getDevice(), stream.ptr, thread), stream


@functools.cache
def _kernel(device: int, file: str, expression: str) -> Kernel:
    code, name = binary(file, expression)
    module = cupy.cuda.Module()
    module.load(code)
    function = module.get_function(name)
    driver, limit = cupy.cuda.driver, _device(device).shared_bytes
    driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit)
    return Kernel(function, limit)


@functools.cache
def _device(number: int) -> Device:
    attributes = cupy.cuda.Device(number).attributes
    return Device(attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"])


@functools.cache
def _resident(function: int, shared: int) -> int:
    count: int = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(function, THREADS, shared)
    return count
