"""The emulated devices, their streams and graphs. Work is done at once, or recorded if the stream is captured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

ATTRIBUTES = {
    "MultiProcessorCount": 4,
    "MaxSharedMemoryPerBlockOptin": 99 << 10,
    "MaxSharedMemoryPerMultiprocessor": 160 << 10,
    "CooperativeLaunch": 1,
}
GRANTED: list[int] = []
"""The number of multiprocessors that this process may use, if it is less than all: as under MPS."""
"""The attributes of a small device, so that small tensors already need groups of blocks and several rounds."""
DEVICES = 2
SHARED_LIMITS: dict[int, int] = {}
"""For each kernel, the bytes of dynamic shared memory that a block may ask for."""
LAUNCHES: list[tuple[str, int, bool]] = []
"""For every launch: the kernel, the number of blocks, and whether they run together."""

_local = threading.local()


class Device:
    """One of the emulated devices; a context in which it is the current one."""

    def __init__(self, device: int | None = None) -> None:
        self.id = getattr(_local, "device", 0) if device is None else device

    compute_capability = "0"

    @property
    def attributes(self) -> dict[str, int]:
        """Return the attributes that a plan reads."""
        return dict(ATTRIBUTES)

    def __enter__(self) -> Device:
        _local.__dict__.setdefault("stack", []).append(getattr(_local, "device", 0))
        _local.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _local.device = _local.stack.pop()

    def synchronize(self) -> None:
        """Everything has been done."""


class Graph:
    """The work that a stream recorded during capture, ready to be repeated."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        """Repeat the recorded work."""
        for go in self._work:
            go()


class Stream:
    """A queue that is always empty, unless it is captured."""

    _count = 2

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        Stream._count += not null
        self.ptr = 0 if null else Stream._count
        self._captured: list[Callable[[], None]] | None = None

    def do(self, go: Callable[[], None]) -> None:
        """Do some work, or record it during capture."""
        if self._captured is None:
            go()
        else:
            self._captured.append(go)

    def refuse_capture(self, what: str) -> None:
        """Fail like a GPU: the host cannot wait for a stream during capture."""
        if self.is_capturing():
            raise RuntimeError(f"emulated: {what} on a stream that is being captured")

    def begin_capture(self) -> None:
        """Record work from now on."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._captured = []

    def end_capture(self) -> Graph:
        """Stop recording; return the graph."""
        assert self._captured is not None
        work, self._captured = self._captured, None
        return Graph(work)

    def is_capturing(self) -> bool:
        """Return whether work is recorded and not done."""
        return self._captured is not None

    def synchronize(self) -> None:
        """Everything has been done."""
        self.refuse_capture("synchronize")

    def __enter__(self) -> Stream:
        _local.__dict__.setdefault("streams", []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _local.streams.pop()


class Event:
    """A point in time on the host's clock."""

    def record(self, stream: Stream | None = None) -> None:
        """Note the time."""
        self.time = time.perf_counter()


def get_elapsed_time(start: Event, stop: Event) -> float:
    """Return milliseconds between two events."""
    return 1e3 * (stop.time - start.time)


_NULL = Stream(null=True)


def get_current_stream() -> Stream:
    """Return the stream of the innermost context."""
    streams = _local.__dict__.get("streams")
    return streams[-1] if streams else _NULL


def _occupancy(_: int, threads: int, shared: int) -> int:
    fits = ATTRIBUTES["MaxSharedMemoryPerMultiprocessor"] // (shared + 1024)
    return min(fits, 2048 // threads)


def _set_attribute(function: int, attribute: int, size: int) -> None:
    if attribute != SHARED or size > ATTRIBUTES["MaxSharedMemoryPerBlockOptin"]:
        raise ValueError(f"attribute {attribute} of a kernel cannot be {size}")
    SHARED_LIMITS[function] = size


runtime: Any = SimpleNamespace(
    getDevice=lambda: Device().id,
    getDeviceCount=lambda: DEVICES,
    getDeviceProperties=lambda _: {"name": b"emulated by g++", "major": 0, "minor": 0},
    runtimeGetVersion=lambda: 0,
    driverGetVersion=lambda: 0,
)
SHARED = 8


class CUDADriverError(RuntimeError):
    """An error of the driver, with its number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"emulated: CUDA error {status}")
        self.status = status


driver: Any = SimpleNamespace(
    CUDADriverError=CUDADriverError,
    occupancyMaxActiveBlocksPerMultiprocessor=_occupancy,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=SHARED,
    funcSetAttribute=_set_attribute,
    CU_FUNC_ATTRIBUTE_NUM_REGS=4,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES=3,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES=1,
    funcGetAttribute=lambda attribute, function: 0,
)
nvrtc: Any = SimpleNamespace(getVersion=lambda: (0, 0))
compiler: Any
Module: Any
