"""The same values in other places of memory: what no result may depend on (S1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polybn.conformance.cases import Array


def _with_step(array: Array, step: int) -> Array:
    """Spread an array over ``|step|`` times as much memory along each axis, backwards if step is negative."""
    spread = np.zeros([abs(step) * n for n in array.shape], array.dtype)
    view = spread[tuple(slice(None, None, step) for _ in array.shape)]
    view[...] = array
    return view


def _channels_last(array: Array) -> Array:
    return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1) if array.ndim > 1 else array.copy()


def _offset(array: Array) -> Array:
    flat = np.zeros(array.size + 3, array.dtype)
    flat[3:] = array.ravel()
    return flat[3:].reshape(array.shape)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": lambda a: np.array(a, order="C"),
    "Fortran": lambda a: np.array(a, order="F"),
    "channels last": _channels_last,
    "every second": lambda a: _with_step(a, 2),
    "backwards": lambda a: _with_step(a, -1),
    "every second, backwards": lambda a: _with_step(a, -2),
    "offset": _offset,
    "transposed": lambda a: a.swapaxes(0, -1).copy().swapaxes(0, -1),
}
"""Ways to lay the same array out in memory, by name."""
"""By name: functions from an array to one with the same values, laid out differently in fresh memory."""


def repeated(array: Array) -> Array | None:
    """Return the same values as a 0-stride view, where they repeat along an axis.

    Parameters
    ----------
    array : ndarray
        Any shape.

    Returns
    -------
    ndarray or None
        Read-only; None where no axis of two or more repeats.

    Examples
    --------
    >>> repeated(np.ones((2, 3))).strides
    (0, 0)
    """
    kept = array
    for axis, n in enumerate(array.shape):
        first = kept[(slice(None),) * axis + (slice(0, 1),)]
        if n > 1 and np.array_equal(np.broadcast_to(first, kept.shape), kept):
            kept = first
    return None if kept.shape == array.shape else np.broadcast_to(kept.copy(), array.shape)
