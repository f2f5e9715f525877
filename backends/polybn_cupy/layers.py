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
from polybn_cupy.plan import THREADS, power_of_two
from polybn_cupy.tasks import STAGE_BYTES, cut, patch

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = dict[str, Array]
"""One layer's arrays by short name, such as ``weight``, ``gamma`` or ``running_mean``."""

DEPTH, PITCH = 128, 132  # of dense.cu
FORWARD, BACKWARD = (32, 8), (32, 32)  # the tiles of dense.cu
WARPS = THREADS // 32


class Update(NamedTuple):
    """An array of parameters and its gradient in slices; a row of it ends with that of ``bias`` if there is one."""

    weight: Array
    bias: Array | None
    gradient: Array
    slices: int

    def pack(self) -> bytes:
        """Pack a struct ``Descent`` for each block that works on it; several threads share a sum of many slices."""
        shares = min(8, power_of_two(self.slices // 16))
        rows, size = self.weight.shape[0], self.weight.size + (0 if self.bias is None else self.bias.size)
        shape = struct.pack("<4q", rows, self.weight.size // rows, self.slices, shares)
        rest = shape + calls.pointers(self.weight, self.bias, self.gradient)
        return b"".join(struct.pack("<q", first) + rest for first in range(0, size, THREADS // shares))


DESCENT_BYTES = 8 * 8


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
        self._kept: Array | None = None
        self._numbers = struct.pack("<3q", channels, size, sigmoid) + b"".join(map(_divisor, self.shape[1:]))

    def keep(self, n: int) -> None:
        """Have the forward pass keep what it reads, for the gradients of weights."""
        self._kept = cupy.empty((n, *self.shape), np.float32)

    def pack(self, x: Array | Images) -> bytes:
        """Pack the struct ``Map``."""
        given = (None, self.dx, self._kept, *x) if isinstance(x, Images) else (x, self.dx, self._kept, None, None, None)
        return self._numbers + calls.pointers(*given)


class Dense:
    """A dense layer, as products of matrices; the last one of a network is computed together with the loss."""

    def __init__(self, values: Values, source: Source, n: int, *, last: bool) -> None:
        features, inputs = values["weight"].shape[0], source.values
        self._values, self._source = values, source
        self.last = last and _together_bytes(inputs, features) <= STAGE_BYTES
        if not self.last:
            source.keep(n)
        slices = -(-n // (WARPS if self.last else DEPTH))
        self._y = cupy.empty((n, features, 1, 1), np.float32)
        self._partials = cupy.empty((slices, features, inputs + 1), np.float32)
        self.updates = [Update(values["weight"], values["bias"], self._partials, slices)]
        spread = 0 if source.dx is None else _tiles(inputs, n, BACKWARD)
        self._numbers = struct.pack("<4q", n, features, slices, spread)
        self._blocks = _tiles(features, n, FORWARD), spread + slices * _tiles(features, inputs, BACKWARD)

    def forward(self, x: Array | Images, *, training: bool) -> Array:
        """Return the layer's output; for the last layer in training, :meth:`conclude` will compute it."""
        self._x = x
        if not (training and self.last):
            self._launch("multiply", self._blocks[0], FORWARD, None)
        return self._y

    def backward(self, dy: Array) -> Array | None:
        """Return the gradient of the input, and find those of weights and bias."""
        self._launch("multiply_back", self._blocks[1], BACKWARD, dy)
        return self._source.dx

    def conclude(self, batch: bytes) -> Array | None:
        """Compute the layer, the loss of ``batch``, and all gradients; return that of the input."""
        arrays = (self._values["weight"], self._values["bias"], self._partials)
        slices, features, columns = self._partials.shape
        arguments = batch + self._source.pack(self._x) + calls.pointers(*arrays)
        launch.kernel("network.cu", "conclude")(slices, arguments, shared=_together_bytes(columns - 1, features))
        return self._source.dx

    def _launch(self, name: str, blocks: int, tile: tuple[int, int], dy: Array | None) -> None:
        arrays = (self._values["weight"], self._values["bias"], dy, self._y, self._partials)
        arguments = self._source.pack(self._x) + self._numbers + calls.pointers(*arrays)
        launch.kernel("dense.cu", name)(blocks, arguments, shared=4 * sum(tile) * PITCH)


class Convolution:
    """A convolution; a block works on one image, or on some weights and a slice of the images."""

    def __init__(self, values: Values, source: Source, n: int, *, kernel: int) -> None:
        channels, high, wide = source.shape
        features, margin = values["weight"].shape[0], kernel - 1
        out = (high - margin, wide - margin)
        self._values, self._source, self._kernel = values, source, kernel
        source.keep(n)
        forward = cut(channels, high, features, *out, kernel)
        spread = cut(features, out[0], channels, high, wide, kernel)
        weigh = patch(n, source.shape, features, kernel)
        self._y = cupy.empty((n, features, *out), np.float32)
        self._partials = cupy.empty((weigh.slices, features, channels * kernel * kernel + 1), np.float32)
        self.updates = [Update(values["weight"], values["bias"], self._partials, weigh.slices)]
        spread_blocks = 0 if source.dx is None else n * spread.blocks
        cuts = forward.pack() + spread.pack() + struct.pack("<q", spread_blocks) + weigh.pack()
        self._numbers = struct.pack("<2q", n, features) + cuts
        self._forward = n * forward.blocks, forward.shared
        self._backward = spread_blocks + weigh.blocks, max(weigh.shared, spread.shared if spread_blocks else 0)
        largest = max(forward.shared, self._backward[1])
        if largest > launch.device().shared_bytes:
            raise DomainError(
                f"polybn.train: an image of a Convolution must fit into the {launch.device().shared_bytes} bytes of "
                f"shared memory on the cupy backend; got {channels} x {high} x {wide} values, which need {largest} "
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


def _tiles(rows: int, columns: int, tile: tuple[int, int]) -> int:
    return -(-rows // tile[0]) * -(-columns // tile[1])


def _together_bytes(inputs: int, classes: int) -> int:
    """Return the shared memory of the last dense layer with the loss."""
    return 16 * WARPS + 4 * (WARPS * (inputs + 2 * classes) + classes * (inputs + 1))


def _divisor(number: int) -> bytes:
    """Pack the struct ``Divisor``."""
    return struct.pack("<2I", number, (2**32 - 1) // number)
