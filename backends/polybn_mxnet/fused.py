"""The passes over all values in compiled loops on MXNet's own memory: CPU contexts, where Numba is installed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numpy as np

from polybn.spec import Array
from polybn_mxnet import handles, layouts, memory, rows, whole
from polybn_mxnet.case import Case
from polybn_mxnet.memory import Host
from polybn_mxnet.statistics import Settings, Statistics, smallest

SMALL = 1 << 20
"""Below this many values a second thread costs more than it brings."""


def mask(where: Array | None, shape: tuple[int, ...], case: Case) -> tuple[None, Host]:
    """Count the values; masks are served by :data:`polybn_mxnet.rows.HOST`."""
    assert where is None
    return None, np.full(case.channels, case.count)


def train(x: Array, case: Case, vectors: list[Array | None], settings: Settings, out: Array) -> rows.Trained | None:
    """Write ``y`` and return all that a forward pass in training finds, or None where S10 has work to do."""
    channels, dtype = case.channels, case.dtype
    gamma, beta, mean, variance = (0 if array is None else _read(array) for array in vectors)
    (values, _held), (target, result) = _source(x, case), _destination(out, case)
    xhat, s = memory.Owned(_shape(case), dtype), np.empty((7, channels), dtype)
    given = (
        values, gamma, beta, mean, variance, settings.momentum, settings.eps,
        settings.correction(case.count), smallest(dtype), xhat.view, s,
    )  # fmt: skip
    if any(_share(whole.forward, case, *given, out=(target,))):
        return None
    if result is not None:
        memory.store(result, out)
    m1, delta, v, r, scale, new_mean, new_variance = s
    statistics = Statistics(m1, delta, v, r, _exponents(channels))
    running = (new_mean, new_variance) if mean else (None, None)
    return rows.Trained(statistics, scale if gamma else None, xhat, *running)


def measure(x: Array, case: Case, exponent: Host, kept: None, counts: Host) -> tuple[Host, Host, Host]:
    """Return ``m1``, ``delta`` and ``v`` (S2) of the values times ``2^-exponent``."""
    values = _load(x, case, exponent)
    total, squares = np.empty((2, case.channels))
    _share(layouts.sums, case, values, out=(total,))
    m1 = (total / counts).astype(case.dtype)
    _share(layouts.sums_about, case, values, m1, out=(total, squares))
    delta, square = ((z / counts).astype(case.dtype) for z in (total, squares))
    return m1, delta, np.maximum(square - delta * delta, 0)


def largest(x: Array, case: Case, kept: None) -> Host:
    """Return the largest magnitude in each channel."""
    return rows.HOST.largest(x, case, kept)


def normalize(
    x: Array, case: Case, s: Statistics, gamma: Host | None, beta: Host | None, kept: None, out: Array
) -> memory.Owned:
    """Write ``y`` and return ``xhat`` (S3)."""
    zeros, ones = _neutral(case.channels, case.dtype)
    values, target = _load(x, case, s.exponent), _target(out, case)
    xhat = memory.Owned(values.shape, case.dtype)
    scale, shift = ones if gamma is None else gamma, zeros if beta is None else beta
    _share(layouts.normalize, case, values, s.m1, s.delta, s.r, scale, shift, out=(xhat.view, target))
    _store(target, out, case)
    return xhat


def sums(dy: Array, xhat: memory.Owned, case: Case, kept: None) -> tuple[Host, Host]:
    """Return ``sum(g)`` and ``sum(g * xhat)`` of each channel (S13)."""
    total, products = np.empty((2, case.channels))
    _share(layouts.sums_with, case, _load(dy, case), xhat.view, out=(total, products))
    return total, products


def project(
    dy: Array, xhat: memory.Owned, case: Case, means: tuple[Host, Host], slopes: tuple[Host, Host], kept: None,
    out: Array,
) -> None:  # fmt: skip
    """Write ``(g - mean_g - xhat * mean_gx) * r * gamma`` (S13)."""
    target = _target(out, case)
    _share(layouts.project, case, _load(dy, case), xhat.view, *means, *slopes, out=(target,))
    _store(target, out, case)


def pull(
    dy: Array, xhat: memory.Owned, case: Case, counts: Host, training: bool, slopes: tuple[Host, Host], kept: None,
    out: Array | None,
) -> tuple[Host, Host]:  # fmt: skip
    """Write the gradient of x, where it is wanted; return ``sum(g)`` and ``sum(g * xhat)`` (S13)."""
    s = np.empty((2, case.channels), case.dtype)
    (values, _held), (target, result) = _source(dy, case), (0, None) if out is None else _destination(out, case)
    _share(whole.backward, case, values, xhat.view, *slopes, training, s, out=(target,))
    if out is not None and result is not None:
        memory.store(result, out)
    return s[0], s[1]


def _share(work: Callable[..., Any], case: Case, *given: Any, out: tuple[Host | int, ...]) -> list[Any]:
    """Run a kernel on all channels, in as many parts as there are threads."""
    channels = case.channels
    parts = 1 if channels * case.count < SMALL else min(threads(), channels)
    if parts == 1:
        return [work(*given, 0, channels, *out)]
    bounds = [channels * part // parts for part in range(parts + 1)]
    pairs = itertools.pairwise(bounds[1:])
    others = [_begin(work, *given, low, high, *out) for low, high in pairs]
    return [work(*given, 0, bounds[1], *out), *(other.result() for other in others)]


def _begin(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    try:
        return _pool(os.getpid()).submit(work, *arguments)
    except RuntimeError:  # Python ends its pools before it waits for what MXNet is still to compute
        result = Future[Any]()
        result.set_result(work(*arguments))
        return result


@cache
def threads() -> int:
    """Return how many threads compute: as many as MXNet's own."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    # One for each process: a fork, as by Gluon's DataLoader, takes no threads along.
    return ThreadPoolExecutor(threads(), thread_name_prefix="polybn-mxnet")


@lru_cache
def _neutral(channels: int, dtype: str) -> tuple[Host, Host]:
    # What is added for no beta is -0, which changes nothing. Not read-only: Numba would compile for that once more.
    return np.full(channels, -0.0, dtype), np.ones(channels, dtype)


@lru_cache
def _exponents(channels: int) -> Host:
    return np.zeros(channels, np.int32)


def _read(array: Array) -> int:
    handles.wait_to_read(array.handle)
    return handles.address(array.handle)


def _source(array: Array, case: Case) -> tuple[int, Host | None]:
    """Tell where values are: their own memory, or that of a wider copy of halves, to be held meanwhile."""
    if case.x.dtype == case.dtype:
        return _read(array), None
    values = _load(array, case)
    return values.ctypes.data, values


def _destination(array: Array, case: Case) -> tuple[int, Host | None]:
    """Tell where to write: an array's own memory, or some other where this is of halves, to be stored afterwards."""
    if case.x.dtype == case.dtype:
        return handles.address(array.handle), None
    values = np.empty(case.x.shape, case.dtype)
    return values.ctypes.data, values


def _load(array: Array, case: Case, exponent: Host | None = None) -> Host:
    """Look at the values, or at wider copies of halves, as ``(A, C, B)``; copy them to scale them (S10)."""
    if case.x.dtype == case.dtype:
        handles.wait_to_read(array.handle)
        values = handles.view(array.handle, _shape(case), case.dtype)
    else:
        values = memory.values(array).reshape(_shape(case)).astype(case.dtype, copy=False)
    return values if exponent is None or not exponent.any() else np.ldexp(values, -exponent[:, None])


def _target(array: Array, case: Case) -> Host:
    """Look at memory to write to, or take some other where this is of halves."""
    if case.x.dtype == case.dtype:
        return handles.view(array.handle, _shape(case), case.dtype)
    return np.empty(_shape(case), case.dtype)


def _store(target: Host, array: Array, case: Case) -> None:
    if case.x.dtype != case.dtype:
        memory.store(target.reshape(case.x.shape), array)


def _shape(case: Case) -> tuple[int, int, int]:
    before = math.prod(case.x.shape[: case.axis])
    return before, case.channels, case.count // before
