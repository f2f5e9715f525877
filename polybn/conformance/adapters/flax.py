"""Flax: linen and NNX ``BatchNorm`` under jit, with the fast variance that they ship with.

``use_fast_variance=True`` is their default: ``max(E[x^2] - E[x]^2, 0)``, in one pass. ``dtype`` is set to that of x:
by default, y of a half type would be float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.jax import flushes, precision, version
from polybn.conformance.adapters.shared import load

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array


def _named(gamma: Array, beta: Array, mean: Array, var: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    return {"scale": gamma, "bias": beta}, {"mean": mean, "var": var}


class Linen:
    """``flax.linen.BatchNorm``."""

    def __init__(self) -> None:
        self._jax, self._linen = load("jax", "jax"), load("flax.linen", "flax")
        self._version = load("flax", "flax").__version__
        self._train = self._jax.jit(self._forward, static_argnames="layer")
        self._infer = self._jax.jit(self._inference, static_argnames="layer")
        self._pull = self._jax.jit(self._gradients, static_argnames="layer")

    def info(self) -> Info:
        """Declare what the layer's documentation and source say."""
        return Info(
            name="Flax linen, fast variance",
            version=f"{self._version}, {version(self._jax)}",
            empty="changed",
            dtypes=("float16", "bfloat16", "float32", "float64"),
            flushes=flushes(self._jax),
            compiles=True,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Apply the layer with ``batch_stats`` mutable."""
        params, stats = _named(*vectors)
        with precision(self._jax, x):
            layer = self._linen.BatchNorm(momentum=momentum, epsilon=eps, axis=axis, dtype=x.dtype)
            y, new = self._train(params, stats, x, layer=layer)
        return np.array(y), np.array(new["mean"]), np.array(new["var"])

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Apply the layer with ``use_running_average=True``."""
        params, stats = _named(*vectors)
        with precision(self._jax, x):
            layer = self._linen.BatchNorm(epsilon=eps, axis=axis, dtype=x.dtype)
            return np.array(self._infer(params, stats, x, layer=layer))

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``jax.vjp``."""
        given, stats = _named(gamma, beta, np.zeros_like(gamma), np.ones_like(gamma))
        with precision(self._jax, x):
            layer = self._linen.BatchNorm(epsilon=eps, axis=axis, dtype=x.dtype)
            params, dx = self._pull(given, stats, x, dy, layer=layer)
        return np.array(dx), np.array(params["scale"]), np.array(params["bias"])

    def _forward(self, params: Any, stats: Any, x: Any, *, layer: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": stats}
        y, state = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return y, state["batch_stats"]

    def _inference(self, params: Any, stats: Any, x: Any, *, layer: Any) -> Any:
        return layer.apply({"params": params, "batch_stats": stats}, x, use_running_average=True)

    def _gradients(self, params: Any, stats: Any, x: Any, dy: Any, *, layer: Any) -> Any:
        _, pullback = self._jax.vjp(lambda p, data: self._forward(p, stats, data, layer=layer)[0], params, x)
        return pullback(dy)


class NNX:
    """``flax.nnx.BatchNorm``. Its statistics are float32 whatever its dtype, so float64 is not declared."""

    def __init__(self) -> None:
        self._jax, self._nnx = load("jax", "jax"), load("flax.nnx", "flax")
        self._version = load("flax", "flax").__version__
        self._call = self._nnx.jit(lambda layer, x: layer(x))
        self._pull = self._nnx.jit(
            self._nnx.grad(lambda layer, x, dy: (layer(x) * dy).sum(), argnums=(0, 1)),
        )

    def info(self) -> Info:
        """Declare what the layer's documentation and source say."""
        return Info(
            name="Flax NNX, fast variance",
            version=f"{self._version}, {version(self._jax)}",
            empty="changed",
            dtypes=("float16", "bfloat16", "float32"),
            flushes=flushes(self._jax),
            compiles=True,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Call the layer in training; its statistics change in place."""
        layer = self._layer(x, *vectors[:2], momentum=momentum, epsilon=eps, axis=axis)
        layer.mean[...], layer.var[...] = vectors[2:]
        y = self._call(layer, x)
        return np.array(y), np.array(layer.mean[...]), np.array(layer.var[...])

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Call the layer with ``use_running_average=True``."""
        layer = self._layer(x, *vectors[:2], epsilon=eps, axis=axis, use_running_average=True)
        layer.mean[...], layer.var[...] = vectors[2:]
        return np.array(self._call(layer, x))

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``nnx.grad``."""
        params, dx = self._pull(self._layer(x, gamma, beta, epsilon=eps, axis=axis), x, dy)
        return np.array(dx), np.array(params["scale"][...]), np.array(params["bias"][...])

    def _layer(self, x: Array, gamma: Array, beta: Array, **options: Any) -> Any:
        layer = self._nnx.BatchNorm(len(gamma), dtype=x.dtype, rngs=self._nnx.Rngs(0), **options)
        layer.scale[...], layer.bias[...] = gamma, beta
        return layer
