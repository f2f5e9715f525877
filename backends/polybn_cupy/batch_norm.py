"""The specification over CuPy arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``.

Everything runs on the current stream of the arrays' device, and nothing here waits for it. So the host looks at
no values: where the specification's error depends on one, the channel's results are NaN instead (see ``docs/cupy.md``).
"""

from __future__ import annotations

import struct
from typing import Any

import cupy
import numpy as np

from polybn.arguments import (
    check_arrays,
    check_batch_norm,
    check_fold,
    check_merge_moments,
    check_moments,
)
from polybn.spec import Affine, BatchNormResult, Moments, RunningVariance
from polybn_cupy import launch, plan
from polybn_cupy.calls import Call, check_device, infer, is_array, pointers, train
from polybn_cupy.derivatives import Pullback
from polybn_cupy.layout import pack_vector
from polybn_cupy.sources import COUNTS, STORED

Array = Any


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
) -> BatchNormResult:
    """Normalize CuPy arrays in one kernel; see :func:`polybn.batch_norm`.

    ``y`` has the memory layout of ``x``. In inference, a channel whose running variance is negative, NaN or infinite
    gives NaN instead of an error, and so does the running variance of a channel of which ``where`` leaves one value
    to ``running_variance="unbiased"``: to look at either, the host would have to wait for the device.
    """
    return _forward(
        "batch_norm", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where, differentiable=False,
    )[0]  # fmt: skip


def batch_norm_vjp(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
) -> tuple[BatchNormResult, Pullback]:
    """Normalize and return the derivative, too; see :func:`polybn.batch_norm_vjp`.

    The pullback holds references to ``x``, ``gamma`` and ``where``, not copies: do not write to them before it ran.
    """
    result, call = _forward(
        "batch_norm_vjp", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where, differentiable=True,
    )  # fmt: skip
    return result, Pullback(call)


def moments(x: Array, *, axis: int = 1, where: Array | None = None) -> Moments:
    """Return the mergeable statistics of a CuPy array; see :func:`polybn.moments`."""
    check_arrays("moments", "CuPy", is_array, x=x, where=where)
    problem = check_moments("moments", x, axis=axis, where=where)
    device = check_device("moments", x=x, where=where)
    with device:
        make = cupy.empty if x.size else cupy.zeros
        count, mean, m2 = (make(problem.channels, dtype) for dtype in (np.int64, problem.dtype, problem.dtype))
        if x.size:
            train(x, None, _broadcast(where, x), problem, outputs={"count": count, "mean": mean, "m2": m2})
        return Moments(count, mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15); see :func:`polybn.merge_moments`."""
    check_merge_moments("CuPy", is_array, a, b)
    fields = {f"a.{name}": value for name, value in a._asdict().items()}
    fields |= {f"b.{name}": value for name, value in b._asdict().items()}
    with check_device("merge_moments", **fields):
        whole = Moments(*(cupy.empty(part.shape, part.dtype) for part in a))
        arguments = struct.pack("<q", a.count.size) + b"".join(map(pack_vector, (*a, *b))) + pointers(*whole)
        count = COUNTS[a.count.dtype.kind, a.count.itemsize]
        _each("vectors.cu", f"merge<{count}, {STORED[a.mean.dtype.name]}>", a.count.size, arguments)
        return whole


def fold(
    gamma: Array | None, beta: Array | None, running_mean: Array, running_var: Array, *, eps: float = 1e-5
) -> Affine:
    """Turn inference into ``scale * x + shift``; see :func:`polybn.fold`.

    A channel whose running variance is negative, NaN or infinite gives NaN instead of an error.
    """
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays("fold", "CuPy", is_array, **arrays)
    check_fold(**arrays, eps=eps)
    with check_device("fold", **arrays):
        affine = Affine(*(cupy.empty(running_mean.shape, running_mean.dtype) for _ in range(2)))
        arguments = struct.pack("<q", running_mean.size) + b"".join(map(pack_vector, arrays.values()))
        arguments += pointers(*affine) + struct.pack("<d", float(eps))
        _each("vectors.cu", f"fold<{STORED[running_mean.dtype.name]}>", running_mean.size, arguments)
        return affine


def _forward(
    function: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    axis: int,
    running_variance: str,
    where: Array | None,
    differentiable: bool,
) -> tuple[BatchNormResult, Call]:
    arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays(function, "CuPy", is_array, **arrays, where=where)
    problem = check_batch_norm(
        function, *arrays.values(), training=training, momentum=momentum, eps=eps, axis=axis,
        running_variance=running_variance, where=where,
    )  # fmt: skip
    with check_device(function, **arrays, where=where):
        mask, y = _broadcast(where, x), cupy.empty_like(x)
        new_mean, new_var = (_like(vector) for vector in (running_mean, running_var))
        normalizers = cupy.empty((4, problem.channels), problem.dtype) if differentiable else None
        counts = cupy.empty(problem.channels, np.int64) if differentiable and training and mask is not None else None
        outputs = {"new_mean": new_mean, "new_var": new_var, "normalizers": normalizers, "count": counts}
        call = Call(x, gamma, beta, mask, normalizers, counts, problem, training)
        vectors = (gamma, beta, running_mean, running_var)
        if not x.size:
            old = (running_mean, running_var)
            return BatchNormResult(y, *(None if vector is None else vector.copy() for vector in old)), call
        if training:
            train(
                x, y, mask, problem, vectors=vectors, outputs=outputs, eps=float(eps), momentum=float(momentum),
                unbiased=running_variance == "unbiased",
            )  # fmt: skip
        else:
            infer(x, y, mask, problem, vectors=vectors, outputs=outputs, eps=float(eps))
        return BatchNormResult(y, new_mean, new_var), call


def _each(file: str, expression: str, size: int, arguments: bytes) -> None:
    if size:
        launch.kernel(file, expression)(-(-size // plan.THREADS), arguments)


def _broadcast(where: Array | None, x: Array) -> Array | None:
    return None if where is None else cupy.broadcast_to(where, x.shape)


def _like(vector: Array | None) -> Array | None:
    return None if vector is None else cupy.empty(vector.shape, vector.dtype)
