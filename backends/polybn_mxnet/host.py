"""CPU contexts: an NDArray in host memory is host memory, so the functions that serve NumPy serve it where it lies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

import polybn_numpy
from polybn.spec import Arguments, Array, Description, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays
from polybn_mxnet.arrays import BFLOAT16, Host

shared: Any = polybn_numpy
"""Batch norm on host memory: compiled kernels, and NumPy where they were not compiled."""

ARRAYS = Arguments._fields[1:7]
"""The names of the arrays of a call."""


def hold(arguments: Arguments) -> Arguments:
    """Copy the arrays of a call: what is written to them later, or waits for the derivative, does not touch it."""
    seen = _seen(arguments)
    copies: dict[str, Any] = {name: copy.copy(getattr(seen, name)) for name in ARRAYS}
    return seen._replace(**copies)


def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Any]:
    """Write ``y``; return the running statistics, and what the derivative needs."""
    out = _target(y)
    result, residuals = shared.forward(_seen(arguments)._replace(own={"out": out}), differentiable=True)
    if out is None:
        arrays.write(result.y, y)
    return result.running_mean, result.running_var, residuals


def backward(arguments: Arguments, residuals: Any, dy: Array, into: Mapping[str, Array]) -> None:
    """Write the gradients that are wanted, by name (S13)."""
    out = _target(into["x"]) if "x" in into else None
    gradients = shared.backward(_seen(arguments), residuals, arrays.values(dy), out=out)._asdict()
    for name, array in into.items():
        if name != "x" or out is None:
            arrays.write(gradients[name], array)


def double_backward(arguments: Arguments, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`, from the start, for arrays of any context; the results are on the host."""
    fetched: dict[str, Any] = {name: arrays.fetch(getattr(arguments, name)) for name in ARRAYS}
    given = arguments._replace(**fetched)
    residuals = shared.forward(given, differentiable=True)[1]
    found: SecondGradients = shared.double_backward(
        given, residuals, arrays.fetch(dy), Gradients(*map(arrays.fetch, cotangents))
    )
    return found


def moments(arguments: Arguments) -> Moments:
    """Measure ``x``; the results are on the host."""
    found: Moments = shared.moments(_seen(arguments))
    return found


def _seen(arguments: Arguments) -> Arguments:
    """Put views of their memory in the place of arrays; what is on the host already stays as it is."""
    vector = Description((arguments.channels,), arguments.dtype)
    views: dict[str, Any] = {}
    for name in ARRAYS:
        array = getattr(arguments, name)
        if array is not None and not isinstance(array, np.ndarray):
            what = None if name in ("x", "where") else vector
            views[name] = arrays.wide(arrays.view(array, what))
    return arguments._replace(**views)


def _target(array: Array) -> Host | None:
    """View the memory of a result; None for bfloat16, which is rounded afterwards."""
    view = arrays.view_settled(array)
    return None if view.dtype == BFLOAT16 else view
