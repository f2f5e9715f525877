"""CPU contexts: an NDArray in host memory is host memory, so the compiled kernels serve it where it lies.

Where they were not compiled, and for second derivatives, NumPy does on views of the same memory.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

import polybn_host as kernels
import polybn_numpy
from polybn.arguments import fail_single_value, fail_variance
from polybn.spec import Arguments, Array, Description, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays
from polybn_mxnet.arrays import Host

plain: Any = polybn_numpy
"""The same functions without compiled kernels, on NumPy arrays."""


class Residuals(NamedTuple):
    """What a forward call of the kernels leaves for its derivative, beside its arguments."""

    counts: Host | None
    """Number of values that take part, per channel; None without a mask."""
    saved: Host
    """The statistics, as the kernels keep them."""


def hold(arguments: Arguments) -> Arguments:
    """Copy what the derivative of a call reads, so that what is written there later does not reach it."""
    read = ("x", "gamma", "where") if arguments.training else ("x", "gamma", "where", "running_mean", "running_var")
    given = {name: getattr(arguments, name) for name in read}
    copies: dict[str, Any] = {name: None if z is None else arrays.view(z).copy() for name, z in given.items()}
    return arguments._replace(**copies)


def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Any]:
    """Write ``y``; return the running statistics, and what the derivative needs."""
    if kernels.missing or not arguments.channels * arguments.m:
        result, residuals = plain.forward(_seen(arguments), differentiable=True)
        arrays.write(result.y, y)
        return result.running_mean, result.running_var, residuals
    counts = _counts(arguments)
    _check_values(arguments, counts)
    mean, var = (None, None) if arguments.running_mean is None else _vectors(2, arguments)
    saved = _run(arguments, counts, arrays.describe(y), (y, mean, var, None, None))
    if not arguments.training:
        mean, var = map(_view, arguments[4:6])
    return mean, var, Residuals(counts, saved)


def backward(arguments: Arguments, residuals: Any, dy: Array, into: Mapping[str, Array]) -> None:
    """Write the gradients that are wanted, by name (S13)."""
    if not isinstance(residuals, Residuals):
        gradients = plain.backward(_seen(arguments), residuals, arrays.values(dy))._asdict()
        for name, array in into.items():
            arrays.write(gradients[name], array)
        return
    given = arguments.x, arguments.where, residuals.counts, arguments.gamma, dy, residuals.saved
    kernels.backward(
        _geometry(arguments, arrays.describe(dy)), [*map(_address, given)],
        [_address(into.get(name)) for name in Gradients._fields], eps=arguments.eps, training=arguments.training,
    )  # fmt: skip


def double_backward(arguments: Arguments, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`, from the start, for arrays of any context; the results are on the host."""
    x, gamma, beta, mean, var, where = map(arrays.fetch, arguments[1:7])
    given = arguments._replace(x=x, gamma=gamma, beta=beta, running_mean=mean, running_var=var, where=where)
    residuals = plain.forward(given, differentiable=True)[1]
    return plain.double_backward(given, residuals, arrays.fetch(dy), Gradients(*map(arrays.fetch, cotangents)))


def moments(arguments: Arguments) -> Moments:
    """Measure ``x``; the results are on the host."""
    if kernels.missing or not arguments.channels * arguments.m:
        return plain.moments(_seen(arguments))
    counts = _counts(arguments)
    mean, m2 = _vectors(2, arguments)
    _run(arguments, counts, arrays.describe(arguments.x), (None, None, None, mean, m2))
    return Moments(np.full(arguments.channels, arguments.m) if counts is None else counts, mean, m2)


def _run(arguments: Arguments, counts: Host | None, what: Description, results: tuple[Any, ...]) -> Host:
    """Run the forward pass of the kernels on arrays like ``what``; return what their backward pass needs."""
    saved = np.empty((5, arguments.channels))
    given = arguments.x, arguments.where, counts, *arguments[2:6]
    kernels.forward(
        _geometry(arguments, what), [*map(_address, given)], [*map(_address, (*results, saved))],
        momentum=arguments.momentum, eps=arguments.eps, training=arguments.training, unbiased=arguments.unbiased,
    )  # fmt: skip
    return saved


def _geometry(arguments: Arguments, what: Description) -> Any:
    strides = () if arguments.where is None else _mask(arguments, what.shape).strides
    return _contiguous(what.shape, arguments.axis, what.dtype, strides)


@lru_cache(maxsize=1024)
def _contiguous(shape: tuple[int, ...], axis: int, dtype: str, where: tuple[int, ...]) -> Any:
    """Describe memory in the order in which MXNet's arrays always lie."""
    sizes = itertools.accumulate(reversed(shape), operator.mul, initial=arrays.itemsize(dtype))
    strides = tuple(sizes)[-2::-1]
    return kernels.geometry(shape, axis, dtype, strides, strides, strides, where)


def _address(array: Any) -> int:
    """Tell where an array of either library begins; 0 stands for None."""
    if array is None:
        return 0
    return int(array.ctypes.data) if isinstance(array, np.ndarray) else arrays.address(array)


def _vectors(number: int, arguments: Arguments) -> Host:
    return np.empty((number, arguments.channels), arguments.dtype)


def _mask(arguments: Arguments, shape: tuple[int, ...]) -> Host:
    return np.broadcast_to(_view(arguments.where), shape)


def _counts(arguments: Arguments) -> Host | None:
    """Count what the mask keeps in each channel."""
    if arguments.where is None:
        return None
    axes = tuple(axis for axis in range(len(arguments.x.shape)) if axis != arguments.axis)
    return np.count_nonzero(_mask(arguments, arguments.x.shape), axis=axes).astype(np.int64)


def _check_values(arguments: Arguments, counts: Host | None) -> None:
    if not arguments.training:
        bad, first = kernels.bad_variances(_address(arguments.running_var), arguments.channels, arguments.dtype)
        if bad:
            fail_variance(arguments.function, bad, first, float(_view(arguments.running_var)[first]))
    elif arguments.unbiased and counts is not None and np.any(counts == 1):
        fail_single_value(arguments.function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")


def _seen(arguments: Arguments) -> Arguments:
    """Put views of their memory in the place of arrays, for NumPy."""
    x, gamma, beta, mean, var, where = map(_view, arguments[1:7])
    return arguments._replace(x=arrays.wide(x), gamma=gamma, beta=beta, running_mean=mean, running_var=var, where=where)


def _view(array: Any) -> Any:
    """View an array; what is None or on the host already stays as it is."""
    return array if array is None or isinstance(array, np.ndarray) else arrays.view(array)
