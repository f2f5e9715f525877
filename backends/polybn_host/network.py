"""Training networks in the host kernels. As everywhere in this package, arrays are addresses; nothing is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from polybn_host import _ffi, _lib


class Batch(NamedTuple):
    """The images ``images[order[i]]`` for i below ``size``, with their labels; addresses of bytes and of int64."""

    images: int
    labels: int
    order: int
    size: int


class Stage(NamedTuple):
    """The fields of a ``polybn_stage`` of ``network/interface.h``."""

    fields: dict[str, Any]
    """The numbers, and the shapes as triples."""
    addresses: dict[str, int]
    """The addresses of float32 parameters and running statistics, which the network reads and writes."""


class Network:
    """Stages, with buffers for batches of at most ``batch_size`` images."""

    def __init__(self, stages: Sequence[Stage], batch_size: int) -> None:
        described = _ffi.new("polybn_stage[]", [stage.fields for stage in stages])
        for stage, into in zip(stages, described, strict=True):
            for name, address in stage.addresses.items():
                setattr(into, name, _ffi.cast("float *", address))
        network = _lib.polybn_network_new(described, len(stages), batch_size)
        if not network:
            raise MemoryError
        self._network = _ffi.gc(network, _lib.polybn_network_free)

    @property
    def memory(self) -> int:
        """The size of all buffers in bytes; a step allocates no other memory."""
        size: int = _lib.polybn_network_memory(self._network)
        return size

    def step(self, batch: Batch, rate: float) -> tuple[float, int]:
        """Take a step of gradient descent; return the mean loss in nats, and the number of right labels."""
        right = _ffi.new("int64_t *")
        return _lib.polybn_network_step(self._network, _pointers(batch), rate, right), right[0]

    def score(self, batch: Batch, scores: int) -> None:
        """Write scores ``(size, classes)`` in inference mode to the address ``scores``."""
        _lib.polybn_network_score(self._network, _pointers(batch), _ffi.cast("float *", scores))


def _pointers(batch: Batch) -> Any:
    kinds = ("uint8_t *", "uint8_t *", "int64_t *")
    *arrays, size = batch
    return _ffi.new("polybn_batch *", (*(_ffi.cast(kind, a) for kind, a in zip(kinds, arrays, strict=True)), size))
