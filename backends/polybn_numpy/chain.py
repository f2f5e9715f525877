"""A network in plain NumPy, for use without compiled kernels: a chain of layers whose buffers are made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.lenet import networks
from polybn.lenet.networks import Row, State
from polybn_numpy import layers
from polybn_numpy.layers import Floats, Variables

if TYPE_CHECKING:
    from polybn_numpy.arithmetic import Data

LayerProgram: TypeAlias = layers.Convolution | layers.Dense | layers.BatchNorm | layers.Sigmoid | layers.MaxPool


class PlainNetwork:
    """A network in plain NumPy; it updates the arrays of ``state`` in place."""

    def __init__(self, rows: Sequence[Row], state: State) -> None:
        self._rows, self._state = rows, state
        self._gradients = {name: np.zeros_like(state[name]) for row in rows for name in row.parameters}
        self._chains: dict[int, Chain] = {}

    def step(self, data: Data, chosen: NDArray[np.int64], rate: np.float32) -> tuple[float, int]:
        """Take a step of SGD on a batch; return its mean loss and the number of right labels."""
        chain = self._chain(len(chosen))
        with np.errstate(all="ignore"):
            logits = chain.forward(data.images[chosen], training=True)
            loss, correct, gradient = _cross_entropy(logits, data.labels[chosen])
            chain.backward(gradient)
            for name, change in self._gradients.items():
                change *= rate
                self._state[name] -= change
        return loss, correct

    def score(self, data: Data, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return class scores ``(n, classes)`` in inference mode."""
        with np.errstate(all="ignore"):
            return self._chain(len(chosen)).forward(data.images[chosen], training=False).T.copy()

    def _chain(self, n: int) -> Chain:
        # One set of buffers for each batch size: the full one, and those of the last batches in training and testing.
        if n not in self._chains:
            self._chains[n] = Chain(self._rows, Variables(self._state, self._gradients), n)
        return self._chains[n]


class Chain:
    """The layers of a network with buffers for batches of ``n`` images."""

    def __init__(self, rows: Sequence[Row], variables: Variables, n: int) -> None:
        channels, height, width = rows[0].input_shape
        self._x = np.empty((channels, width, n, height), np.float32)
        trained = [bool(row.parameters) for row in rows]
        self._first = trained.index(True) if any(trained) else len(rows)
        self._layers = [
            _build(row, _select(variables, row.name), n, first=place == self._first) for place, row in enumerate(rows)
        ]

    def forward(self, images: NDArray[np.uint8], *, training: bool) -> Floats:
        """Map images ``(n, C, H, W)`` to logits ``(classes, n)``."""
        x = self._x
        np.copyto(x, images.transpose(1, 3, 0, 2))
        x /= np.float32(255)
        for layer in self._layers:
            x = layer.forward(x, training)
        return x

    def backward(self, gradient: Floats) -> None:
        """Compute the gradients of all parameters from that of the logits ``(classes, n)``."""
        dy: Floats | None = gradient
        for layer in reversed(self._layers[self._first :]):
            assert dy is not None  # only the first layer with parameters returns None
            dy = layer.backward(dy)


def _select(variables: Variables, layer: str) -> Variables:
    values, gradients = (
        {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(layer + ".")}
        for arrays in variables
    )
    return Variables(values, gradients)


def _build(row: Row, variables: Variables, n: int, *, first: bool) -> LayerProgram:
    match row.layer:
        case networks.Convolution():
            return layers.Convolution(variables, row.input_shape, n, first=first)
        case networks.Dense():
            return layers.Dense(variables, row.input_shape, n)
        case networks.BatchNorm(_, momentum, eps):
            return layers.BatchNorm(variables, row.input_shape, n, momentum=momentum, eps=eps)
        case networks.Sigmoid():
            return layers.Sigmoid(row.input_shape, n)
        case networks.MaxPool(size):
            return layers.MaxPool(row.input_shape, n, size)


def _cross_entropy(logits: Floats, labels: NDArray[np.uint8]) -> tuple[float, int, Floats]:
    """Return the mean loss in nats, the number of right labels, and the gradient of the loss for the logits."""
    n, columns = len(labels), np.arange(len(labels))
    correct = int(np.count_nonzero(np.argmax(logits, axis=0) == labels))
    logits = logits - logits.max(axis=0)
    chosen = logits[labels, columns].astype(np.float64)
    np.exp(logits, out=logits)
    total = logits.sum(axis=0)
    loss = float(np.mean(np.log(total.astype(np.float64)) - chosen))
    logits /= total
    logits[labels, columns] -= 1
    logits /= np.float32(n)
    return loss, correct, logits
