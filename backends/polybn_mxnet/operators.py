"""GPU contexts: the specification with the operators of ``mxnet.numpy``, which run in any context.

A row holds the values of one channel in the order of clause S1; rows are a matrix ``(C, m)`` in the type of the
statistics. Numbers per channel, such as the results of sums, are NumPy arrays on the host, where the clauses about them
are carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from polybn.arguments import fail_single_value
from polybn.spec import Arguments, Array, Gradients, Moments
from polybn_mxnet import arrays, host, statistics, tape
from polybn_mxnet.arrays import Host
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.statistics import Statistics
from polybn_numpy.kernels import inverse_root

Rows: TypeAlias = Any  # mxnet.numpy.ndarray, (C, m)

# Sums are made in float64 by matrix products with ones: BLAS adds up CHUNK values in several lanes, then the sums of
# the chunks in the same way. So a sum of float64 values errs by less than 64 u, and the equal differences of a constant
# channel add up exactly (S8). MXNet's own sums add one value after the other, and its products with ones in float32
# err by 3 u at a mean of 1e4.
CHUNK = 64


F = TypeVar("F", bound=Callable[..., Any])


def _aside(function: F) -> F:
    """Run a function without recording it on the tape, and without NumPy's floating-point warnings."""

    @wraps(function)
    def aside(*arguments: Any) -> Any:
        with tape.paused(), np.errstate(all="ignore"):
            return function(*arguments)

    return cast("F", aside)


class Residuals(NamedTuple):
    """The results of a forward call that its derivative needs; they share no memory with the caller's arrays.

    Only channels that leave the range of the operators' arithmetic also need the arrays of the call.
    """

    kept: Rows | None
    """The mask as rows; None if all values take part."""
    counts: Host
    """Number of values that take part, per channel."""
    statistics: Statistics
    gamma: Host | None
    xhat: Rows | None
    """The normalized values before gamma and beta; None if there are no values."""


@_aside
def hold(arguments: Arguments) -> Arguments:
    """Copy the arrays of a call, so that later writes to them do not change the derivative."""
    copies = {name: array.copy() for name in host.ARRAYS if (array := getattr(arguments, name)) is not None}
    return arguments._replace(**copies)


@_aside
def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Residuals]:
    """Write ``y``; return the running statistics and the residuals for the derivative."""
    training, size = arguments.training, arguments.channels * arguments.m
    gamma, beta, mean, variance = map(arrays.fetch, arguments[2:6])
    kept, counts = _mask(arguments)
    if training and arguments.unbiased and np.any(counts == 1):
        fail_single_value(arguments.function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
    if not training:
        assert mean is not None  # checked with the arguments
        assert variance is not None
        s = statistics.from_running(arguments, mean, variance)
    else:
        s = _measure(arguments, kept, counts)
        if size and mean is not None and variance is not None:
            mean, variance = statistics.update(arguments, (mean, variance), s, counts)
    xhat = None
    if size:
        given = _gather(arguments.x, arguments, kept)
        xhat = _standardize(given, s, kept)
        rows = xhat if gamma is None else _scaled(xhat, gamma)
        rows = rows if beta is None else rows + _column(beta, rows)
        _scatter(_keep(rows, kept), y, arguments)
        if training:
            strayed = statistics.strayed_in_training(s, gamma)
        else:
            strayed = statistics.strayed_in_inference(s, _row_largest(given), gamma)
        if strayed.any():
            again = host.shared.forward(_fetched(arguments), differentiable=False)[0]
            _replace_channels(y, again.y, strayed, arguments)
            pairs = (again.running_mean, mean), (again.running_var, variance)
            mean, variance = (old if new is None else np.where(strayed, new, old) for new, old in pairs)
    return mean, variance, Residuals(kept, counts, s, gamma, xhat)


@_aside
def backward(arguments: Arguments, residuals: Residuals, dy: Array, into: Mapping[str, Array]) -> None:
    """Write the wanted gradients, by name (S13)."""
    kept, counts, s, gamma, xhat = residuals
    strayed, again = np.zeros(arguments.channels, bool), Gradients(None, None, None, None, None)
    if xhat is None:
        vectors = [np.zeros(arguments.channels)] * 4
    else:
        g = _gather(dy, arguments, kept)
        strayed = statistics.strayed_in_derivative(s, _row_largest(g), _row_largest(xhat), gamma)
        sum_g, sum_gx = _sum(g), _sum(g * xhat)
        if arguments.training:
            m = np.maximum(counts, 1)
            g = g - _column(sum_g / m, g) - xhat * _column(sum_gx / m, g)
        rows, scale = (_scaled(g, s.r), s.r) if gamma is None else (_scaled(_scaled(g, s.r), gamma), s.r * gamma)
        if "x" in into:
            _scatter(_keep(rows, kept), into["x"], arguments)
        vectors = [sum_gx, sum_g, -scale * sum_g, -scale * s.r * sum_gx / 2]
    if strayed.any():
        fetched = _fetched(arguments)
        again = host.shared.backward(fetched, host.shared.forward(fetched, differentiable=True)[1], arrays.fetch(dy))
        if "x" in into:
            _replace_channels(into["x"], again.x, strayed, arguments)
    for name, vector, right in zip(Gradients._fields[1:], vectors, again[1:], strict=True):
        if name in into:
            # The sum of dy does not depend on x, not even on whether x is finite (S9).
            wrong = strayed & ~np.isfinite(vector) if name == "beta" else strayed
            mixed = vector if right is None else np.where(wrong, right, vector)
            arrays.write(mixed.astype(arguments.dtype), into[name])


@_aside
def moments(arguments: Arguments) -> Moments:
    """Measure ``x``; the results are on the host."""
    kept, counts = _mask(arguments)
    s = _measure(arguments, kept, counts)
    found = Moments(counts, s.mean(), (s.v * counts).astype(arguments.dtype), s.low())
    if not s.strayed.any():
        return found
    again = host.shared.moments(_fetched(arguments))
    return Moments(*(np.where(s.strayed, new, old) for new, old in zip(again, found, strict=True)))


def _gather(array: Array, arguments: Arguments, kept: Rows | None) -> Rows:
    """Arrange the values of an array like ``x`` in rows, with 0 in deleted places."""
    return _keep(_rows(arrays.widened(array, arguments.dtype), arguments), kept)


def _fetched(arguments: Arguments) -> Arguments:
    """Copy the arrays of a call to the host, where channels that leave the range are computed again (S10)."""
    return arguments._replace(**{name: arrays.fetch(getattr(arguments, name)) for name in host.ARRAYS})


def _replace_channels(array: Array, found: Host, strayed: Host, arguments: Arguments) -> None:
    """Write the values of some channels, which the host has computed, into a result."""
    places = [-1 if axis == arguments.axis else 1 for axis in range(found.ndim)]
    arrays.write(np.where(strayed.reshape(places), found, arrays.fetch(array)), array)


def _row_largest(rows: Rows) -> Host:
    return np.asarray(mx.np.max(mx.np.abs(rows), axis=1).asnumpy())


def _scaled(rows: Rows, vector: Host) -> Rows:
    """Multiply each row by its channel's number."""
    return rows * _column(vector, rows)


def _mask(arguments: Arguments) -> tuple[Rows | None, Host]:
    """Arrange the mask in rows, and count the values that it keeps."""
    where, shape = arguments.where, arguments.x.shape
    if where is None or 0 in shape:
        return None, np.full(arguments.channels, arguments.m)
    bytes_ = where.as_np_ndarray().astype("uint8")  # MXNet cannot transpose bool
    kept = _rows(mx.np.broadcast_to(bytes_, shape), arguments)
    counts = mx.np.sum(kept.astype("int64"), axis=1).asnumpy().astype(np.int64)
    return kept.astype("bool"), counts


def _measure(arguments: Arguments, kept: Rows | None, counts: Host) -> Statistics:
    """Measure ``x`` as S2 says."""
    if not arguments.channels * arguments.m:
        zero = np.zeros(arguments.channels, arguments.dtype)
        return Statistics(zero, zero, zero, zero, np.zeros(arguments.channels, bool))
    m1, delta, v = _center(_gather(arguments.x, arguments, kept), kept, counts)
    r = inverse_root(v, v.dtype.type(arguments.eps))
    return Statistics(m1, delta, v, r, statistics.out_of_range(v, arguments.eps))


def _center(rows: Rows, kept: Rows | None, counts: Host) -> tuple[Host, Host, Host]:
    """Return ``m1``, ``delta`` and ``v`` (S2)."""
    dtype, m = rows.dtype, np.maximum(counts, 1)
    m1 = (_sum(rows) / m).astype(dtype)
    rows = _keep(rows - _column(m1, rows), kept)
    delta, square = ((_sum(z) / m).astype(dtype) for z in (rows, rows * rows))
    return m1, delta, np.maximum(square - delta * delta, 0)


def _standardize(rows: Rows, s: Statistics, kept: Rows | None) -> Rows:
    """Return the normalized values before gamma and beta (S3)."""
    rows = rows - _column(s.m1, rows)
    if s.delta.any():
        rows = rows - _column(s.delta, rows)
    return _keep(_scaled(rows, s.r), kept)


def _rows(values: Rows, arguments: Arguments) -> Rows:
    return mx.np.moveaxis(values, arguments.axis, 0).reshape((arguments.channels, arguments.m))


def _scatter(rows: Rows, out: Array, arguments: Arguments) -> None:
    axis, shape = arguments.axis, out.shape
    first = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    arrays.assign(mx.np.moveaxis(rows.reshape(first), 0, axis), out)


def _keep(rows: Rows, kept: Rows | None) -> Rows:
    return rows if kept is None else mx.np.where(kept, rows, mx.np.zeros_like(rows))


def _sum(rows: Rows) -> Host:
    rows = rows.astype("float64")
    while rows.shape[1] > 1:
        rows = _sum_chunks(rows)
    return np.asarray(rows.asnumpy()[:, 0])


def _sum_chunks(rows: Rows) -> Rows:
    channels, m = rows.shape
    whole, parts = m - m % CHUNK, []
    if whole:
        chunks = rows[:, :whole].reshape((-1, CHUNK))
        parts.append(mx.np.dot(chunks, _ones(CHUNK, rows)).reshape((channels, -1)))
    if m > whole:
        parts.append(mx.np.dot(rows[:, whole:], _ones(m - whole, rows)).reshape((channels, 1)))
    return parts[0] if len(parts) == 1 else mx.np.concatenate(parts, axis=1)


def _ones(count: int, like: Rows) -> Rows:
    return arrays.send(np.ones(count), like)


def _column(vector: Host, like: Rows) -> Rows:
    """Send one number per channel to the context of rows, as a column of their type."""
    return arrays.send(vector.astype(like.dtype)[:, None], like)
