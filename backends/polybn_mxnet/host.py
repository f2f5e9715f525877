"""CPU contexts: the memory of an NDArray is host memory, so the functions that serve NumPy arrays can work on it."""

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
"""Batch norm on host memory: compiled kernels, or plain NumPy if they are not compiled."""

ARRAYS = Arguments._fields[1:7]
"""The names of the arrays of a call."""


def hold(arguments: Arguments) -> Arguments:
    """Copy the arrays of a call, so that later writes to them do not change the derivative."""
    seen = _seen(arguments)
    copies: dict[str, Any] = {name: copy.copy(getattr(seen, name)) for name in ARRAYS}
    return seen._replace(**copies)


def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Any]:
    """Write ``y``; return the running statistics and the residuals for the derivative."""
    out = _target(y)
    result, residuals = shared.forward(_seen(arguments)._replace(own={"out": out}), differentiable=True)
    if out is None:
        arrays.write(result.y, y)
    return result.running_mean, result.running_var, residuals


def backward(arguments: Arguments, residuals: Any, dy: Array, into: Mapping[str, Array]) -> None:
    """Write the wanted gradients, by name (S13)."""
    out = _target(into["x"]) if "x" in into else None
    gradients = shared.backward(_seen(arguments), residuals, _known(arrays.view(dy)), out=out)._asdict()
    for name, array in into.items():
        if name != "x" or out is None:
            arrays.write(gradients[name], array)


def double_backward(arguments: Arguments, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward` for arrays of any context, on the host; the forward call is made again."""
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
    """Replace arrays by views of their memory; arrays that are on the host already stay."""
    vector = Description((arguments.channels,), arguments.dtype)
    views: dict[str, Any] = {name: getattr(arguments, name) for name in ARRAYS}
    for name, array in views.items():
        if array is not None and not isinstance(array, np.ndarray):
            views[name] = arrays.view(array, None if name in ("x", "where") else vector)
    views["x"] = _known(views["x"])
    return arguments._replace(**views)


def _known(host: Host) -> Host:
    """Copy bfloat16 to float32 for plain NumPy, which does not know it; the compiled kernels do."""
    return host if polybn_numpy.host.serves() else arrays.wide(host)


def _target(array: Array) -> Host | None:
    """View the memory of a result; return None if the result has another dtype, and is rounded afterwards."""
    view = arrays.view_settled(array)
    return view if view.dtype != BFLOAT16 or polybn_numpy.host.serves() else None
