"""The specification over MXNet arrays: ``batch_norm``, ``batch_norm_vjp``, ``moments``, ``merge_moments``, ``fold``."""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn.arguments import (
    check_arrays,
    check_fold,
    check_merge_moments,
    check_negative_variance,
    fail_single_value,
)
from polybn.spec import Affine, Array, BatchNormResult, Moments, RunningVariance
from polybn_mxnet import memory, statistics, tape
from polybn_mxnet.case import Case, of_batch_norm, of_moments
from polybn_mxnet.derivatives import Call, Pullback
from polybn_mxnet.memory import Host
from polybn_mxnet.passes import Passes, choose
from polybn_mxnet.statistics import Settings, Statistics


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
    case = of_moments("moments", memory.described(x), axis, memory.described(where))
    where = where if memory.deletes(where) else None  # a mask that deletes nothing gives the bits of none
    passes = choose(case, where)
    with np.errstate(all="ignore"):
        kept, counts = _mask(passes, where, x, case)
        mean, m2 = (np.zeros(case.channels, case.dtype) for _ in range(2))
        if x.size:
            s = _measure(passes, x, case, 0.0, kept, counts)
            mean, m2 = s.mean(), np.ldexp(s.v * counts, 2 * s.exponent).astype(case.dtype)
    return Moments(*(memory.send(z, x) for z in (counts.astype(np.int64), mean, m2)))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15); see :func:`polybn.merge_moments`."""
    check_merge_moments("MXNet", memory.is_array, a, b)
    memory.check_contexts(
        "merge_moments",
        **{f"a.{k}": memory.described(v) for k, v in a._asdict().items()},
        **{f"b.{k}": memory.described(v) for k, v in b._asdict().items()},
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
    memory.check_contexts("fold", **{name: memory.described(array) for name, array in arrays.items()})
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
    given = [memory.described(array) for array in (*arrays.values(), where)]
    case = of_batch_norm(
        function, *given, training=training, momentum=momentum, eps=eps, axis=axis, running_variance=running_variance
    )
    y, settings = memory.new(case.x, type(x)), Settings(float(momentum), float(eps), running_variance)
    call, *running = compute(function, arrays, case, y, training, settings, where)
    pairs = zip(running, (running_mean, running_var), strict=True)
    context = case.x.context
    result = BatchNormResult(y, *(None if new is None else memory.place(new, context, type(old)) for new, old in pairs))
    tape.record(call, y)
    return result, call


def compute(
    function: str,
    arrays: dict[str, Array | None],
    case: Case,
    y: Array,
    training: bool,
    settings: Settings,
    where: Array | None = None,
) -> tuple[Call, Host | None, Host | None]:
    """Write ``y``; return what its derivative needs, and the running statistics. Only values are yet to be checked."""
    x: Array
    x, *vectors = arrays.values()
    where = where if memory.deletes(where) else None  # a mask that deletes nothing gives the bits of none
    passes = choose(case, where)
    if training and where is None and passes.train is not None and case.channels * case.count:
        done = passes.train(x, case, vectors, settings, y)
        if done is not None:
            counts = np.full(case.channels, case.count)
            call = Call(arrays, passes, case, True, None, counts, done.statistics, done.gamma, done.xhat)
            return call, done.running_mean, done.running_var
    return _compute(function, passes, arrays, case, y, training, settings, where)


def _compute(
    function: str,
    passes: Passes,
    arrays: dict[str, Array | None],
    case: Case,
    y: Array,
    training: bool,
    settings: Settings,
    where: Array | None,
) -> tuple[Call, Host | None, Host | None]:
    x: Array = arrays["x"]
    gamma, beta, mean, variance = map(memory.vector, list(arrays.values())[1:])
    with tape.paused(), np.errstate(all="ignore"):
        kept, counts = _mask(passes, where, x, case)
        if training and settings.running_variance == "unbiased" and np.any(counts == 1):
            fail_single_value(function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
        if not training:
            _check_variance(function, variance)
            s = statistics.from_running(mean, variance, settings.eps)
        elif x.size:
            s = _measure(passes, x, case, settings.eps, kept, counts)
            if mean is not None and variance is not None:
                mean, variance = _update(mean, variance, s, settings, counts)
        else:
            s = _nothing(case)
        xhat = passes.normalize(x, case, s, gamma, beta, kept, y) if x.size else None
    return Call(arrays, passes, case, training, kept, counts, s, gamma, xhat), mean, variance


def _mask(passes: Passes, where: Array | None, x: Array, case: Case) -> tuple[Any, Host]:
    if x.size:
        return passes.mask(where, x.shape, case)
    return None, np.zeros(case.channels, np.int64)


def _measure(passes: Passes, x: Array, case: Case, eps: float, kept: Any, counts: Host) -> Statistics:
    exponent = np.zeros(case.channels, np.int32)
    m1, delta, v = passes.measure(x, case, exponent, kept, counts)
    strayed = statistics.out_of_range(v, eps)
    if strayed.any():
        exponent = np.where(strayed, statistics.exponents(passes.largest(x, case, kept), eps), exponent)
        m1, delta, v = passes.measure(x, case, exponent, kept, counts)
    r = statistics.inverse_root(v, np.ldexp(v.dtype.type(eps), -2 * exponent))
    return Statistics(m1, delta, v, r, exponent)


def _update(mean: Host, variance: Host, s: Statistics, settings: Settings, counts: Host) -> tuple[Host, Host]:
    batch, momentum = s.variance(), settings.momentum
    if settings.running_variance == "unbiased":
        batch = (batch * (counts / np.maximum(counts - 1, 1))).astype(batch.dtype)
    return statistics.blend(mean, s.mean(), momentum, counts), statistics.blend(variance, batch, momentum, counts)


def _nothing(case: Case) -> Statistics:
    zero = np.zeros(case.channels, case.dtype)
    return Statistics(zero, zero, zero, zero, np.zeros(case.channels, np.int32))


def _check_variance(function: str, running_var: Host) -> None:
    bad = ~((running_var >= 0) & (running_var < np.inf))
    if bad.any():
        first = int(np.argmax(bad))
        check_negative_variance(function, int(bad.sum()), first, float(running_var[first]))
