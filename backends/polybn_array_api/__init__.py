"""One backend for every library of the Array API standard. An entry point binds it to a library, without code.

``mylib = "polybn_array_api:mylib"`` in the group ``polybn.backends`` serves the arrays of ``mylib``: an attribute of
this module that does not exist is the binding to the library of that name. The library's namespace is looked for in
array-api-compat first, then in the library itself; :func:`polybn.backends` says whether it works.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from polybn.spec import (
    Affine,
    Arguments,
    Array,
    BatchNormResult,
    Description,
    DTypeError,
    Gradients,
    Moments,
    SecondGradients,
    Traits,
)
from polybn_array_api import batch_norm, derivatives

PLACES = ("array_api_compat.{}", "array_api_compat.{}.array", "{}", "{}.array_api", "{}.array", "{}.numpy")
"""The modules that may be the namespace of a library, in the order of the search."""


class Binding:
    """The backend of one library: :class:`polybn.spec.Backend`, on the library's namespace."""

    def __init__(self, name: str, xp: Any, traits: Traits) -> None:
        self.name, self.xp, self.traits = name, xp, traits

    def why_not(self) -> str | None:
        """Return None if a computation ran and came back, else the reason why not."""
        doubled = self.to_numpy(self.asarray(np.array([1.0, 3.0], np.float32)) * 2)
        return None if doubled.tolist() == [2, 6] else f"twice [1, 3] gave {doubled.tolist()}"

    def describe(self) -> dict[str, str]:
        """Return the versions and the device that results depend on."""
        library = importlib.import_module(self.name)
        device = array_api_compat.device(self.xp.zeros(1))
        return {
            self.name: str(getattr(library, "__version__", "of unknown version")),
            "array-api-compat": array_api_compat.__version__,
            "device": str(device),
        }

    def inspect(self, value: Any, /) -> Description | None:
        """Describe an array of the library; None for all else."""
        try:
            mine = array_api_compat.array_namespace(value) is self.xp
        except TypeError:
            return None
        if not mine:
            return None
        dtype = str(getattr(value.dtype, "name", value.dtype)).rpartition(".")[2]
        return Description(tuple(value.shape), dtype, str(array_api_compat.device(value)))

    def asarray(self, host: NDArray[Any], /) -> Array:
        """Copy a NumPy array to the default device."""
        if not hasattr(self.xp, host.dtype.name):
            raise DTypeError(
                f"polybn.asarray: host must have a dtype that {self.traits.library} has; got {host.dtype.name} "
                "(nothing is converted)"
            )
        return self.xp.asarray(np.array(host))

    def to_numpy(self, array: Array, /) -> NDArray[Any]:
        """Copy an array to the host."""
        unwrap = getattr(array, "unwrap_numpy", None)  # ndonnx has neither __array__ nor DLPack
        return np.array(array if unwrap is None else unwrap())

    # Some libraries use NumPy, which would warn of infinity and NaN even where these are right.
    @np.errstate(all="ignore")
    def forward(self, arguments: Arguments, *, differentiable: bool) -> tuple[BatchNormResult, Any]:  # noqa: ARG002
        """Normalize (S1 to S12); the statistics are always available for :meth:`backward`."""
        return batch_norm.forward(self.xp, arguments)

    @np.errstate(all="ignore")
    def backward(self, arguments: Arguments, residuals: Any, dy: Array) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
        return derivatives.backward(self.xp, arguments, residuals, dy)

    @np.errstate(all="ignore")
    def double_backward(
        self, arguments: Arguments, residuals: Any, dy: Array, cotangents: Gradients
    ) -> SecondGradients:
        """Differentiate :meth:`backward`."""
        return derivatives.double_backward(self.xp, arguments, residuals, dy, cotangents)

    @np.errstate(all="ignore")
    def moments(self, arguments: Arguments) -> Moments:
        """Measure ``x`` (S15)."""
        return batch_norm.moments(self.xp, arguments)

    @np.errstate(all="ignore")
    def merge_moments(self, a: Moments, b: Moments) -> Moments:
        """Combine two parts (S15)."""
        return batch_norm.merge_moments(self.xp, a, b)

    @np.errstate(all="ignore")
    def fold(self, arguments: Arguments) -> Affine:
        """Turn inference into ``scale * x + shift``."""
        return batch_norm.fold(self.xp, arguments)


@cache
def bind(name: str) -> Binding:
    """Make the backend for a library, given the name of its root module.

    Parameters
    ----------
    name : str
        The name of the library, and of the backend.

    Raises
    ------
    ImportError
        If the library is not installed, or has no namespace of the standard.
    """
    importlib.import_module(name)
    for place in PLACES:
        module = place.format(name)
        if _exists(module) and hasattr(xp := importlib.import_module(module), "__array_namespace_info__"):
            return Binding(name, xp, TRAITS.get(name, Traits(library=name)))
    places = ", ".join(place.format(name) for place in PLACES)
    raise ImportError(
        f"{name} must have a namespace of the Array API standard, a module with __array_namespace_info__; "
        f"none was found in {places}"
    )


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent is no package
        return False


def __getattr__(name: str) -> Binding:
    """Bind to the library that an entry point names."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return bind(name)
    except ImportError as error:
        raise AttributeError(f"polybn_array_api cannot serve {name!r}: {error}") from error


@contextmanager
def small_blocks() -> Iterator[None]:
    """Make Dask cut all arrays into blocks of a few values, for the conformance kit."""
    import dask

    with dask.config.set({"array.chunk-size": "256B"}):
        yield


TRAITS = {
    "dask": Traits(
        library="Dask",
        sees_values=False,
        variants={"blocks": small_blocks},
        instead_of_integers="x.astype('float64') stays lazy; polybn.Statistics adds up x.blocks[k].compute() exactly",
    ),
    "array_api_strict": Traits(library="array-api-strict"),
}
"""The traits of known libraries."""
