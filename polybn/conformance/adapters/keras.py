"""Keras 3: ``keras.layers.BatchNormalization`` on its NumPy or its torch backend; a process can use one of them."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.shared import load

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array

POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16", "float32": "float32", "float64": "float64"}
"""The dtype policy that computes in a dtype and keeps variables as the specification does."""


class Keras:
    """The layer; both backends compute the variance as ``E[x^2] - E[x]^2`` without a check that it is not negative.

    Keras chooses its backend when it is imported. If it already runs on another one, this is an ImportError.
    """

    def __init__(self, backend: Literal["numpy", "torch"]) -> None:
        self._torch = load("torch", "keras torch") if backend == "torch" else None
        self._keras = _import_keras(backend)

    def info(self) -> Info:
        """Declare what the layer's documentation and source say."""
        library = np if self._torch is None else self._torch
        name = "NumPy" if self._torch is None else "torch"
        return Info(
            name=f"Keras on {name}",
            version=f"{self._keras.__version__}, {name} {library.__version__}",
            empty="changed",
            dtypes=tuple(POLICIES),
            differentiates=self._torch is not None,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Call the layer with ``training=True``; its moving statistics change in place."""
        layer = self._layer(x, *vectors, momentum=momentum, epsilon=eps, axis=axis)
        y = layer(self._tensor(x), training=True)
        return self._host(y), self._host(layer.moving_mean), self._host(layer.moving_variance)

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Call the layer with ``training=False``."""
        layer = self._layer(x, *vectors, epsilon=eps, axis=axis)
        return self._host(layer(self._tensor(x), training=False))

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``torch.autograd.grad``, on the torch backend only."""
        if self._torch is None:
            raise NotImplementedError("polybn.conformance: vjp must be asked of Keras on torch; on NumPy it has none")
        layer = self._layer(x, gamma, beta, np.zeros_like(gamma), np.ones_like(gamma), epsilon=eps, axis=axis)
        inputs = (self._tensor(x).requires_grad_(), layer.gamma.value, layer.beta.value)
        gradients = self._torch.autograd.grad(layer(inputs[0], training=True), inputs, self._tensor(dy))
        dx, dgamma, dbeta = map(self._host, gradients)
        return dx, dgamma, dbeta

    def _layer(self, x: Array, *vectors: Array, **options: Any) -> Any:
        layer = self._keras.layers.BatchNormalization(dtype=POLICIES[x.dtype.name], **options)
        layer.build(x.shape)
        layer.set_weights(vectors)
        return layer

    def _tensor(self, host: Array) -> Any:
        return self._keras.ops.convert_to_tensor(host, dtype=host.dtype.name)

    def _host(self, tensor: Any) -> Array:
        array: Array = np.array(self._keras.ops.convert_to_numpy(tensor))
        return array


def _import_keras(backend: str) -> Any:
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = backend
    try:
        keras = load("keras", "keras")
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before
    running = keras.backend.backend()
    if running != backend:
        raise ImportError(
            f"polybn.conformance: Keras must run on {backend!r} for this adapter; got {running!r} "
            "(it takes its backend when it is imported, one a process: start another process)",
            name="keras",
        )
    return keras


on_numpy = functools.partial(Keras, "numpy")
on_torch = functools.partial(Keras, "torch")
