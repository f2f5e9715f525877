"""The specification over CuPy arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``.

Everything runs on the current stream of the arrays' device, and nothing here waits for it. So the host looks at no values:
where the specification's error depends on one, the channel's results are NaN instead (see ``docs/cupy.md``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import cupy
import numpy as np

from polybn.arguments import (
    Problem,
    check_arrays,
    check_batch_norm,
    check_fold,
    check_merge_moments,
    check_moments,
)
from polybn.spec import Affine, BackendError, BatchNormResult, Moments, RunningVariance
from polybn_cupy import launch, plan
from polybn_cupy.layout import NO_ARRAY, NO_VECTOR, lay_out, pack_vector, vector_length

Array = Any

# The structs that forward.cu keeps in shared memory for each node and channel, and the words of a node.
NODE_WORDS = 5
FORWARD = plan.Pass(tiles=1, node_bytes=8 * NODE_WORDS, channel_bytes=64)
SLOPE_BYTES = 32


class Call(NamedTuple):
    """One forward call: what it was given, and what it leaves for the pullback."""

    x: Array
    gamma: Array | None
    beta: Array | None
    where: Array | None
    """Of the shape of x."""
    normalizers: Array | None
    """Of shape (4, C): m1, delta, r and exponent of S2, S3 and S10."""
    counts: Array | None
    """Values that took part, by channel; None where all did."""
    problem: Problem
    training: bool


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
) -> tuple[BatchNormResult, Any]:
    """Normalize and return the derivative, too; see :func:`polybn.batch_norm_vjp`.

    The pullback holds references to ``x``, ``gamma`` and ``where``, not copies: do not write to them before it ran.
    """
    from polybn_cupy.derivatives import Pullback

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
        # By width and sign: the platform's names for one width differ.
        count = _COUNTS[a.count.dtype.kind, a.count.itemsize]
        _each("vectors.cu", f"merge<{count}, {launch.STORED[a.mean.dtype.name]}>", a.count.size, arguments)
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
        _each("vectors.cu", f"fold<{launch.STORED[running_mean.dtype.name]}>", running_mean.size, arguments)
        return affine


def is_array(value: object) -> bool:
    """Tell an ndarray from the subclasses that change its meaning."""
    return type(value) is cupy.ndarray


def check_device(function: str, **arrays: Array | None) -> Any:
    """Return the one device that all arrays are on."""
    given = {name: array for name, array in arrays.items() if array is not None}
    numbers = {name: array.device.id for name, array in given.items()}
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{name}: device {number}" for name, number in numbers.items())
        raise BackendError(
            f"polybn.{function}: all arrays must be on one device; got {listed} "
            "(nothing is moved between devices: do so before the call)"
        )
    return next(iter(given.values())).device


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


Vectors = tuple[Array | None, Array | None, Array | None, Array | None]
_NONE: Vectors = (None, None, None, None)


def train(
    x: Array,
    y: Array | None,
    mask: Array | None,
    problem: Problem,
    *,
    vectors: Vectors = _NONE,
    outputs: Mapping[str, Array | None],
    eps: float = 0.0,
    momentum: float = 0.0,
    unbiased: bool = False,
    sigmoid: bool = False,
) -> None:
    """Launch ``forward`` of forward.cu; ``y`` None measures only. The outputs are named as in its arguments."""
    together = [array for array in (x, y, mask) if array is not None]
    layout = lay_out(together, problem.axis)
    length = vector_length(layout, [array for array in (x, y) if array is not None])
    compiled = launch.kernel("forward.cu", f"forward<{launch.STORED[x.dtype.name]}, {length}>")
    tiling = plan.divide(
        layout, x.itemsize, FORWARD, launch.device(), compiled.resident, masked=mask is not None
    )  # fmt: skip
    mail, group = post(tiling, NODE_WORDS)
    names = ("new_mean", "new_var", "normalizers", "count", "mean", "m2")
    arguments = b"".join((
        tiling.pack(layout), *pack_arrays(layout, (x, y, mask)), *map(pack_vector, vectors),
        pointers(*(outputs.get(name) for name in names)),
        struct.pack("<3d2q", eps, momentum, 1 - momentum, unbiased, sigmoid), group,
    ))  # fmt: skip
    launch.run(compiled, tiling, arguments)
    del mail  # not earlier: what the launch uses belongs to this stream until here


def infer(
    x: Array,
    y: Array,
    mask: Array | None,
    problem: Problem,
    *,
    vectors: Vectors,
    outputs: Mapping[str, Array | None],
    eps: float,
    sigmoid: bool = False,
) -> None:
    """Launch ``inference`` of inference.cu."""
    layout = lay_out([array for array in (x, y, mask) if array is not None], problem.axis)
    length = vector_length(layout, (x, y))
    compiled = launch.kernel("inference.cu", f"inference<{launch.STORED[x.dtype.name]}, {length}>")
    tiling = plan.stretch(layout, x.itemsize, SLOPE_BYTES, launch.device())
    arguments = b"".join((
        tiling.pack(layout), *pack_arrays(layout, (x, y, mask)), *map(pack_vector, vectors),
        pointers(*(outputs.get(name) for name in ("new_mean", "new_var", "normalizers"))),
        struct.pack("<dq", eps, sigmoid),
    ))  # fmt: skip
    compiled(tiling.blocks, arguments, shared=tiling.shared_bytes)


def post(tiling: plan.Tiling, words: int) -> tuple[Array | None, bytes]:
    """Return memory for the mail of groups, and the struct ``Group``."""
    if tiling.members == 1:
        return None, pointers(None, None)
    mail = cupy.empty((tiling.blocks, 2, tiling.channels, words), np.float64)
    return mail, pointers(mail, launch.barriers())


def pack_arrays(layout: Any, arrays: tuple[Array | None, ...]) -> list[bytes]:
    """Return a struct ``Array`` for each; the layout describes those that are not None, in this order."""
    packed, index = [], 0
    for array in arrays:
        packed.append(NO_ARRAY if array is None else layout.pack_array(index, array.data.ptr))
        index += array is not None
    return packed


def pointers(*arrays: Array | None) -> bytes:
    """Return the addresses of contiguous arrays, 0 for None."""
    return struct.pack(f"<{len(arrays)}Q", *(0 if array is None else array.data.ptr for array in arrays))


_COUNTS = {
    ("i", 1): "signed char", ("i", 2): "short", ("i", 4): "int", ("i", 8): "long long",
    ("u", 1): "unsigned char", ("u", 2): "unsigned short", ("u", 4): "unsigned", ("u", 8): "unsigned long long",
}  # fmt: skip


def _each(file: str, expression: str, size: int, arguments: bytes) -> None:
    if size:
        launch.kernel(file, expression)(-(-size // plan.THREADS), arguments)


def _broadcast(where: Array | None, x: Array) -> Array | None:
    return None if where is None else cupy.broadcast_to(where, x.shape)


def _like(vector: Array | None) -> Array | None:
    return None if vector is None else cupy.empty(vector.shape, vector.dtype)
