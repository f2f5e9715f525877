"""Networks as NumPy programs: this file holds data and state; compiled kernels or plain NumPy compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from polybn.lenet.networks import Row, State
from polybn.lenet.program import Steps
from polybn_numpy import host
from polybn_numpy.arithmetic import Arithmetic, Data
from polybn_numpy.chain import PlainNetwork
from polybn_numpy.compiled import CompiledNetwork


def compile(rows: Sequence[Row], state: State, *, batch_size: int) -> NumpyProgram:
    """Turn the layers of a network and its state, which is copied, into a program."""
    own = {name: np.array(value, np.float32, order="C") for name, value in state.items()}
    plain = not host.serves()
    arithmetic = PlainNetwork(rows, own) if plain else CompiledNetwork(rows, own, batch_size)
    return NumpyProgram(own, arithmetic, batch_size, classes=rows[-1].output_shape[0])


class NumpyProgram:
    """A compiled network; fits :class:`polybn.lenet.program.Program`."""

    def __init__(self, state: State, arithmetic: Arithmetic, batch_size: int, *, classes: int) -> None:
        self._state, self._arithmetic, self._batch_size, self._classes = state, arithmetic, batch_size, classes

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Data:
        """Keep images ``(N, C, H, W)`` and labels ``(N,)`` on the host."""
        return Data(np.ascontiguousarray(images, np.uint8), np.ascontiguousarray(labels, np.uint8))

    def train_epoch(self, data: Data, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD in the given order and report after every step."""
        # The kernels do not check these numbers; wrong ones would access other memory.
        if len(order) and (order.min() < 0 or data.labels[order].max() >= self._classes):
            raise IndexError("polybn.train: the order must name images, and labels classes of the network")
        for chosen in self._batches(order):
            loss, correct = self._arithmetic.step(data, chosen, np.float32(learning_rate))
            yield Steps(np.array([loss]), np.array([correct]), np.array([len(chosen)]))

    def logits(self, data: Data) -> NDArray[np.float32]:
        """Return class scores ``(N, classes)`` in inference mode."""
        batches = self._batches(np.arange(len(data.images)))
        return np.concatenate([self._arithmetic.score(data, chosen) for chosen in batches])

    def state(self) -> State:
        """Copy every parameter and running statistic."""
        return {name: value.copy() for name, value in self._state.items()}

    def _batches(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        order = np.ascontiguousarray(order, np.int64)
        return (order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size))
