"""One call of batch norm, and its results, as host arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from polybn.spec import RunningVariance

Array = NDArray[Any]

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


class Case(NamedTuple):
    """The arguments of one call, and a cotangent of its output."""

    x: Array
    gamma: Array | None
    beta: Array | None
    running_mean: Array | None
    running_var: Array | None
    dy: Array
    where: NDArray[np.bool_] | None = None
    training: bool = True
    momentum: float = 0.75
    eps: float = 1e-5
    axis: int = 1
    running_variance: RunningVariance = "biased"

    def arrays(self) -> dict[str, Array | None]:
        """Return the arguments that may be given by position."""
        names = ("x", "gamma", "beta", "running_mean", "running_var")
        return {name: getattr(self, name) for name in names}

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments without ``where``."""
        names = ("training", "momentum", "eps", "axis", "running_variance")
        return {name: getattr(self, name) for name in names}

    def moved(self, axis: int) -> Case:
        """Return the same problem with the channel axis at another place."""
        x, dy = (np.ascontiguousarray(np.moveaxis(a, self.axis, axis)) for a in (self.x, self.dy))
        where = None if self.where is None else np.moveaxis(np.broadcast_to(self.where, self.x.shape), self.axis, axis)
        return self._replace(x=x, dy=dy, where=where, axis=axis)


class Outcome(NamedTuple):
    """Everything that a call and its pullback return, on the host; None if it was not computed."""

    y: Array
    running_mean: Array | None = None
    running_var: Array | None = None
    dx: Array | None = None
    dgamma: Array | None = None
    dbeta: Array | None = None
    drunning_mean: Array | None = None
    drunning_var: Array | None = None


def statistics_dtype(x: Array) -> np.dtype[Any]:
    """Return the dtype of parameters and statistics that belongs to ``x`` (S6)."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def case_of(x: Array, vectors: Iterable[Any], dy: Array, **options: Any) -> Case:
    """Make a case; the vectors are gamma, beta, running_mean and running_var, cast to the dtype that belongs to x."""
    gamma, beta, mean, var = (np.asarray(v).astype(statistics_dtype(x)) for v in vectors)
    return Case(x, gamma, beta, mean, var, dy, **options)


def same(a: Outcome, b: Outcome) -> bool:
    """Return whether two outcomes agree to the bit; signs of zero and NaN payloads are ignored."""
    return all(equal(x, y) for x, y in zip(a, b, strict=True))


def equal(a: Array | None, b: Array | None) -> bool:
    """Return whether two arrays agree in dtype, shape and values; NaN equals NaN."""
    if a is None or b is None:
        return a is b
    wide = (a.astype(np.float64), b.astype(np.float64))
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(*wide, equal_nan=True)


def rows(array: Array, axis: int) -> NDArray[np.float64]:
    """Return a copy as float64 rows, one per channel, in the order of S1."""
    first = np.moveaxis(array, axis, 0)
    return first.astype(np.float64).reshape(first.shape[0], -1)
