"""A network in the compiled kernels of :mod:`polybn_host`: they hold the buffers, this file describes the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polybn.lenet import networks
from polybn.lenet.networks import Layer, Row, State
from polybn_host import ffi, lib

if TYPE_CHECKING:
    from polybn_numpy.program import Data

# A stage of the compiled network has at most one layer of each kind, in this order.
_KINDS: dict[type[Layer], str] = {
    networks.Convolution: "convolution",
    networks.Dense: "convolution",  # whose kernel is as large as its input
    networks.BatchNorm: "norm",
    networks.MaxPool: "pool",
    networks.Sigmoid: "sigmoid",
}


class CompiledNetwork:
    """Steps and scores of a network whose parameters are the arrays of ``state``, which it writes."""

    def __init__(self, rows: Sequence[Row], state: State, batch_size: int) -> None:
        stages = [_describe(stage, state) for stage in _stages(rows)]
        self._state = state  # the kernels have its addresses
        network = lib.polybn_network_new(ffi.new("polybn_stage[]", stages), len(stages), batch_size)
        if network == ffi.NULL:
            raise MemoryError(f"polybn.train: batch_size must fit into memory; got {batch_size} (choose a smaller one)")
        self._network = ffi.gc(network, lib.polybn_network_free)
        self._classes = rows[-1].output_shape[0]

    def step(self, data: Data, chosen: NDArray[np.int64], rate: np.float32) -> tuple[float, int]:
        """Move the parameters along the gradient of a batch; return its mean loss and how many labels were right."""
        right = ffi.new("int64_t *")
        loss = lib.polybn_network_step(self._network, self._batch(data, chosen), float(rate), right)
        return loss, right[0]

    def score(self, data: Data, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return class scores ``(n, classes)`` in inference mode."""
        scores = np.empty((len(chosen), self._classes), np.float32)
        lib.polybn_network_score(self._network, self._batch(data, chosen), ffi.from_buffer("float[]", scores))
        return scores

    def _batch(self, data: Data, chosen: NDArray[np.int64]) -> Any:
        # The kernels read what these numbers point at.
        if not ((chosen >= 0) & (chosen < len(data.images))).all() or not (data.labels[chosen] < self._classes).all():
            raise IndexError("polybn.train: the order must name images, and labels classes of the network")
        images, labels = (ffi.from_buffer("uint8_t[]", array) for array in data)
        return ffi.new("polybn_batch *", (images, labels, ffi.from_buffer("int64_t[]", chosen), len(chosen)))


def _stages(rows: Sequence[Row]) -> Iterator[dict[str, Row]]:
    """Cut a chain of layers into stages, each as long as the order of its kinds allows."""
    order = list(dict.fromkeys(_KINDS.values()))
    stage: dict[str, Row] = {}
    for row in rows:
        kind = _KINDS[type(row.layer)]
        if stage and order.index(kind) <= order.index(list(stage)[-1]):
            yield stage
            stage = {}
        stage[kind] = row
    yield stage


def _describe(stage: dict[str, Row], state: State) -> dict[str, Any]:
    """Return the fields of a ``polybn_stage``."""
    shapes = [_shape(row.input_shape) for row in stage.values()] + [_shape(list(stage.values())[-1].output_shape)]
    fields: dict[str, Any] = {
        "input": shapes[0],
        "middle": shapes["convolution" in stage],
        "output": shapes[-1],
        "pool": 1,
    }
    for kind, row in stage.items():
        fields[kind] = 1
        match row.layer:
            case networks.MaxPool(size):
                fields["pool"] = size
            case networks.BatchNorm(_, momentum, eps):
                fields |= {"momentum": momentum, "eps": eps}
        for name in (*row.parameters, *row.statistics):
            fields[name.rpartition(".")[2]] = ffi.cast("float *", state[name].ctypes.data)
    return fields


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Write a vector as an image of one value a channel."""
    return (*shape, 1, 1)[:3]
