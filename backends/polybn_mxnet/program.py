"""Networks as MXNet programs: one hybridized Gluon block, differentiated under ``autograd.record``."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.lenet.networks import Row, State
from polybn.lenet.program import Steps
from polybn.spec import Array
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.layers import Classifier, Objective, descend

CHUNK = 8
"""The number of training steps between two reports: MXNet computes in the background, and a report must wait."""


class Data(NamedTuple):
    """Images ``(N, C, H, W)`` and labels ``(N,)``, as bytes in a context of MXNet."""

    images: Array
    labels: Array


def compile(rows: Sequence[Row], state: State, *, batch_size: int) -> MXNetProgram:
    """Turn the layers of a network and its state, which is copied, into a program in MXNet's current context."""
    return MXNetProgram(rows, state, batch_size)


class MXNetProgram:
    """A compiled network; fits :class:`polybn.lenet.program.Program`."""

    def __init__(self, rows: Sequence[Row], state: State, batch_size: int) -> None:
        self._batch_size, self._classes = batch_size, rows[-1].output_shape[0]
        self._context = mx.context.current_context()
        self._classifier = Classifier(rows, self._context)
        self._classifier.load(state)
        self._objective = Objective(self._classifier)
        self._objective.hybridize(static_alloc=True, static_shape=True)
        trained = [self._classifier.arrays[name] for row in rows for name in row.parameters]
        self._parameters = [parameter.data() for parameter in trained]
        self._gradients = [parameter.grad() for parameter in trained]
        # A Gluon block refers to itself, and the garbage collector does not know how much memory of MXNet it holds, so
        # its references are removed explicitly.
        weakref.finalize(self, self._objective.apply, lambda block: vars(block).clear()).atexit = False

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Data:
        """Copy images ``(N, C, H, W)`` and labels ``(N,)`` to the context."""
        return Data(*(mx.nd.array(host, self._context, dtype=np.uint8) for host in (images, labels)))

    def train_epoch(self, data: Data, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD in the given order and report after every few steps."""
        places = mx.nd.array(order, self._context, dtype=np.int32)
        starts = range(0, len(order), self._batch_size)
        for first in range(0, len(starts), CHUNK):
            running = [
                self._step(data, places[start : start + self._batch_size], learning_rate)
                for start in starts[first : first + CHUNK]
            ]
            losses, right = ([array.asnumpy() for array in arrays] for arrays in zip(*running, strict=True))
            yield Steps(
                np.array([values.mean(dtype=np.float64) for values in losses]),
                np.array([np.count_nonzero(values) for values in right]),
                np.array([len(values) for values in losses]),
            )

    def logits(self, data: Data) -> NDArray[np.float32]:
        """Return class scores ``(N, classes)`` in inference mode."""
        starts = range(0, len(data.images), self._batch_size)
        if not self._classifier.is_finite():  # the blocks would raise, but a diverged network has scores, too: NaN
            return np.full((len(data.images), self._classes), np.nan, np.float32)
        with mx.autograd.pause():
            scores = [self._classifier(data.images[start : start + self._batch_size]) for start in starts]
        return np.concatenate([array.asnumpy() for array in scores])

    def state(self) -> State:
        """Copy every parameter and running statistic to the host."""
        return self._classifier.state()

    def _step(self, data: Data, batch: Array, learning_rate: float) -> tuple[Array, Array]:
        """Start one step, which MXNet computes in the background."""
        images, labels = (mx.nd.take(array, batch) for array in data)
        with mx.autograd.record():
            losses, right = self._objective(images, labels)
        losses.backward()
        descend(self._parameters, self._gradients, rate=learning_rate, images=len(batch))
        return losses, right
