"""The passes over all values in compiled loops on MXNet's own memory: CPU contexts, where Numba is installed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from polybn.arguments import Problem
from polybn.spec import Array
from polybn_mxnet import columns, kernels, memory, rows
from polybn_mxnet.memory import Host
from polybn_mxnet.statistics import Statistics

NARROW = 16
"""Rows of fewer values are not worth a loop of their own."""
SMALL = 1 << 20
"""Below this many values a second thread costs more than it brings."""


def mask(where: Array | None, shape: tuple[int, ...], problem: Problem) -> tuple[None, Host]:
    """Count the values; masks are served by :data:`polybn_mxnet.rows.HOST`."""
    assert where is None
    return None, np.full(problem.channels, problem.count)


def measure(x: Array, problem: Problem, exponent: Host, kept: None, counts: Host) -> tuple[Host, Host, Host]:
    """Return ``m1``, ``delta`` and ``v`` (S2) of the values times ``2^-exponent``."""
    form, values = _Form(x, problem), _load(x, problem, exponent)
    (total,) = form.sums("sums", 1, values)
    m1 = (total / counts).astype(problem.dtype)
    rest, squares = form.sums("sums_about", 2, values, m1)
    delta, square = ((z / counts).astype(problem.dtype) for z in (rest, squares))
    return m1, delta, np.maximum(square - delta * delta, 0)


def largest(x: Array, problem: Problem, kept: None) -> Host:
    """Return the largest magnitude in each channel."""
    return rows.HOST.largest(x, problem, kept)


def normalize(
    x: Array, problem: Problem, s: Statistics, gamma: Host | None, beta: Host | None, kept: None, out: Array
) -> memory.Owned:
    """Write ``y`` and return ``xhat`` (S3); what is added for no beta is -0, which changes nothing."""
    xhat, target = memory.Owned(x, problem.dtype), _target(out, problem)
    scale = np.ones_like(s.r) if gamma is None else gamma
    shift = np.full_like(s.r, -0.0) if beta is None else beta
    values = _load(x, problem, s.exponent), s.m1, s.delta, s.r, scale, shift
    _Form(x, problem).run("normalize", *values, out=(xhat.view, target))
    _store(target, out)
    return xhat


def sums(dy: Array, xhat: memory.Owned, problem: Problem, kept: None) -> tuple[Host, Host]:
    """Return ``sum(g)`` and ``sum(g * xhat)`` of each channel (S13)."""
    total, products = _Form(dy, problem).sums("sums_with", 2, _load(dy, problem), xhat.view)
    return total, products


def project(
    dy: Array, xhat: memory.Owned, problem: Problem, means: tuple[Host, Host] | None, slopes: tuple[Host, Host],
    kept: None, out: Array,
) -> None:  # fmt: skip
    """Write ``(g - mean_g - xhat * mean_gx) * r * gamma``, or ``g * r * gamma`` without means (S13)."""
    form, g, target = _Form(dy, problem), _load(dy, problem), _target(out, problem)
    if means is None:
        form.run("multiply", g, *slopes, out=(target,))
    else:
        form.run("project", g, xhat.view, *means, *slopes, out=(target,))
    _store(target, out)


class _Form:
    """How the loops see the arrays of one call: along rows, or, where these are short, along columns."""

    def __init__(self, like: Array, problem: Problem) -> None:
        before = math.prod(like.shape[: problem.axis])
        self._lanes = problem.count // before
        self._channels, self._size = problem.channels, problem.channels * problem.count
        self._narrow = self._lanes < NARROW
        width = problem.channels * self._lanes
        self._shape: tuple[int, ...] = (before, width) if self._narrow else (before, problem.channels, self._lanes)

    def sums(self, kernel: str, count: int, *arguments: Host) -> list[Host]:
        """Run a kernel that adds up; return ``count`` sums of each channel."""
        totals = [np.empty(self._shape[1]) for _ in range(count)]
        self.run(kernel, *arguments, out=totals)
        lanes = self._lanes if self._narrow else 1
        return totals if lanes == 1 else [z.reshape(self._channels, lanes).sum(axis=1) for z in totals]

    def run(self, kernel: str, *arguments: Host, out: Sequence[Host]) -> None:
        """Run a kernel on all channels, in as many parts as there are threads."""
        work: Callable[..., None] = getattr(columns if self._narrow else kernels, kernel)
        given, results = ([self._seen(array) for array in arrays] for arrays in (arguments, out))
        parts = 1 if self._size < SMALL else min(threads(), self._channels)
        bounds = [self._shape[1] * part // parts for part in range(parts + 1)]
        pairs = itertools.pairwise(bounds[1:])
        others = [_pool(os.getpid()).submit(work, *given, low, high, *results) for low, high in pairs]
        work(*given, 0, bounds[1], *results)
        for other in others:
            other.result()

    def _seen(self, array: Host) -> Host:
        if array.ndim > 1:
            return array.reshape(self._shape)
        return array if array.size == self._shape[1] else np.repeat(array, self._lanes)


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


def _load(array: Array, problem: Problem, exponent: Host | None = None) -> Host:
    """Look at the values, or at wider copies of halves; copy them to scale them (S10)."""
    values = memory.values(array).astype(problem.dtype, copy=False)
    if exponent is None or not exponent.any():
        return values
    return np.ldexp(values, -exponent.reshape(-1, *(1,) * (values.ndim - 1 - problem.axis)))


def _target(array: Array, problem: Problem) -> Host:
    view = memory.view_settled(array)
    return view if view.dtype == problem.dtype else np.empty(view.shape, problem.dtype)


def _store(target: Host, array: Array) -> None:
    if target.dtype != np.dtype(array.dtype):
        memory.store(target, array)
