"""Any backend of PolyBN by name, through the public functions, in each of the forms that it declares."""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn import dispatch
from polybn.conformance.adapter import Info
from polybn.conformance.runner import RETURNS
from polybn.functional import batch_norm, batch_norm_vjp
from polybn.options import type_name
from polybn.spec import BackendError, DomainError, SingleValueWarning, traits_of
from polybn.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from polybn.conformance.adapter import Array
    from polybn.spec import Backend

DTYPES = ("float16", "bfloat16", "float32", "float64")
OPTIONS = ("momentum", "eps", "axis")
"""The static arguments of compiled functions: Python numbers."""
PROGRAMS = 100
"""Different shapes and options after which all compiled programs are dropped, to free their memory."""


class BackendAdapter:
    """A backend under test, by name; ``form`` is a variant that it declares, or ``"jit"`` if it compiles functions."""

    def __init__(self, name: str, form: str = "") -> None:
        reason = dispatch.why_not(name)
        if reason is not None:
            raise ImportError(f"polybn.conformance: backend {name!r} must run here; got {reason}", name=name)
        self._backend = dispatch.backend(name)
        if form and form not in forms(self._backend):
            raise DomainError(
                f"polybn.conformance: form must be one of {', '.join(forms(self._backend)) or 'none'}; got {form!r} "
                f"(what backend {name!r} declares in its traits)"
            )
        self._form = form
        traits = traits_of(self._backend)
        self._scope = contextlib.nullcontext if form in ("", "jit") else traits.variants[form]
        self._compiles = traits.jit is not None
        self._compiled = _Compiled(traits.jit) if form == "jit" and traits.jit is not None else None

    def info(self) -> Info:
        """Declare the specification's conventions, and the dtypes that the library has."""
        with self._scope():  # a form may run on something else
            about = ", ".join(f"{what} {value}" for what, value in self._backend.describe().items())
        traits = traits_of(self._backend)
        return Info(
            name=f"PolyBN on {self._backend.name}" + (f", {self._form}" if self._form else ""),
            version=f"{__version__}, {about}",
            dtypes=tuple(dtype for dtype in DTYPES if _holds(self._backend, dtype)),
            flushes=traits.flushes_subnormals,
            compiles=traits.jit is not None,
            differentiates_inference=True,
            of_backend=True,
        )

    def train(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm` in training."""
        y, mean, var = self._call("train", arrays, options)
        return y, mean, var

    def infer(self, *arrays: Array, **options: Any) -> Array:
        """Call :func:`polybn.batch_norm` in inference."""
        (y,) = self._call("infer", arrays, options)
        return y

    def vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm_vjp` in training."""
        x, gamma, beta, dy = arrays
        # Running statistics have no influence; with them, what the library compiled for `train` serves here, too.
        running = (np.zeros_like(gamma), np.ones_like(gamma)) if self._compiles else ()
        dx, dgamma, dbeta = self._call("vjp", (x, gamma, beta, *running, dy), options)
        return dx, dgamma, dbeta

    def infer_vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Call :func:`polybn.batch_norm_vjp` in inference."""
        dx, dgamma, dbeta = self._call("infer_vjp", arrays, options)
        return dx, dgamma, dbeta

    def _call(self, method: str, arrays: tuple[Array, ...], options: dict[str, Any]) -> list[Array]:
        function = FUNCTIONS[method]
        with self._scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SingleValueWarning)  # the kit asks for one value on purpose
            given = map(self._backend.asarray, arrays)
            compiled = function if self._compiled is None else self._compiled(function, arrays, options)
            results = compiled(*given, **options)
            return [self._to_host(name, result) for name, result in zip(RETURNS[method], results, strict=True)]

    def _to_host(self, name: str, result: Any) -> Array:
        if result is None or self._backend.inspect(result) is None:
            raise BackendError(f"{name} must be a plain array of the backend's library; got {type_name(result)}")
        return self._backend.to_numpy(result)


class _Compiled:
    """Functions compiled by the library's ``jit``; at most PROGRAMS programs are kept."""

    def __init__(self, jit: Callable[..., Any]) -> None:
        self._jit, self._functions, self._seen = jit, dict[Any, Any](), set[Any]()

    def __call__(self, function: Callable[..., Any], arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        key = (function, *((array.shape, array.dtype.name) for array in arrays), *options.items())
        if key not in self._seen and len(self._seen) >= PROGRAMS:
            self._functions.clear()
            self._seen.clear()
        self._seen.add(key)
        if function not in self._functions:
            # A new object for each compiled function, so that its programs go with it.
            fresh, names = functools.partial(function), tuple(name for name in OPTIONS if name in options)
            self._functions[function] = self._jit(fresh, static_argnames=names)
        return self._functions[function]


def forms(backend: Backend) -> tuple[str, ...]:
    """List the further forms in which a backend can be graded, by what it declares."""
    traits = traits_of(backend)
    return (*traits.variants, *(() if traits.jit is None else ("jit",)))


def _train(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    return tuple(batch_norm(*arrays, training=True, **options))


def _infer(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    return (batch_norm(*arrays, training=False, **options).y,)


def _vjp(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    *forward, dy = arrays
    back = batch_norm_vjp(*forward, training=True, **options)[1](dy)
    return back.x, back.gamma, back.beta


def _infer_vjp(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    *forward, dy = arrays
    back = batch_norm_vjp(*forward, training=False, **options)[1](dy)
    return back.x, back.gamma, back.beta


FUNCTIONS = {"train": _train, "infer": _infer, "vjp": _vjp, "infer_vjp": _infer_vjp}


def _holds(backend: Backend, dtype: str) -> bool:
    """Return whether the library has arrays of a dtype; the kit itself finds out whether batch norm serves them."""
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
