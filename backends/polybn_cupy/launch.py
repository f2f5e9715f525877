"""From a kernel's name to a launch: sources, compilation, shared memory, and the barriers of groups."""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple

import cupy
import numpy as np

from polybn_cupy.plan import THREADS, Device, Tiling
from polybn_cupy.sources import OPTIONS, source

PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, another stream in each thread


class Kernel(NamedTuple):
    """A compiled kernel on one device."""

    function: Any
    shared_limit: int

    def __call__(self, blocks: int, arguments: bytes, *, shared: int = 0, together: bool = False) -> None:
        """Launch on the current stream; ``together``: all blocks at once, for they wait for each other."""
        value = np.frombuffer(arguments, np.dtype((np.void, len(arguments))))  # a struct, passed by value
        self.function((blocks,), (THREADS,), (value,), shared_mem=shared, enable_cooperative_groups=together)

    def resident(self, shared: int) -> int:
        """Return how many blocks a multiprocessor holds at once."""
        return _resident(self.function.ptr, shared)


def kernel(file: str, expression: str) -> Kernel:
    """Return a kernel for the current device, compiled when it is first asked for."""
    return _kernel(cupy.cuda.runtime.getDevice(), file, expression)


def run(compiled: Kernel, tiling: Tiling, arguments: bytes) -> None:
    """Launch a kernel over tiles."""
    compiled(tiling.blocks, arguments, shared=tiling.shared_bytes, together=tiling.members > 1)


def device() -> Device:
    """Describe the current device to the planner."""
    return _device(cupy.cuda.runtime.getDevice())


def barriers() -> Any:
    """Return the counters by which groups of blocks meet: zeros, which every launch leaves as they were.

    Launches on one stream follow each other, so there is one set for each stream.
    """
    stream = cupy.cuda.get_current_stream().ptr
    thread = threading.get_ident() if stream == PER_THREAD_STREAM else 0
    key = (cupy.cuda.runtime.getDevice(), stream, thread)
    found = _barriers.get(key)
    if found is None:
        most = device().multiprocessors * (2048 // THREADS)
        found = _barriers.setdefault(key, cupy.zeros((most, 2), np.uint32))
    return found


_barriers: dict[tuple[int, int, int], Any] = {}


@functools.cache
def _kernel(device: int, file: str, expression: str) -> Kernel:
    module = cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=(expression,))
    raw = module.get_function(expression)
    limit = _device(device).shared_bytes - raw.shared_size_bytes
    raw.max_dynamic_shared_size_bytes = limit
    return Kernel(raw.kernel, limit)


@functools.cache
def _device(number: int) -> Device:
    attributes = cupy.cuda.Device(number).attributes
    return Device(attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"])


@functools.cache
def _resident(function: int, shared: int) -> int:
    count: int = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(function, THREADS, shared)
    return count
