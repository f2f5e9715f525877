"""The layers of a network on the device, forward and backward; each keeps its own buffers.

A layer's ``forward`` and ``backward`` only launch kernels, on addresses that never change, so a CUDA graph can replay
them. Activations have shape ``(n, channels, height, width)``; those of dense layers have height and width 1. A layer
with parameters lists its ``updates``, which one launch makes at the end of a step.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple, TypeAlias

import cupy
import numpy as np

from polybn.spec import Arguments, DomainError, Gradients
from polybn_cupy import calls, launch
from polybn_cupy.batch_norm import Outputs, normalize
from polybn_cupy.derivatives import Residuals, differentiate
from polybn_cupy.plan import THREADS

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = dict[str, Array]
"""One layer's arrays by short name, such as ``weight``, ``gamma`` or ``running_mean``."""

SIDE, DEPTH = 16, 64  # of dense.cu
TOGETHER, UNITS, PAIRS = 4, 2, 2  # of convolution.cu
STAGE_BYTES = 40 << 10
"""The shared memory that planes of an image and weights should fit into, so that several blocks are resident."""
SLICES = 128
"""The most slices of a batch for the gradients of weights: enough blocks for a large device."""


class Update(NamedTuple):
    """An array of parameters and its gradient in slices; a row of it ends with that of ``bias`` if there is one."""

    weight: Array
    bias: Array | None
    gradient: Array
    slices: int

    @property
    def blocks(self) -> int:
        """The number of blocks that work on it."""
        size: int = self.weight.size + (0 if self.bias is None else self.bias.size)
        return -(-size // THREADS)

    def pack(self, first: int) -> bytes:
        """Pack the struct ``Descent``."""
        rows = self.weight.shape[0]
        shape = struct.pack("<4q", first, rows, self.weight.size // rows, self.slices)
        return shape + calls.pointers(self.weight, self.bias, self.gradient)


class Images(NamedTuple):
    """The images of a step, among those on the device."""

    images: Array
    order: Array | None
    progress: Array


class Source:
    """What a layer with weights reads: an array or images, pooled, then through a sigmoid."""

    def __init__(self, shape: Shape, n: int, *, size: int, sigmoid: bool, wanted: bool) -> None:
        channels, height, width = shape
        self.shape = (channels, height // size, width // size)
        self.values = math.prod(self.shape)
        self.dx = cupy.empty((n, *shape), np.float32) if wanted else None
        self._numbers = struct.pack("<5q", *self.shape, size, sigmoid)

    def pack(self, x: Array | Images) -> bytes:
        """Pack the struct ``Map``."""
        if isinstance(x, Images):
            return self._numbers + calls.pointers(None, self.dx, *x)
        return self._numbers + calls.pointers(x, self.dx, None, None, None)


class Dense:
    """A dense layer, as products of matrices."""

    def __init__(self, values: Values, source: Source, n: int) -> None:
        features, inputs = values["weight"].shape[0], source.values
        self._values, self._source = values, source
        slices = min(SLICES, -(-n // DEPTH))
        self._y = cupy.empty((n, features, 1, 1), np.float32)
        self._partials = cupy.empty((slices, features, inputs + 1), np.float32)
        self.updates = [Update(values["weight"], values["bias"], self._partials, slices)]
        spread = 0 if source.dx is None else _tiles(inputs, n)
        self._numbers = struct.pack("<4q", n, features, slices, spread)
        self._blocks = _tiles(features, n), spread + slices * _tiles(features, inputs + 1)

    def forward(self, x: Array | Images, *, training: bool) -> Array:
        """Return the layer's output."""
        del training
        self._x = x
        self._launch("multiply", self._blocks[0], None)
        return self._y

    def backward(self, dy: Array) -> Array | None:
        """Return the gradient of the input, and find those of weights and bias."""
        self._launch("multiply_back", self._blocks[1], dy)
        return self._source.dx

    def _launch(self, name: str, blocks: int, dy: Array | None) -> None:
        arrays = (self._values["weight"], self._values["bias"], dy, self._y, self._partials)
        arguments = self._source.pack(self._x) + self._numbers + calls.pointers(*arrays)
        launch.kernel("dense.cu", name)(blocks, arguments, shared=8 * SIDE * DEPTH)


class Convolution:
    """A convolution; each block works on one image, or on one channel of a slice of the images."""

    def __init__(self, values: Values, source: Source, n: int, *, kernel: int) -> None:
        channels, height, width = source.shape
        features, taps, margin = values["weight"].shape[0], kernel * kernel, kernel - 1
        out = (height - margin, width - margin)
        self._values, self._source, self._kernel = values, source, kernel
        slices = min(SLICES, n)
        self._y = cupy.empty((n, features, *out), np.float32)
        self._partials = cupy.empty((slices, features, channels * taps + 1), np.float32)
        self.updates = [Update(values["weight"], values["bias"], self._partials, slices)]
        stage, shared = _stage(channels, height * width, taps, features)
        spread_stage, spread_shared = _stage(features, (height + margin) * (width + margin), taps, channels)
        parts = _parts(height * width * -(-channels // TOGETHER), UNITS)
        spread = 0 if source.dx is None else n * parts
        seen = min(features, PAIRS * THREADS // (taps + 1) + 2)  # features of one block of `weigh`
        weigh_shared = 4 * (height * width + seen * math.prod(out))
        self._numbers = struct.pack("<6q", n, features, slices, stage, spread_stage, spread)
        self._forward = n * _parts(math.prod(out) * -(-features // TOGETHER), UNITS), shared
        weigh = slices * channels * _parts(features * (taps + 1), PAIRS)
        self._backward = spread + weigh, max(weigh_shared, spread_shared if spread else 0)
        largest = max(shared, self._backward[1])
        if largest > launch.device().shared_bytes:
            raise DomainError(
                f"polybn.train: an image of a Convolution must fit into the {launch.device().shared_bytes} bytes of "
                f"shared memory on the cupy backend; got {channels} x {height} x {width} values, which need {largest} "
                "bytes (pool before it, or use fewer channels)"
            )

    def forward(self, x: Array | Images, *, training: bool) -> Array:
        """Return the layer's output."""
        del training
        self._x = x
        self._launch("convolve", *self._forward, None)
        return self._y

    def backward(self, dy: Array) -> Array | None:
        """Return the gradient of the input, and find those of weights and bias."""
        self._launch("pull", *self._backward, dy)
        return self._source.dx

    def _launch(self, name: str, blocks: int, shared: int, dy: Array | None) -> None:
        arrays = (self._values["weight"], self._values["bias"], dy, self._y, self._partials)
        arguments = self._source.pack(self._x) + self._numbers + calls.pointers(*arrays)
        launch.kernel("convolution.cu", f"{name}<{self._kernel}>")(blocks, arguments, shared=shared)


class BatchNorm:
    """The specification's batch norm, with the kernels of :func:`polybn.batch_norm`; its state is updated in place."""

    def __init__(self, values: Values, shape: Shape, n: int, *, momentum: float, eps: float) -> None:
        channels, m = shape[0], n * math.prod(shape[1:])
        y, dx = (cupy.empty((n, *shape), np.float32) for _ in range(2))
        vectors = (values["gamma"], values["beta"], values["running_mean"], values["running_var"])
        numbers = float(momentum), float(eps)
        self._arguments = Arguments("train", None, *vectors, None, True, *numbers, False, 1, channels, m, "float32")
        self._residuals = Residuals(cupy.empty((4, channels), np.float32))
        self._outputs = Outputs(y, *vectors[2:], self._residuals.normalizers)
        self._gradients = Gradients(dx, *(cupy.empty(channels, np.float32) for _ in range(2)))
        pairs = zip((values["gamma"], values["beta"]), self._gradients[1:3], strict=True)
        self.updates = [Update(vector, None, gradient, 1) for vector, gradient in pairs]

    def forward(self, x: Array, *, training: bool) -> Array:
        """Normalize; in training by the statistics of the batch, and update the running ones."""
        arguments = self._arguments._replace(x=x, training=training)
        if training:
            self._arguments = arguments
        normalize(arguments, self._outputs if training else Outputs(self._outputs.y))
        return self._outputs.y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input, and find those of gamma and beta."""
        differentiate(self._arguments, self._residuals, dy, self._gradients)
        return self._gradients.x


class Pool:
    """A pool, a sigmoid, or bytes to numbers, where no layer with weights reads the result."""

    def __init__(self, source: Source, n: int) -> None:
        self.updates: list[Update] = []
        self._source, self._n = source, n
        self._y = cupy.empty((n, *source.shape), np.float32)

    def forward(self, x: Array | Images, *, training: bool) -> Array:
        """Return the layer's output."""
        del training
        self._x = x
        self._launch("pool", None)
        return self._y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input."""
        self._launch("unpool", dy)
        return self._source.dx

    def _launch(self, name: str, dy: Array | None) -> None:
        """Launch a kernel with a thread for each element of the output."""
        arguments = self._source.pack(self._x) + struct.pack("<q", self._n) + calls.pointers(dy, self._y)
        launch.kernel("network.cu", name)(-(-self._y.size // THREADS), arguments)


Layer: TypeAlias = Convolution | Dense | BatchNorm | Pool


def _tiles(rows: int, columns: int) -> int:
    return -(-rows // SIDE) * -(-columns // SIDE)


def _parts(units: int, each: int) -> int:
    return -(-units // (THREADS * each))


def _stage(planes: int, area: int, taps: int, outs: int) -> tuple[int, int]:
    """Return how many planes, each with its weights, are in shared memory at once, and their bytes."""
    each = 4 * (area + taps * TOGETHER * -(-outs // TOGETHER))
    stage = max(1, min(planes, STAGE_BYTES // each))
    return stage, stage * each
