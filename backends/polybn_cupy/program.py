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
from polybn_cupy import calls, launch, layers
from polybn_cupy.layers import Images, Layer, Values
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
        with self._device, self._stream:  # a layer that does not fit is refused here, not in the first epoch
            self._chains = {1: Chain(rows, self._state, self._rate, 1)}

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
                self._chains[n] = Chain(self._rows, self._state, self._rate, n)
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

    def __init__(self, rows: Sequence[Row], values: Values, rate: Array, n: int) -> None:
        self._n = n
        self._classes = rows[-1].output_shape[0]
        self._gradient = cupy.empty((n, self._classes), np.float32)
        self._found = cupy.empty((-(-n // layers.WARPS), 2), np.float64)
        steps = _fuse(rows)
        trained = [bool(step.row.parameters) for step in steps]
        self._first = trained.index(True) if any(trained) else len(steps)
        self._layers = [
            _build(step, _select(values, step.row.name), n, wanted=place > self._first, last=step is steps[-1])
            for place, step in enumerate(steps)
        ]
        packed = b"".join(update.pack() for layer in self._layers for update in layer.updates)
        self._updates, self._rate = cupy.array(np.frombuffer(packed, np.uint8)), rate

    def step(self, data: Data, *, training: bool) -> None:
        """Launch all kernels of one step: forward, loss, backward and SGD in training, else forward and delivery."""
        x: Array | Images = Images(
            data.images, data.order if training else None, data.trained if training else data.scored
        )
        for layer in self._layers:
            x = layer.forward(x, training=training)
        if not training:
            launch.kernel("network.cu", "deliver")(1, self._batch(data, data.scored, x))
            return
        dy, batch, trained = self._gradient, self._batch(data, data.trained, x), self._layers[self._first :]
        last = self._layers[-1]
        if isinstance(last, layers.Dense) and last.last:
            trained.pop()
            dy = last.conclude(batch)
        else:
            launch.kernel("network.cu", "judge")(len(self._found), batch, shared=16 * layers.WARPS)
        for layer in reversed(trained):
            dy = layer.backward(dy)
        self._descend(data)

    def _descend(self, data: Data) -> None:
        """Launch SGD: a block for each entry of the table, and one for the loss."""
        arguments = calls.pointers(self._updates) + struct.pack("<2q", self._n, len(self._found))
        arguments += calls.pointers(self._found, data.losses, self._rate, data.trained)
        blocks = self._updates.size // layers.DESCENT_BYTES + 1
        launch.kernel("network.cu", "descend")(blocks, arguments, shared=16 * THREADS)

    def _batch(self, data: Data, progress: Array, logits: Array) -> bytes:
        """Pack the struct ``Batch``."""
        return struct.pack("<2q", self._n, self._classes) + calls.pointers(
            data.labels, data.order, progress, logits, self._gradient, data.scores, self._found
        )


class Step(NamedTuple):
    """A row, and what is done to its input before, or by a pool itself: the maximum over squares, then a sigmoid."""

    row: Row
    shape: tuple[int, ...]
    size: int
    sigmoid: bool


def _fuse(rows: Sequence[Row]) -> list[Step]:
    """Return the layers to build: a pool takes up the sigmoid after it, and a layer with weights both of them."""
    steps: list[Step] = []
    if isinstance(rows[0].layer, networks.BatchNorm):  # it reads numbers, not bytes
        steps.append(Step(rows[0]._replace(layer=networks.MaxPool(1), parameters={}), rows[0].input_shape, 1, False))
    for row in rows:
        before = steps[-1] if steps and isinstance(steps[-1].row.layer, networks.MaxPool | networks.Sigmoid) else None
        match row.layer:
            case networks.MaxPool(size):
                steps.append(Step(row, row.input_shape, size, False))
            case networks.Sigmoid() if before and not before.sigmoid:
                steps[-1] = before._replace(sigmoid=True)
            case networks.Convolution() | networks.Dense() if before:
                steps[-1] = before._replace(row=row)
            case _:
                steps.append(Step(row, row.input_shape, 1, isinstance(row.layer, networks.Sigmoid)))
    return steps


def _select(values: Values, layer: str) -> Values:
    return {n.partition(".")[2]: array for n, array in values.items() if n.startswith(layer + ".")}


def _build(step: Step, values: Values, n: int, *, wanted: bool, last: bool) -> Layer:
    """Make a layer; ``wanted`` tells whether the gradient of its input is, and ``last`` whether the loss comes next."""
    shape = _cube(step.shape)
    match step.row.layer:
        case networks.BatchNorm(_, momentum, eps):
            return layers.BatchNorm(values, shape, n, momentum=momentum, eps=eps)
        case layer:
            source = layers.Source(shape, n, size=step.size, sigmoid=step.sigmoid, wanted=wanted)
            if isinstance(layer, networks.Convolution):
                return layers.Convolution(values, source, n, kernel=layer.kernel)
            if isinstance(layer, networks.Dense):
                return layers.Dense(values, source, n, last=last)
            return layers.Pool(source, n)


def _cube(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width; features are channels of one pixel."""
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width
