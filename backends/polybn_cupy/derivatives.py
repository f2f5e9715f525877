"""Clause S13 over CuPy arrays: the first and the second derivative of a call."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import cupy

from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_cupy import calls
from polybn_cupy.layout import pack_vector

Array = Any


class Residuals(NamedTuple):
    """The arrays that a forward call saves for its derivative."""

    normalizers: Array | None = None
    """The numbers m1, delta, r and exponent of S2, S3 and S10 for each channel, shape (4, C)."""
    counts: Array | None = None
    """Number of values that took part, by channel; None if all did."""


def backward(arguments: Arguments, residuals: Residuals, dy: Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13), in one kernel."""
    inference = not arguments.training
    with arguments.x.device:
        wanted = (arguments.gamma is not None, arguments.beta is not None, inference, inference)
        gradients = Gradients(cupy.empty_like(arguments.x), *(_vector(arguments, want) for want in wanted))
        if arguments.x.size:
            differentiate(arguments, residuals, dy, gradients)
        return gradients


def differentiate(arguments: Arguments, residuals: Residuals, dy: Array, gradients: Gradients) -> None:
    """Launch ``backward`` of backward.cu, on the current stream; it writes the gradients that are not None."""
    dx, *vectors = gradients
    tail = _saved(arguments, residuals) + calls.pointers(*vectors) + struct.pack("<q", arguments.training)
    calls.sweep(calls.BACKWARD, (arguments.x, dy, dx), arguments, tail)


def double_backward(arguments: Arguments, residuals: Residuals, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`, in one kernel; see :class:`polybn.pullback.SecondPullback`."""
    inference = not arguments.training
    with arguments.x.device:
        a = cupy.zeros_like(dy) if cotangents.x is None else cotangents.x
        of_dy, of_x = cupy.empty_like(dy), cupy.empty_like(arguments.x)
        vectors = [_vector(arguments, want) for want in (arguments.gamma is not None, inference, inference)]
        if arguments.x.size:
            tail = _saved(arguments, residuals) + b"".join(map(pack_vector, cotangents[1:]))
            tail += calls.pointers(*vectors) + struct.pack("<q", arguments.training)
            calls.sweep(calls.SECOND, (arguments.x, dy, a, of_dy, of_x), arguments, tail)
        return SecondGradients(of_dy, of_x, *vectors)


def _saved(arguments: Arguments, residuals: Residuals) -> bytes:
    """Pack the arguments that ``saved`` of sums.cuh reads."""
    return pack_vector(arguments.gamma) + calls.pointers(residuals.normalizers) + pack_vector(residuals.counts)


def _vector(arguments: Arguments, wanted: bool) -> Array | None:
    """Allocate a per-channel result, which the kernel writes; zeros if there are no values and so no kernel."""
    make = cupy.empty if arguments.x.size else cupy.zeros
    return make(arguments.channels, arguments.dtype) if wanted else None
