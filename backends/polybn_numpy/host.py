"""Batch norm in the compiled host kernels: this file passes them the memory of NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import polybn_host
from polybn.spec import Arguments, Gradients
from polybn_numpy.call import Residuals, Results

Array = NDArray[Any]

_without = ContextVar("without_kernels", default=False)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Compute in plain NumPy within this block, as if the kernels were not compiled."""
    token = _without.set(True)
    try:
        yield
    finally:
        _without.reset(token)


def serves() -> bool:
    """Return whether the kernels are compiled and wanted."""
    return polybn_host.missing is None and not _without.get()


def normalize(arguments: Arguments, counts: NDArray[np.int64] | None, results: Results) -> None:
    """Run the forward pass into ``results``."""
    x, where, y = arguments.x, _whole_mask(arguments), results.y
    layout = polybn_host.geometry(
        x.shape, arguments.axis, _name(x.dtype), x.strides, () if y is None else y.strides, (), _strides(where)
    )
    polybn_host.forward(
        layout,
        (x, where, counts, arguments.gamma, arguments.beta, arguments.running_mean, arguments.running_var),
        results,
        momentum=arguments.momentum,
        eps=arguments.eps,
        training=arguments.training,
        unbiased=arguments.unbiased,
    )


def differentiate(arguments: Arguments, residuals: Residuals, dy: Array, gradients: Gradients) -> None:
    """Run the backward pass into ``gradients``."""
    x, where, dx = arguments.x, _whole_mask(arguments), gradients.x
    layout = polybn_host.geometry(
        x.shape, arguments.axis, _name(x.dtype), x.strides, dx.strides, dy.strides, _strides(where)
    )
    polybn_host.backward(
        layout,
        (x, where, residuals.counts, arguments.gamma, dy, residuals.saved),
        gradients,
        eps=arguments.eps,
        training=arguments.training,
    )


def bad_variances(arguments: Arguments) -> bool:
    """Return whether some values of the running variance are no variance."""
    return polybn_host.bad_variances(arguments.running_var, arguments.dtype)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, and for the structure that is MXNet's bfloat16 that of its only field.

    It is cached, because NumPy takes 2 microseconds for a name.
    """
    return dtype.names[0] if dtype.names else dtype.name


def _whole_mask(arguments: Arguments) -> Array | None:
    where = arguments.where
    return None if where is None else np.broadcast_to(where, arguments.x.shape)


def _strides(array: Array | None) -> tuple[int, ...]:
    return () if array is None else array.strides
