"""JAX: ``jax.nn.standardize`` with its default algorithm, the one-pass ``E[x^2] - E[x]^2``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.shared import load

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from polybn.conformance.adapter import Array


class Standardize:
    """The function over every axis but the channels', times gamma, plus beta, as its users write it.

    It has no running statistics. ``train`` hands back those that it was given, and ``infer`` passes
    them as ``mean`` and ``variance``.
    """

    def __init__(self) -> None:
        self._jax = load("jax", "jax")
        self._compiled = self._jax.jit(self._affine, static_argnames="axis")
        self._pull = self._jax.jit(self._gradients, static_argnames="axis")

    def info(self) -> Info:
        """Declare what the function's documentation and source say."""
        return Info(
            name="jax.nn.standardize",
            version=version(self._jax),
            dtypes=("float16", "bfloat16", "float32", "float64"),
            tracks=False,
            flushes=flushes(self._jax),
            compiles=True,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:  # noqa: ARG002
        """Standardize by batch statistics; nothing is tracked."""
        with precision(self._jax, x):
            y = self._compiled(x, *vectors[:2], eps=eps, axis=axis)
        return np.array(y), vectors[2].copy(), vectors[3].copy()

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Standardize by the given mean and variance."""
        with precision(self._jax, x):
            return np.array(self._compiled(x, *vectors, eps=eps, axis=axis))

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``jax.vjp``."""
        with precision(self._jax, x):
            dx, dgamma, dbeta = self._pull(x, gamma, beta, dy, eps=eps, axis=axis)
        return np.array(dx), np.array(dgamma), np.array(dbeta)

    def _affine(self, x: Any, gamma: Any, beta: Any, *statistics: Any, eps: Any, axis: int) -> Any:
        axis %= x.ndim
        others = tuple(a for a in range(x.ndim) if a != axis)
        gamma, beta, *given = (self._jax.numpy.expand_dims(v, others) for v in (gamma, beta, *statistics))
        standard = self._jax.nn.standardize(x, others, *given, epsilon=eps)
        return (standard * gamma + beta).astype(x.dtype)

    def _gradients(self, x: Any, gamma: Any, beta: Any, dy: Any, *, eps: Any, axis: int) -> Any:
        _, pullback = self._jax.vjp(lambda *inputs: self._affine(*inputs, eps=eps, axis=axis), x, gamma, beta)
        return pullback(dy)


def version(jax: Any) -> str:
    """Return JAX's version and the platform that it computes on."""
    return f"JAX {jax.__version__}, {jax.default_backend().upper()}"


def flushes(jax: Any) -> bool:
    """Return whether XLA makes its threads flush subnormal numbers to zero, as on the CPU."""
    return bool(jax.default_backend() == "cpu")


def precision(jax: Any, x: Array) -> AbstractContextManager[Any]:
    """Enable float64 for float64 data, as users of JAX must; for other data JAX keeps its default."""
    context: AbstractContextManager[Any] = jax.enable_x64(x.dtype == np.float64)
    return context
