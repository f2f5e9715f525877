"""CPU contexts: an NDArray in host memory is host memory, so what serves NumPy's arrays serves it where it lies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

import polybn_numpy as shared
from polybn.spec import Affine, Arguments, Array, Description, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays
from polybn_mxnet.arrays import Host


def hold(arguments: Arguments) -> Arguments:
    """Copy the arrays of a call, so that what is written to them later does not reach its derivative."""
    return copy.deepcopy(_seen(arguments))


def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Any]:
    """Write ``y``; return the running statistics, and what the derivative needs."""
    result, residuals = shared.forward(_seen(arguments), differentiable=True)
    arrays.write(result.y, y)
    return result.running_mean, result.running_var, residuals


def backward(arguments: Arguments, residuals: Any, dy: Array, dx: Array) -> Gradients:
    """Write ``dx``; return the other gradients (S13)."""
    gradients = shared.backward(_seen(arguments), residuals, arrays.values(dy))
    arrays.write(gradients.x, dx)
    return gradients


def double_backward(arguments: Arguments, residuals: Any, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`; the results are on the host."""
    given = Gradients(*(None if z is None else arrays.values(z) for z in cotangents))
    return shared.double_backward(_seen(arguments), residuals, arrays.values(dy), given)


def moments(arguments: Arguments) -> Moments:
    """Measure ``x``; the results are on the host."""
    return shared.moments(_seen(arguments))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts, which are on the host."""
    return shared.merge_moments(a, b)


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``; the vectors are on the host."""
    return shared.fold(arguments)


def _seen(arguments: Arguments) -> Arguments:
    """Put views of their memory in the place of arrays."""
    vector = Description((arguments.channels,), arguments.dtype)
    gamma, beta, mean, var = (_view(z, vector) for z in arguments[2:6])
    return arguments._replace(
        x=_view(arguments.x), gamma=gamma, beta=beta, running_mean=mean, running_var=var, where=_view(arguments.where)
    )


def _view(array: Any, what: Description | None = None) -> Any:
    """View an array; what is None or on the host already stays as it is."""
    return array if array is None or isinstance(array, np.ndarray) else arrays.values(array, what)
