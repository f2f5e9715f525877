"""The same values in other memory layouts, which no result may depend on (S1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polybn.conformance.cases import Array

GAP = 77
"""The number that fills the gaps before and between the values: code that reads it gets wrong results."""


def _with_step(array: Array, step: int) -> Array:
    """Spread an array over ``|step|`` times as much memory along each axis, backwards if step is negative."""
    spread = np.full([abs(step) * n for n in array.shape], GAP, array.dtype)
    view = spread[tuple(slice(None, None, step) for _ in array.shape)]
    view[...] = array
    return view


def _channels_last(array: Array) -> Array:
    return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1) if array.ndim > 1 else array.copy()


def _offset(array: Array) -> Array:
    flat = np.full(array.size + 3, GAP, array.dtype)
    flat[3:] = array.ravel()
    return flat[3:].reshape(array.shape)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C order": lambda a: np.array(a, order="C"),
    "Fortran order": lambda a: np.array(a, order="F"),
    "channels last in memory": _channels_last,
    "every second element": lambda a: _with_step(a, 2),
    "negative strides": lambda a: _with_step(a, -1),
    "every second element, backwards": lambda a: _with_step(a, -2),
    "an offset view": _offset,
    "transposed order": lambda a: a.swapaxes(0, -1).copy().swapaxes(0, -1),
}
"""Functions, by name, that copy an array into fresh memory with another layout."""


def repeated(array: Array) -> Array | None:
    """Return the same values as a read-only view with strides of 0; None if they do not repeat along any axis.

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
