"""The layers of a network on the device, forward and backward; each keeps its own buffers.

A layer's ``forward`` and ``backward`` only launch kernels, on addresses that never change, so a CUDA graph can replay
them. Activations have shape ``(n, channels, height, width)``; those of dense layers have height and width 1.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple, TypeAlias

import cupy
import numpy as np

from polybn.spec import Arguments, Gradients
from polybn_cupy import calls, launch
from polybn_cupy.batch_norm import Outputs, normalize
from polybn_cupy.derivatives import Residuals, differentiate
from polybn_cupy.plan import THREADS

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

ROWS, COLUMNS, DEPTH = 16, 64, 16  # of network.cu
SLICES = 64
"""The number of slices of a batch's outputs for the gradients of weights: enough blocks for a large device."""


class Variables(NamedTuple):
    """One layer's arrays by short name, such as ``weight``, ``gamma`` or ``running_mean``, and the learning rate."""

    values: dict[str, Array]
    rate: Array
    """The learning rate, as an array on the device."""


def each(name: str, size: int, arguments: bytes) -> None:
    """Launch a kernel of network.cu with a thread for each element."""
    launch.kernel("network.cu", name)(-(-size // THREADS), arguments)


def descend(rate: Array, weight: Array, bias: Array | None, gradient: Array, slices: int) -> None:
    """Take a step of SGD; the gradient is the sum of its slices."""
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    arguments = struct.pack("<3q", rows, columns, slices) + calls.pointers(weight, bias, gradient, rate)
    each("descend", rows * (columns + (bias is not None)), arguments)


class Convolution:
    """A convolution, or a dense layer, which is one with a kernel as large as its input."""

    def __init__(self, variables: Variables, shape: Shape, kernel: tuple[int, int], n: int, *, first: bool) -> None:
        self._variables = variables
        channels, height, width = shape
        weight = variables.values["weight"]
        features, taps = weight.shape[0], math.prod(weight.shape[1:])
        out = (height - kernel[0] + 1, width - kernel[1] + 1)
        outputs = n * out[0] * out[1]
        self._slices = min(SLICES, -(-outputs // DEPTH))
        self.y = cupy.empty((n, features, *out), np.float32)
        self._dx = None if first else cupy.empty((n, *shape), np.float32)
        self._partials = cupy.empty((self._slices, features, taps + 1), np.float32)
        self._shape = struct.pack("<8q", n, channels, height, width, features, *kernel, self._slices)
        self._tiles = {
            "convolve": _tiles(features, outputs),
            "weigh": _tiles(features, taps + 1) * self._slices,
            "spread": _tiles(channels, n * height * width),
        }

    def forward(self, x: Array, *, training: bool) -> Array:
        """Return the layer's output."""
        del training
        self._x = x
        self._launch("convolve", None)
        return self.y

    def backward(self, dy: Array) -> Array | None:
        """Return the gradient of the input, and update weights and bias."""
        self._launch("weigh", dy)
        if self._dx is not None:
            self._launch("spread", dy)
        values = self._variables.values
        descend(self._variables.rate, values["weight"], values["bias"], self._partials, self._slices)
        return self._dx

    def _launch(self, name: str, dy: Array | None) -> None:
        values = self._variables.values
        arrays = (self._x, values["weight"], values["bias"], dy, self.y, self._dx, self._partials)
        shared = 4 * (ROWS * (DEPTH + 1) + DEPTH * COLUMNS)
        launch.kernel("network.cu", name)(self._tiles[name], self._shape + calls.pointers(*arrays), shared=shared)


class BatchNorm:
    """The specification's batch norm, with the kernels of :func:`polybn.batch_norm`; its state is updated in place."""

    def __init__(self, variables: Variables, shape: Shape, n: int, *, momentum: float, eps: float) -> None:
        values, self._rate = variables
        channels, m = shape[0], n * math.prod(shape[1:])
        y, dx = (cupy.empty((n, *shape), np.float32) for _ in range(2))
        vectors = (values["gamma"], values["beta"], values["running_mean"], values["running_var"])
        numbers = float(momentum), float(eps)
        self._arguments = Arguments("train", None, *vectors, None, True, *numbers, False, 1, channels, m, "float32")
        self._residuals = Residuals(cupy.empty((4, channels), np.float32))
        self._outputs = Outputs(y, *vectors[2:], self._residuals.normalizers)
        self._gradients = Gradients(dx, *(cupy.empty(channels, np.float32) for _ in range(2)))

    def forward(self, x: Array, *, training: bool) -> Array:
        """Normalize; in training by the statistics of the batch, and update the running ones."""
        arguments = self._arguments._replace(x=x, training=training)
        if training:
            self._arguments = arguments
        normalize(arguments, self._outputs if training else Outputs(self._outputs.y))
        return self._outputs.y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input, and update gamma and beta."""
        arguments, gradients = self._arguments, self._gradients
        differentiate(arguments, self._residuals, dy, gradients)
        for vector, gradient in ((arguments.gamma, gradients.gamma), (arguments.beta, gradients.beta)):
            descend(self._rate, vector, None, gradient, 1)
        return gradients.x


class Pool:
    """Maximum over squares, a sigmoid, or both, the maximum first."""

    def __init__(self, shape: Shape, n: int, *, size: int, sigmoid: bool) -> None:
        channels, height, width = shape
        self._y = cupy.empty((n, channels, height // size, width // size), np.float32)
        self._dx = cupy.empty((n, *shape), np.float32)
        self._winner = cupy.empty(self._y.shape, np.uint8)
        self._shape = struct.pack("<5q", n * channels, height, width, size, sigmoid)

    def forward(self, x: Array, *, training: bool) -> Array:
        """Return the layer's output."""
        del training
        each("pool", self._y.size, self._shape + calls.pointers(x, None, self._y, None, self._winner))
        return self._y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input."""
        each("unpool", self._dx.size, self._shape + calls.pointers(None, dy, self._y, self._dx, self._winner))
        return self._dx


Layer: TypeAlias = Convolution | BatchNorm | Pool


def _tiles(rows: int, columns: int) -> int:
    return -(-rows // ROWS) * -(-columns // COLUMNS)
