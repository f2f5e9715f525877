"""The passes over all values in compiled loops on MXNet's own memory: CPU contexts, where Numba is installed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from polybn.arguments import Problem
from polybn.spec import Array
from polybn_mxnet import kernels, memory, rows
from polybn_mxnet.memory import Host
from polybn_mxnet.statistics import Statistics

SMALL = 1 << 20
"""Below this many values a second thread costs more than it brings."""


def mask(where: Array | None, shape: tuple[int, ...], problem: Problem) -> tuple[None, Host]:
    """Count the values; masks are served by :data:`polybn_mxnet.rows.HOST`."""
    assert where is None
    return None, np.full(problem.channels, problem.count)


def measure(x: Array, problem: Problem, exponent: Host, kept: None, counts: Host) -> tuple[Host, Host, Host]:
    """Return ``m1``, ``delta`` and ``v`` (S2) of the values times ``2^-exponent``."""
    values = _load(x, problem, exponent)
    total, rest, squares = np.empty((3, problem.channels))
    _spread(problem, kernels.sums, values, out=(total,))
    m1 = (total / counts).astype(problem.dtype)
    _spread(problem, kernels.sums_about, values, m1, out=(rest, squares))
    delta, square = ((z / counts).astype(problem.dtype) for z in (rest, squares))
    return m1, delta, np.maximum(square - delta * delta, 0)


def largest(x: Array, problem: Problem, kept: None) -> Host:
    """Return the largest magnitude in each channel."""
    return rows.HOST.largest(x, problem, kept)


def normalize(
    x: Array, problem: Problem, s: Statistics, gamma: Host | None, beta: Host | None, kept: None, out: Array
) -> memory.Owned:
    """Write ``y`` and return ``xhat`` (S3); what is added for no beta is -0, which changes nothing."""
    xhat = memory.Owned(x, problem.dtype)
    values, target = _load(x, problem, s.exponent), _target(out, problem)
    scale = np.ones_like(s.r) if gamma is None else gamma
    shift = np.full_like(s.r, -0.0) if beta is None else beta
    columns = s.m1, s.delta, s.r, scale, shift
    _spread(problem, kernels.normalize, values, *columns, out=(_split(xhat.view, problem), target))
    _store(target, out)
    return xhat


def sums(dy: Array, xhat: memory.Owned, problem: Problem, kept: None) -> tuple[Host, Host]:
    """Return ``sum(g)`` and ``sum(g * xhat)`` of each channel (S13)."""
    total, products = np.empty((2, problem.channels))
    _spread(problem, kernels.sums_with, _load(dy, problem), _split(xhat.view, problem), out=(total, products))
    return total, products


def project(
    dy: Array, xhat: memory.Owned, problem: Problem, means: tuple[Host, Host] | None, slopes: tuple[Host, Host],
    kept: None, out: Array,
) -> None:  # fmt: skip
    """Write ``(g - mean_g - xhat * mean_gx) * r * gamma``, or ``g * r * gamma`` without means (S13)."""
    g, target = _load(dy, problem), _target(out, problem)
    if means is None:
        _spread(problem, kernels.scale, g, *slopes, out=(target,))
    else:
        _spread(problem, kernels.project, g, _split(xhat.view, problem), *means, *slopes, out=(target,))
    _store(target, out)


def _spread(problem: Problem, kernel: Callable[..., None], *arguments: Any, out: tuple[Any, ...]) -> None:
    """Run a kernel on all channels, in as many parts as there are threads."""
    parts = 1 if problem.channels * problem.count < SMALL else min(threads(), problem.channels)
    bounds = [problem.channels * part // parts for part in range(parts + 1)]
    if parts == 1:
        kernel(*arguments, 0, problem.channels, *out)
        return
    pairs = itertools.pairwise(bounds[1:])
    others = [_pool(os.getpid()).submit(kernel, *arguments, low, high, *out) for low, high in pairs]
    kernel(*arguments, 0, bounds[1], *out)
    for other in others:
        other.result()


@cache
def threads() -> int:
    """Return how many threads compute: as many as MXNet's own."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    # One for each process: a fork, as by Gluon's DataLoader, takes no threads along.
    return ThreadPoolExecutor(threads(), thread_name_prefix="polybn-mxnet")


def _load(array: Array, problem: Problem, exponent: Host | None = None) -> Host:
    """Look at the values, or at wider copies of halves, as ``(A, C, B)``; copy them to scale them (S10)."""
    values = _split(memory.values(array).astype(problem.dtype, copy=False), problem)
    return values if exponent is None or not exponent.any() else np.ldexp(values, -exponent[:, None])


def _target(array: Array, problem: Problem) -> Host:
    view = memory.view_settled(array)
    return _split(view if view.dtype == problem.dtype else np.empty(view.shape, problem.dtype), problem)


def _store(target: Host, array: Array) -> None:
    if target.dtype != np.dtype(array.dtype):
        memory.store(target.reshape(array.shape), array)


def _split(values: Host, problem: Problem) -> Host:
    before = math.prod(values.shape[: problem.axis])
    return values.reshape((before, problem.channels, problem.count // before))
