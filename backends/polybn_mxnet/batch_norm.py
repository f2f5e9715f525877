"""The specification over MXNet arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``."""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn.arguments import (
    Problem,
    check_arrays,
    check_batch_norm,
    check_fold,
    check_merge_moments,
    check_moments,
    check_negative_variance,
    fail_single_value,
)
from polybn.spec import Affine, Array, BatchNormResult, Moments, RunningVariance
from polybn_mxnet import memory, statistics, tape
from polybn_mxnet.derivatives import Call, Pullback
from polybn_mxnet.memory import Host
from polybn_mxnet.passes import Passes, choose
from polybn_mxnet.statistics import Statistics


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
    """Normalize MXNet arrays; see :func:`polybn.batch_norm`.

    Within ``mxnet.autograd.record()`` the output is recorded: ``backward`` reaches ``x``, ``gamma`` and ``beta``,
    and in inference ``running_mean`` and ``running_var``, too. ``training`` decides which derivative that is, whatever
    ``train_mode`` says.
    """
    return _forward(
        "batch_norm", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where,
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

    The pullback holds no argument: write to them as you please.
    """
    result, call = _forward(
        "batch_norm_vjp", x, gamma, beta, running_mean, running_var, training=training, momentum=momentum, eps=eps,
        axis=axis, running_variance=running_variance, where=where,
    )  # fmt: skip
    return result, Pullback(call)


def moments(x: Array, *, axis: int = 1, where: Array | None = None) -> Moments:
    """Return the mergeable statistics of an MXNet array; see :func:`polybn.moments`."""
    check_arrays("moments", "MXNet", memory.is_array, x=x, where=where)
    problem = check_moments("moments", memory.described(x), axis=axis, where=where)
    memory.check_contexts("moments", x=x, where=where)
    where = where if memory.deletes(where) else None  # a mask that deletes nothing gives the bits of none
    passes = choose(x, where)
    with np.errstate(all="ignore"):
        kept, counts = _mask(passes, where, x, problem)
        mean, m2 = (np.zeros(problem.channels, problem.dtype) for _ in range(2))
        if x.size:
            s = _measure(passes, x, problem, 0.0, kept, counts)
            mean, m2 = s.mean(), np.ldexp(s.v * counts, 2 * s.exponent).astype(problem.dtype)
    return Moments(*(memory.send(z, x) for z in (counts.astype(np.int64), mean, m2)))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15); see :func:`polybn.merge_moments`."""
    check_merge_moments("MXNet", memory.is_array, a, b)
    memory.check_contexts(
        "merge_moments",
        **{f"a.{k}": v for k, v in a._asdict().items()},
        **{f"b.{k}": v for k, v in b._asdict().items()},
    )
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = (map(memory.vector, part) for part in (a, b))
    count = n_a + n_b
    share = n_b / np.maximum(count, 1)
    with np.errstate(all="ignore"):
        distance = mean_b.astype(np.float64) - mean_a
        mean = (mean_a + distance * share).astype(mean_a.dtype)
        m2 = (m2_a.astype(np.float64) + m2_b + distance * distance * share * n_a).astype(m2_a.dtype)
    conditions = [n_b == 0, n_a == 0]
    merged = count, np.select(conditions, [mean_a, mean_b], mean), np.select(conditions, [m2_a, m2_b], m2)
    return Moments(*(memory.send(host, like) for host, like in zip(merged, a, strict=True)))


def fold(
    gamma: Array | None, beta: Array | None, running_mean: Array, running_var: Array, *, eps: float = 1e-5
) -> Affine:
    """Turn inference into ``scale * x + shift``; see :func:`polybn.fold`."""
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays("fold", "MXNet", memory.is_array, **arrays)
    check_fold(**arrays, eps=eps)
    memory.check_contexts("fold", **arrays)
    scale_by, shift_by, mean, variance = map(memory.vector, arrays.values())
    _check_variance("fold", variance)
    with np.errstate(all="ignore"):
        scale = statistics.inverse_root(variance, variance.dtype.type(eps))
        if scale_by is not None:
            scale *= scale_by
        shift = -mean * scale
        if shift_by is not None:
            shift += shift_by
    return Affine(memory.send(scale, running_mean), memory.send(shift, running_mean))


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
) -> tuple[BatchNormResult, Call]:
    arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    check_arrays(function, "MXNet", memory.is_array, **arrays, where=where)
    problem = check_batch_norm(
        function, memory.described(x), gamma, beta, running_mean, running_var, training=training, momentum=momentum,
        eps=eps, axis=axis, running_variance=running_variance, where=where,
    )  # fmt: skip
    memory.check_contexts(function, **arrays, where=where)
    y = memory.empty(x) if x.size else memory.send(np.empty(x.shape, x.dtype), x)
    call, *running = compute(
        function, arrays, problem, y, training=training, momentum=float(momentum), eps=float(eps),
        running_variance=running_variance, where=where,
    )  # fmt: skip
    pairs = zip(running, (running_mean, running_var), strict=True)
    result = BatchNormResult(y, *(None if new is None else memory.send(new, old) for new, old in pairs))
    tape.record(call, result.y)
    return result, call


def compute(
    function: str,
    arrays: dict[str, Array | None],
    problem: Problem,
    y: Array,
    *,
    training: bool,
    momentum: float,
    eps: float,
    running_variance: str,
    where: Array | None = None,
) -> tuple[Call, Any, Any]:
    """Write ``y``; return what its derivative needs, and the running statistics. Only values are yet to be checked."""
    x: Array
    x, *vectors = arrays.values()
    where = where if memory.deletes(where) else None  # a mask that deletes nothing gives the bits of none
    passes = choose(x, where)
    gamma, beta, mean, variance = (memory.vector(a) for a in vectors)
    with tape.paused(), np.errstate(all="ignore"):
        kept, counts = _mask(passes, where, x, problem)
        if training and running_variance == "unbiased" and np.any(counts == 1):
            fail_single_value(function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
        if not training:
            _check_variance(function, variance)
            s = statistics.from_running(mean, variance, eps)
        elif x.size:
            s = _measure(passes, x, problem, eps, kept, counts)
            if mean is not None and variance is not None:
                mean, variance = _update(mean, variance, s, momentum, counts, running_variance)
        else:
            s = _nothing(problem)
        xhat = passes.normalize(x, problem, s, gamma, beta, kept, y) if x.size else None
    return Call(arrays, passes, problem, training, kept, counts, s, gamma, xhat), mean, variance


def _mask(passes: Passes, where: Array | None, x: Array, problem: Problem) -> tuple[Any, Host]:
    if x.size:
        return passes.mask(where, x.shape, problem)
    return None, np.zeros(problem.channels, np.int64)


def _measure(passes: Passes, x: Array, problem: Problem, eps: float, kept: Any, counts: Host) -> Statistics:
    exponent = np.zeros(problem.channels, np.int32)
    m1, delta, v = passes.measure(x, problem, exponent, kept, counts)
    strayed = statistics.out_of_range(v, eps)
    if strayed.any():
        exponent = np.where(strayed, statistics.exponents(passes.largest(x, problem, kept), eps), exponent)
        m1, delta, v = passes.measure(x, problem, exponent, kept, counts)
    r = statistics.inverse_root(v, np.ldexp(v.dtype.type(eps), -2 * exponent))
    return Statistics(m1, delta, v, r, exponent)


def _update(
    mean: Host, variance: Host, s: Statistics, momentum: float, counts: Host, running_variance: str
) -> tuple[Host, Host]:
    batch = s.variance()
    if running_variance == "unbiased":
        batch = (batch * (counts / np.maximum(counts - 1, 1))).astype(batch.dtype)
    return statistics.blend(mean, s.mean(), momentum, counts), statistics.blend(variance, batch, momentum, counts)


def _nothing(problem: Problem) -> Statistics:
    zero = np.zeros(problem.channels, problem.dtype)
    return Statistics(zero, zero, zero, zero, np.zeros(problem.channels, np.int32))


def _check_variance(function: str, running_var: Host) -> None:
    bad = ~((running_var >= 0) & (running_var < np.inf))
    if bad.any():
        first = int(np.argmax(bad))
        check_negative_variance(function, int(bad.sum()), first, float(running_var[first]))
