"""The specification over CuPy arrays: the forward call, ``moments``, ``merge_moments`` and ``fold``.

Everything runs on the current stream of the arrays' device, and nothing here waits for it. The host therefore sees no
values: where the specification demands an error about a value, the channel's results are NaN (see ``docs/cupy.md``).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import cupy
import numpy as np

from polybn.spec import Affine, Arguments, BatchNormResult, Moments
from polybn_cupy import calls, launch
from polybn_cupy.derivatives import Residuals
from polybn_cupy.layout import pack_vector
from polybn_cupy.plan import THREADS
from polybn_cupy.sources import COUNTS, STORED

Array = Any


class Outputs(NamedTuple):
    """The arrays that :func:`normalize` writes; None for those that are not needed."""

    y: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    normalizers: Array | None = None
    """The numbers m1, delta, r and exponent of S2, S3 and S10 for each channel, shape (4, C)."""
    count: Array | None = None  # type: ignore[assignment]  # it hides tuple.count
    """Values that took part, by channel. In training only, as the three that follow."""
    mean: Array | None = None
    m2: Array | None = None
    low: Array | None = None


def forward(arguments: Arguments, *, differentiable: bool) -> tuple[BatchNormResult, Residuals]:
    """Normalize in one kernel (S1 to S12); ``y`` has the memory layout of ``x``.

    NaN takes the place of errors about values: in y, where a running variance is negative, NaN or infinite in
    inference; in the running variance, where ``where`` leaves one value and ``running_variance`` is ``"unbiased"``.
    """
    x, old = arguments.x, (arguments.running_mean, arguments.running_var)
    with x.device:
        y = cupy.empty_like(x)
        if not x.size:
            return BatchNormResult(y, *(None if vector is None else vector.copy() for vector in old)), Residuals()
        new = [None if vector is None else cupy.empty(vector.shape, vector.dtype) for vector in old]
        normalizers = counts = None
        if differentiable:
            normalizers = cupy.empty((4, arguments.channels), arguments.dtype)
            if arguments.training and arguments.where is not None:
                counts = cupy.empty(arguments.channels, np.int64)
        normalize(arguments, Outputs(y, new[0], new[1], normalizers, counts))
        return BatchNormResult(y, *new), Residuals(normalizers, counts)


def normalize(arguments: Arguments, outputs: Outputs) -> None:
    """Launch ``forward`` of forward.cu or ``inference`` of inference.cu, on the current stream.

    Running statistics may be written over the old ones.
    """
    y, *pointers = outputs
    vectors = (arguments.gamma, arguments.beta, arguments.running_mean, arguments.running_var)
    tail = b"".join(map(pack_vector, vectors))
    if arguments.training:
        momentum = arguments.momentum
        tail += calls.pointers(*pointers)
        tail += struct.pack("<3dq", arguments.eps, momentum, 1 - momentum, arguments.unbiased)
    else:
        tail += calls.pointers(*pointers[:3]) + struct.pack("<d", arguments.eps)
    kernel = calls.FORWARD if arguments.training else calls.INFERENCE
    calls.sweep(kernel, (arguments.x, y), arguments, tail)


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15), in one kernel."""
    x, channels, dtype = arguments.x, arguments.channels, arguments.dtype
    with x.device:
        make = cupy.empty if x.size else cupy.zeros
        found = Moments(make(channels, np.int64), *(make(channels, dtype) for _ in range(3)))
        if x.size:
            normalize(arguments, Outputs(count=found.count, mean=found.mean, m2=found.m2, low=found.low))
        return found


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
    with a.mean.device:
        vectors = (a.count, a.mean, a.m2, a.mean)
        whole = Moments(*(cupy.empty(vector.shape, vector.dtype) for vector in vectors))
        arguments = struct.pack("<q", a.count.size) + b"".join(map(pack_vector, (*a, *b))) + calls.pointers(*whole)
        count = COUNTS[a.count.dtype.kind, a.count.itemsize]
        _each(f"merge<{count}, {STORED[a.mean.dtype.name]}>", a.count.size, arguments)
        return whole


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``.

    A channel whose running variance is negative, NaN or infinite gives NaN instead of an error.
    """
    channels, dtype = arguments.channels, arguments.dtype
    with arguments.running_mean.device:
        affine = Affine(cupy.empty(channels, dtype), cupy.empty(channels, dtype))
        vectors = (arguments.gamma, arguments.beta, arguments.running_mean, arguments.running_var)
        packed = struct.pack("<q", channels) + b"".join(map(pack_vector, vectors))
        packed += calls.pointers(*affine) + struct.pack("<d", arguments.eps)
        _each(f"fold<{STORED[dtype]}>", channels, packed)
        return affine


def _each(expression: str, size: int, arguments: bytes) -> None:
    """Launch a kernel of vectors.cu with a thread for each channel."""
    if size:
        launch.kernel("vectors.cu", expression)(-(-size // THREADS), arguments)
