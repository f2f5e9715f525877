"""Residuals, result arrays and counts of a forward call, which the kernels and plain NumPy share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.arguments import dtype_name, fail_variance
from polybn.spec import Arguments, DTypeError, ShapeError
from polybn_numpy import memory

Array = NDArray[Any]


class Residuals(NamedTuple):
    """The arrays that a forward call saves for its derivative."""

    counts: NDArray[np.int64] | None
    """Number of values that take part, per channel; None if all do."""
    saved: NDArray[np.float64]
    """``m1``, ``delta``, ``v``, ``r``, and 1 where the channel left the range (S10), in rows: shape ``(5, C)``."""


class Results(NamedTuple):
    """Arrays for the results of a forward call; None for results that are not wanted."""

    y: Array | None
    running_mean: Array | None
    running_var: Array | None
    mean: Array | None
    m2: Array | None
    saved: NDArray[np.float64] | None


def count_kept(arguments: Arguments) -> NDArray[np.int64] | None:
    """Count the values that ``where`` keeps, per channel; return None without a mask."""
    if arguments.where is None:
        return None
    whole = np.broadcast_to(arguments.where, arguments.x.shape)
    others = tuple(k for k in range(whole.ndim) if k != arguments.axis)
    return np.asarray(np.count_nonzero(whole, axis=others), np.int64)


def check_variances(function: str, variance: Array) -> None:
    """Refuse values that are no variance: negative, NaN or infinite."""
    bad = ~((variance >= 0) & (variance < np.inf))
    if bad.any():
        first = int(np.argmax(bad))
        fail_variance(function, int(bad.sum()), first, float(variance[first]))


def make_result(function: str, arguments: Arguments, out: Array | None, dy: Array | None = None) -> Array:
    """Return ``out`` if results like ``x`` can be written into it, else a new array in the memory order of ``x``.

    They cannot if ``out`` may overlap an input or has another byte order; the result is then copied at the end.
    """
    x = arguments.x
    if out is not None:
        _check_out(function, out, x)
        if out.dtype.isnative and not any(_may_overlap(out, array) for array in (*arrays_of(arguments), dy)):
            return out
    return memory.empty_like(x, x.dtype if x.dtype.isnative else x.dtype.newbyteorder("="))


def _may_overlap(out: Array, array: Array | None) -> bool:
    if array is None or (array.flags.owndata and out.flags.owndata and array is not out):
        return False
    return np.may_share_memory(out, array)


def arrays_of(arguments: Arguments) -> tuple[Array | None, ...]:
    """Return the arrays of a call."""
    _, x, gamma, beta, mean, variance, where, *_ = arguments
    return x, gamma, beta, mean, variance, where


def native(array: Array | None) -> Array | None:
    """Convert an array to the byte order of the machine."""
    if array is None or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def hand_over(result: Array, like: Array, out: Array | None) -> Array:
    """Return the result in ``out`` if that is given, else in the byte order of ``like``."""
    if out is None:
        return result if like.dtype.isnative else result.astype(like.dtype)
    if out is not result:
        np.copyto(out, result)
    return out


def _check_out(function: str, out: Any, like: Array) -> None:
    if type(out) not in (np.ndarray, np.memmap):
        raise DTypeError(
            f"polybn.{function}: out must be a plain NumPy array; got {type(out).__qualname__} "
            "(results are written into it)"
        )
    if out.shape != like.shape:
        raise ShapeError(f"polybn.{function}: out must have shape {like.shape}; got {out.shape} (the result's shape)")
    if out.dtype != like.dtype:
        raise DTypeError(
            f"polybn.{function}: out must have dtype {dtype_name(like.dtype)}; got {dtype_name(out.dtype)} "
            "(the result's dtype)"
        )
    if not out.flags.writeable:
        raise ShapeError(
            f"polybn.{function}: out must be writeable; got a read-only array (results are written into it)"
        )
