"""Any backend of PolyBN by name, through the public functions."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

import polybn
from polybn.conformance.adapter import Info

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from polybn.conformance.adapter import Array
    from polybn.spec import Backend

DTYPES = ("float16", "bfloat16", "float32", "float64")
FLUSHING = ("jax",)
"""XLA flushes subnormal numbers on the CPU."""
OPTIONS = ("momentum", "eps", "axis")
"""What tells the programs of ``jax.jit`` apart: Python numbers."""
PROGRAMS = 100
"""To keep of each jitted function: one takes some 120 memory maps, of which a process may have 65,530 on Linux."""


class BackendAdapter:
    """A backend under test.

    Parameters
    ----------
    name : str
        As :func:`polybn.backend` takes it.

    Raises
    ------
    ImportError
        If the backend cannot run here; the message is its own reason.
    """

    def __init__(self, name: str) -> None:
        reason = polybn.dispatch.why_not(name)
        if reason is not None:
            raise ImportError(f"polybn.conformance: backend {name!r} must run here; got {reason}", name=name)
        self._backend = polybn.backend(name)

    def info(self) -> Info:
        """Declare the specification's conventions, and the dtypes that the library has."""
        about = ", ".join(f"{what} {value}" for what, value in self._backend.describe().items())
        return Info(
            name=f"PolyBN on {self._backend.name}",
            version=f"{polybn.__version__}, {about}",
            dtypes=tuple(dtype for dtype in DTYPES if _holds(self._backend, dtype)),
            flushes=self._backend.name in FLUSHING,
            compiles=hasattr(self._backend, "jit"),
        )

    def train(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        *,
        momentum: float,
        eps: float,
        axis: int,
    ) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm` in training."""
        arrays = map(self._backend.asarray, (x, gamma, beta, running_mean, running_var))
        y, mean, var = polybn.batch_norm(*arrays, training=True, momentum=momentum, eps=eps, axis=axis)
        return self._backend.to_numpy(y), self._backend.to_numpy(mean), self._backend.to_numpy(var)

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, eps: float, axis: int
    ) -> Array:
        """Call :func:`polybn.batch_norm` in inference."""
        arrays = map(self._backend.asarray, (x, gamma, beta, running_mean, running_var))
        return self._backend.to_numpy(polybn.batch_norm(*arrays, training=False, eps=eps, axis=axis).y)

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm_vjp` in training."""
        arrays = map(self._backend.asarray, (x, gamma, beta))
        _, pullback = polybn.batch_norm_vjp(*arrays, training=True, eps=eps, axis=axis)
        back = pullback(self._backend.asarray(dy))
        dx, dgamma, dbeta = map(self._backend.to_numpy, (back.x, back.gamma, back.beta))
        return dx, dgamma, dbeta


class MXNetOperators(BackendAdapter):
    """The MXNet backend in MXNet's operators alone, as on a GPU, in whichever context this runs."""

    def __init__(self) -> None:
        super().__init__("mxnet")
        module: Any = self._backend
        self._scope: Callable[[], AbstractContextManager[None]] = module.passes.operators_only

    def info(self) -> Info:
        """Declare the same as the backend, under another name."""
        info = super().info()
        return info._replace(name=f"{info.name}, in its operators")

    def train(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm` in training."""
        with self._scope():
            return super().train(*arrays, **options)

    def infer(self, *arrays: Array, **options: Any) -> Array:
        """Call :func:`polybn.batch_norm` in inference."""
        with self._scope():
            return super().infer(*arrays, **options)

    def vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm_vjp` in training."""
        with self._scope():
            return super().vjp(*arrays, **options)


class JaxCompiled(BackendAdapter):
    """The JAX backend inside the user's own ``jax.jit``, where all values are traced and XLA fuses across calls."""

    def __init__(self) -> None:
        super().__init__("jax")
        module: Any = self._backend
        self._train = module.jit(functools.partial(polybn.batch_norm, training=True), static_argnames=OPTIONS)
        self._infer = module.jit(functools.partial(polybn.batch_norm, training=False), static_argnames=OPTIONS)
        self._vjp = module.jit(_gradients, static_argnames=OPTIONS[1:])

    def info(self) -> Info:
        """Declare the same as the backend, under another name."""
        info = super().info()
        return info._replace(name=f"{info.name}, in jax.jit")

    def train(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm` in training."""
        y, mean, var = map(self._backend.to_numpy, self._call(self._train, arrays, options))
        return y, mean, var

    def infer(self, *arrays: Array, **options: Any) -> Array:
        """Call :func:`polybn.batch_norm` in inference."""
        return self._backend.to_numpy(self._call(self._infer, arrays, options).y)

    def vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm_vjp` in training."""
        dx, dgamma, dbeta = map(self._backend.to_numpy, self._call(self._vjp, arrays, options))
        return dx, dgamma, dbeta

    def _call(self, function: Any, arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        if function._cache_size() >= PROGRAMS:
            function.clear_cache()
        return function(*map(self._backend.asarray, arrays), **options)


def _gradients(x: Any, gamma: Any, beta: Any, dy: Any, *, eps: float, axis: int) -> tuple[Any, Any, Any]:
    back = polybn.batch_norm_vjp(x, gamma, beta, training=True, eps=eps, axis=axis)[1](dy)
    return back.x, back.gamma, back.beta


def _holds(backend: Backend, dtype: str) -> bool:
    """Tell whether the library has arrays of a dtype. Whether batch norm serves them is for the kit to find out."""
    try:
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401
        host = np.zeros(1, np.dtype(dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(backend.to_numpy(backend.asarray(host)).dtype == host.dtype)
    except Exception:
        # Each library refuses a dtype in its own way.
        return False


polybn_numpy = functools.partial(BackendAdapter, "numpy")
polybn_cupy = functools.partial(BackendAdapter, "cupy")
polybn_jax = functools.partial(BackendAdapter, "jax")
polybn_mxnet = functools.partial(BackendAdapter, "mxnet")
