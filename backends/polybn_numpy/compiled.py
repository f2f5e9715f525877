"""A network in the compiled kernels, which own the buffers and compute; this file describes the layers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polybn.lenet import networks
from polybn.lenet.networks import Layer, Row, State
from polybn_host.network import Batch, Network, Stage

if TYPE_CHECKING:
    from polybn_numpy.arithmetic import Data

# A stage of the kernels has at most one layer of each kind, in this order. A dense layer is a convolution with a kernel
# as large as its input.
_KINDS: dict[type[Layer], str] = {
    networks.Convolution: "convolution",
    networks.Dense: "convolution",
    networks.BatchNorm: "norm",
    networks.MaxPool: "pool",
    networks.Sigmoid: "sigmoid",
}
_ORDER = tuple(dict.fromkeys(_KINDS.values()))


class CompiledNetwork:
    """A network in the compiled kernels; it updates the arrays of ``state`` in place."""

    def __init__(self, rows: Sequence[Row], state: State, batch_size: int) -> None:
        self._state = state  # keeps the arrays alive, whose addresses the kernels hold
        self._classes = rows[-1].output_shape[0]
        self._network = Network([_describe(stage, state) for stage in _stages(rows)], batch_size)

    def step(self, data: Data, chosen: NDArray[np.int64], rate: np.float32) -> tuple[float, int]:
        """Take a step of SGD on a batch; return its mean loss and the number of right labels."""
        return self._network.step(_batch(data, chosen), float(rate))

    def score(self, data: Data, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return class scores ``(n, classes)`` in inference mode."""
        scores = np.empty((len(chosen), self._classes), np.float32)
        self._network.score(_batch(data, chosen), scores.ctypes.data)
        return scores


def _batch(data: Data, chosen: NDArray[np.int64]) -> Batch:
    return Batch(data.images.ctypes.data, data.labels.ctypes.data, chosen.ctypes.data, len(chosen))


def _stages(rows: Sequence[Row]) -> Iterator[dict[str, Row]]:
    """Divide a chain of layers into stages, each as long as the order of kinds allows."""
    stage: dict[str, Row] = {}
    for row in rows:
        kind = _KINDS[type(row.layer)]
        if any(_ORDER.index(before) >= _ORDER.index(kind) for before in stage):
            yield stage
            stage = {}
        stage[kind] = row
    yield stage


def _describe(stage: dict[str, Row], state: State) -> Stage:
    first, *_, last = *stage.values(), list(stage.values())[-1]
    middle = stage["convolution"].output_shape if "convolution" in stage else first.input_shape
    shapes = {"input": first.input_shape, "middle": middle, "output": last.output_shape}
    fields: dict[str, Any] = {name: (*shape, 1, 1)[:3] for name, shape in shapes.items()}  # a vector is a small image
    fields |= {kind: int(kind in stage) for kind in _ORDER} | {"pool": 1}
    for row in stage.values():
        match row.layer:
            case networks.MaxPool(size):
                fields["pool"] = size
            case networks.BatchNorm(_, momentum, eps):
                fields |= {"momentum": momentum, "eps": eps}
    names = [name for row in stage.values() for name in (*row.parameters, *row.statistics)]
    return Stage(fields, {name.rpartition(".")[2]: state[name].ctypes.data for name in names})
