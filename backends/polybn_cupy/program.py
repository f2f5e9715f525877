"""Networks as CuPy programs: one training step is a CUDA graph, which is replayed for every batch of an epoch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cupy
import numpy as np
from numpy.typing import NDArray

from polybn.lenet import networks
from polybn.lenet.program import Steps
from polybn.spec import DomainError
from polybn_cupy import calls, launch, layers
from polybn_cupy.layers import Layer, Variables
from polybn_cupy.plan import THREADS

if TYPE_CHECKING:
    from polybn.lenet.networks import Row, State

Array = Any

REPORT = 64
"""The number of steps between two reports; for each report the host waits for the device."""


class Data(NamedTuple):
    """Images and labels on the device, and the buffers of a program for them; addresses never change."""

    images: Array
    labels: Array
    order: Array
    trained: Array
    """The numbers of images and steps done in this epoch."""
    scored: Array
    """The numbers of images and steps done in an inference pass, which may come between two training steps."""
    losses: Array
    """The mean loss and the number of right labels of each step, shape (steps, 2)."""
    scores: Array
    graphs: dict[tuple[CupyProgram, int, bool], Any]
    """The captured graphs, by program, batch size, and whether in training."""


def compile(rows: Sequence[Row], state: State, *, batch_size: int) -> CupyProgram:
    """Turn the layers of a network and its state, which is copied to the device, into a program."""
    return CupyProgram(rows, state, batch_size)


class CupyProgram:
    """A compiled network, on the device that was current when it was made."""

    def __init__(self, rows: Sequence[Row], state: State, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size
        self._device = cupy.cuda.Device()
        self._stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with self._stream:
            self._state = {name: cupy.array(np.asarray(value, np.float32)) for name, value in state.items()}
            self._rate = cupy.zeros(1, np.float32)
        self._classes = rows[-1].output_shape[0]
        self._chains: dict[int, Chain] = {}

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Data:
        """Copy images ``(N, C, H, W)`` and labels ``(N,)`` to the device, as bytes."""
        count = len(labels)
        with self._device, self._stream:
            return Data(
                cupy.array(np.ascontiguousarray(images)), cupy.array(np.ascontiguousarray(labels)),
                cupy.zeros(count, np.int64), cupy.zeros(2, np.int64), cupy.zeros(2, np.int64),
                cupy.zeros((count, 2), np.float64), cupy.zeros((count, self._classes), np.float32), {},
            )  # fmt: skip

    def train_epoch(self, data: Data, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD in the given order; the host waits for every 64th step, to report."""
        sizes = self._sizes(len(order))
        with self._device, self._stream:
            data.order[: len(order)].set(np.ascontiguousarray(order, np.int64))
            self._rate.fill(np.float32(learning_rate))
            data.trained.fill(0)
        for first in range(0, len(sizes), REPORT):
            part = sizes[first : first + REPORT]
            with self._device, self._stream:
                for n in part:
                    self._graph(data, n, training=True).launch(self._stream)
                found = data.losses[first : first + len(part)].get()
            yield Steps(found[:, 0].copy(), found[:, 1].astype(np.int64), np.array(part, np.int64))

    def logits(self, data: Data) -> NDArray[np.float32]:
        """Return class scores ``(N, classes)`` in inference mode."""
        with self._device, self._stream:
            data.scored.fill(0)
            for n in self._sizes(data.labels.size):
                self._graph(data, n, training=False).launch(self._stream)
            return np.asarray(data.scores.get())

    def state(self) -> State:
        """Copy every parameter and running statistic to the host."""
        with self._device, self._stream:
            return {name: np.asarray(value.get()) for name, value in self._state.items()}

    def _sizes(self, count: int) -> list[int]:
        return [min(self._batch_size, count - start) for start in range(0, count, self._batch_size)]

    def _graph(self, data: Data, n: int, *, training: bool) -> Any:
        """Return the graph of one step on ``n`` images; it is captured on first use."""
        key = (self, n, training)
        if key not in data.graphs:
            if n not in self._chains:
                self._chains[n] = Chain(self._rows, Variables(self._state, self._rate), n)
            chain = self._chains[n]
            # A first run compiles and loads all kernels, which cannot be done during a capture.
            self._rehearse(chain, data, training=training)
            self._stream.begin_capture()
            chain.step(data, training=training)
            data.graphs[key] = self._stream.end_capture()
        return data.graphs[key]

    def _rehearse(self, chain: Chain, data: Data, *, training: bool) -> None:
        """Run a step, so that every kernel is loaded, and restore all arrays that it changed."""
        touched = [*self._state.values(), data.trained, data.scored, data.losses, data.scores]
        before = [array.copy() for array in touched]
        chain.step(data, training=training)
        for array, old in zip(touched, before, strict=True):
            cupy.copyto(array, old)


class Chain:
    """The layers of a network with buffers for batches of ``n`` images."""

    def __init__(self, rows: Sequence[Row], variables: Variables, n: int) -> None:
        self._n = n
        self._x = cupy.empty((n, *rows[0].input_shape), np.float32)
        self._classes = rows[-1].output_shape[0]
        self._gradient = cupy.empty((n, self._classes), np.float32)
        steps = _fuse(rows)
        trained = [bool(row.parameters) for row, _ in steps]
        self._first = trained.index(True) if any(trained) else len(steps)
        self._layers = [
            _build(row, _select(variables, row.name), n, first=place == self._first, sigmoid=sigmoid)
            for place, (row, sigmoid) in enumerate(steps)
        ]

    def step(self, data: Data, *, training: bool) -> None:
        """Launch all kernels of one step: forward, loss and backward in training, else forward and copying scores."""
        self._batch("gather", data, None, blocks=-(-self._x.size // THREADS), ordered=training)
        x = self._x
        for layer in self._layers:
            x = layer.forward(x, training=training)
        if not training:
            self._batch("deliver", data, x, blocks=1, ordered=False)
            return
        self._batch("judge", data, x, blocks=1, ordered=True)
        dy = self._gradient
        for layer in reversed(self._layers[self._first :]):
            dy = layer.backward(dy)

    def _batch(self, name: str, data: Data, logits: Array | None, *, blocks: int, ordered: bool) -> None:
        pixels = self._x.size // self._n
        arguments = struct.pack("<3q", self._n, pixels, self._classes) + calls.pointers(
            data.images, data.labels, data.order if ordered else None,
            data.trained if ordered else data.scored, self._x, logits, self._gradient,
            data.scores, data.losses,
        )  # fmt: skip
        launch.kernel("network.cu", name)(blocks, arguments, shared=16 * THREADS)


def _fuse(rows: Sequence[Row]) -> list[tuple[Row, bool]]:
    """Return the layers to build, each with whether a sigmoid is part of it: one that follows a pool is."""
    steps: list[tuple[Row, bool]] = []
    for row in rows:
        sigmoid = isinstance(row.layer, networks.Sigmoid)
        if sigmoid and steps and isinstance(steps[-1][0].layer, networks.MaxPool):
            steps[-1] = (steps[-1][0], True)
        else:
            steps.append((row, sigmoid))
    return steps


def _select(variables: Variables, layer: str) -> Variables:
    own = {n.partition(".")[2]: array for n, array in variables.values.items() if n.startswith(layer + ".")}
    return variables._replace(values=own)


def _build(row: Row, variables: Variables, n: int, *, first: bool, sigmoid: bool) -> Layer:
    shape = _cube(row.input_shape)
    match row.layer:
        case networks.Convolution(_, kernel):
            return layers.Convolution(variables, shape, (kernel, kernel), n, first=first)
        case networks.Dense():
            return layers.Convolution(variables, shape, (shape[1], shape[2]), n, first=first)
        case networks.BatchNorm(_, momentum, eps):
            return layers.BatchNorm(variables, shape, n, momentum=momentum, eps=eps)
        case networks.Sigmoid():
            return layers.Pool(shape, n, size=1, sigmoid=True)
        case networks.MaxPool(size) if size > 15:
            raise DomainError(f"polybn.train: a MaxPool must have a size of 15 at most on the cupy backend; got {size}")
        case networks.MaxPool(size):
            return layers.Pool(shape, n, size=size, sigmoid=sigmoid)


def _cube(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width; features are channels of one pixel."""
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width
