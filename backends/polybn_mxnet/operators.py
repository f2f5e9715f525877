"""GPU contexts: the specification in the operators of ``mxnet.numpy``, which run in any context.

A row holds the values of one channel in the order of clause S1; rows are a matrix ``(C, m)`` in the type of the
statistics. What there is one of per channel is on the host, in NumPy, where the clauses are decided; so are the
results of every sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polybn.arguments import fail_single_value
from polybn.spec import Arguments, Array, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays, statistics
from polybn_mxnet.arrays import Host
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.statistics import Statistics

Rows: TypeAlias = Any  # mxnet.numpy.ndarray, (C, m)

# MXNet's sums are float64. BLAS adds up CHUNK values in several lanes, then the sums of the chunks likewise, so that
# float64 values, too, err by less than 64 u, and the equal residues of a constant channel add up exactly (S8). MXNet's
# own sums add up one value after another, and its float32 products with ones erred by 3 u at a mean of 1e4.
CHUNK = 64


class Residuals(NamedTuple):
    """What a forward call leaves for its derivative; nothing of it is the caller's."""

    kept: Rows | None
    """The mask as rows; None where all values take part."""
    counts: Host
    """Number of values that take part, per channel."""
    statistics: Statistics
    gamma: Host | None
    xhat: Rows | None
    """The normalized values before gamma and beta; None where there are no values."""


def hold(arguments: Arguments) -> Arguments:
    """Return the arguments as they are: a derivative reads the residuals alone."""
    return arguments


def forward(arguments: Arguments, y: Array) -> tuple[Host | None, Host | None, Residuals]:
    """Write ``y``; return the running statistics, and what the derivative needs."""
    training, size = arguments.training, arguments.channels * arguments.m
    gamma, beta, mean, variance = (None if z is None else arrays.fetch(z) for z in arguments[2:6])
    kept, counts = _mask(arguments)
    if training and arguments.unbiased and np.any(counts == 1):
        fail_single_value(arguments.function, f"where keeps one value in channel {int(np.argmax(counts == 1))}")
    if not training:
        assert mean is not None  # the checks of the arguments saw to both
        assert variance is not None
        s = statistics.from_running(arguments, mean, variance)
    else:
        s = _measure(arguments, kept, counts)
        if size and mean is not None and variance is not None:
            mean, variance = statistics.update(arguments, (mean, variance), s, counts)
    xhat = None
    if size:
        xhat = _standardize(arguments, s, kept)
        rows = xhat if gamma is None else _scaled(xhat, gamma)
        rows = rows if beta is None else rows + _column(beta, rows)
        _scatter(_keep(rows, kept), y, arguments)
    return mean, variance, Residuals(kept, counts, s, gamma, xhat)


def backward(arguments: Arguments, residuals: Residuals, dy: Array, dx: Array) -> Gradients:
    """Write ``dx``; return the other gradients (S13)."""
    kept, counts, s, gamma, xhat = residuals
    if xhat is None:
        return Gradients(dx, *(np.zeros(arguments.channels, arguments.dtype) for _ in range(4)))
    g = _gather(dy, arguments, kept)
    wide, m = _sums(g, xhat), np.maximum(counts, 1)
    sum_g, sum_gx = (z.astype(arguments.dtype) for z in wide)
    rows = _project(g, xhat, *(z / m for z in wide)) if arguments.training else g
    r = s.inverse_root()
    slopes = (r,) if gamma is None else (r, gamma)
    for slope in slopes:
        rows = _scaled(rows, slope)
    _scatter(_keep(rows, kept), dx, arguments)
    scale = np.prod(slopes, axis=0)
    return Gradients(dx, sum_gx, sum_g, -scale * sum_g, -scale * r * sum_gx / 2)


def moments(arguments: Arguments) -> Moments:
    """Measure ``x``; the results are on the host."""
    kept, counts = _mask(arguments)
    s = _measure(arguments, kept, counts)
    return Moments(counts, s.mean(), np.ldexp(s.v * counts, 2 * s.exponent).astype(arguments.dtype))


def double_backward(arguments: Arguments, residuals: Residuals, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`; the formulas are those of :class:`polybn.pullback.SecondPullback`."""
    vectors = (np.zeros(arguments.channels) if z is None else arrays.fetch(z).astype(float) for z in cotangents[1:])
    second = _Second(arguments, residuals, *vectors)
    if residuals.xhat is None:
        zero = np.zeros(arguments.channels)
        return SecondGradients(arrays.empty(dy), arrays.empty(dy), zero, zero, zero)
    g = _gather(dy, arguments, residuals.kept)
    a = mx.np.zeros_like(g) if cotangents.x is None else _gather(cotangents.x, arguments, residuals.kept)
    return (second.training if arguments.training else second.inference)(g, a)


class _Second(NamedTuple):
    """A call of :func:`double_backward`, with the cotangents of dgamma, dbeta, drunning_mean and drunning_var."""

    arguments: Arguments
    residuals: Residuals
    b: Host
    c: Host
    e: Host
    f: Host

    def training(self, g: Rows, a: Rows) -> SecondGradients:
        r, gamma = self.slopes()
        xhat, m, scale = self.residuals.xhat, np.maximum(self.residuals.counts, 1), gamma * r
        (sum_g, sum_gx), (sum_a, sum_ax) = _sums(g, xhat), _sums(a, xhat)
        q_g, q_a = sum_gx / m, sum_ax / m
        a_dot_pg = _sum(g * a) - sum_g / m * sum_a - q_g * sum_ax
        of_dy = _project(_scaled(a, scale), xhat, scale * sum_a / m - self.c, scale * q_a - self.b)
        h = _scaled(g, r * (self.b - scale * q_a)) - _scaled(a, r * scale * q_g)
        sum_h, sum_hx = _sums(h, xhat)
        of_x = _project(h, xhat, sum_h / m, sum_hx / m + scale * r * a_dot_pg / m)
        return SecondGradients(self.scattered(of_dy), self.scattered(of_x), r * a_dot_pg)

    def inference(self, g: Rows, a: Rows) -> SecondGradients:
        r, gamma = self.slopes()
        xhat, scale, half = self.residuals.xhat, gamma * r, r * r * self.f / 2
        sum_g, sum_gx = _sums(g, xhat)
        slope, sum_ga = r * (self.b - gamma * half), _sum(g * a)
        of_dy = _project(_scaled(a, scale), xhat, scale * self.e - self.c, gamma * half - self.b)
        per_gamma = r * (sum_ga - self.e * sum_g) - half * sum_gx
        of_var = -r * r / 2 * (gamma * per_gamma + (self.b - 2 * gamma * half) * sum_gx)
        of_x = self.scattered(_scaled(g, slope))
        return SecondGradients(self.scattered(of_dy), of_x, per_gamma, -slope * sum_g, of_var)

    def slopes(self) -> tuple[Host, Host]:
        """Return ``r`` of the unscaled values, and gamma, in float64."""
        r, gamma = self.residuals.statistics.inverse_root().astype(float), self.residuals.gamma
        return r, np.ones_like(r) if gamma is None else gamma.astype(float)

    def scattered(self, rows: Rows) -> Array:
        """Bring rows to an array like ``x``, with 0 in deleted places."""
        out = arrays.empty(self.arguments.x)
        _scatter(_keep(rows, self.residuals.kept), out, self.arguments)
        return out


def _gather(array: Array, arguments: Arguments, kept: Rows | None) -> Rows:
    """Bring the values of an array like ``x`` to rows, with 0 in deleted places."""
    return _keep(_rows(arrays.widened(array, arguments.dtype), arguments), kept)


def _sums(g: Rows, xhat: Rows) -> tuple[Host, Host]:
    """Return ``sum(g)`` and ``sum(g * xhat)`` of each channel, in float64."""
    return _sum(g), _sum(g * xhat)


def _project(g: Rows, xhat: Rows, mean_g: Host, mean_gx: Host) -> Rows:
    """Return ``g - mean_g - xhat * mean_gx``."""
    return g - _column(mean_g, g) - xhat * _column(mean_gx, g)


def _scaled(rows: Rows, vector: Host) -> Rows:
    """Multiply each row by its channel's number."""
    return rows * _column(vector, rows)


def _mask(arguments: Arguments) -> tuple[Rows | None, Host]:
    """Bring the mask to rows, and count what it keeps."""
    where, shape = arguments.where, arguments.x.shape
    if where is None or 0 in shape:
        return None, np.full(arguments.channels, arguments.m)
    bytes_ = where.as_np_ndarray().astype("uint8")  # MXNet transposes bytes, but not bool
    kept = _rows(mx.np.broadcast_to(bytes_, shape), arguments)
    counts = mx.np.sum(kept.astype("int64"), axis=1).asnumpy().astype(np.int64)
    return kept.astype("bool"), counts


def _measure(arguments: Arguments, kept: Rows | None, counts: Host) -> Statistics:
    """Measure ``x`` in the form of S2, once more for channels that leave the range (S10)."""
    exponent, eps = np.zeros(arguments.channels, np.int32), arguments.eps
    if not arguments.channels * arguments.m:
        return Statistics(*[np.zeros(arguments.channels, arguments.dtype)] * 4, exponent)
    rows = _gather(arguments.x, arguments, kept)
    m1, delta, v = _center(rows, kept, counts)
    strayed = statistics.out_of_range(v, eps)
    if strayed.any():
        largest = mx.np.max(mx.np.abs(rows), axis=1).asnumpy()
        exponent = np.where(strayed, statistics.exponents(largest, eps), exponent)
        m1, delta, v = _center(_shifted(rows, exponent), kept, counts)
    r = statistics.inverse_root(v, np.ldexp(v.dtype.type(eps), -2 * exponent))
    return Statistics(m1, delta, v, r, exponent)


def _center(rows: Rows, kept: Rows | None, counts: Host) -> tuple[Host, Host, Host]:
    """Return ``m1``, ``delta`` and ``v`` (S2)."""
    dtype, m = rows.dtype, np.maximum(counts, 1)
    m1 = (_sum(rows) / m).astype(dtype)
    rows = _keep(rows - _column(m1, rows), kept)
    delta, square = ((_sum(z) / m).astype(dtype) for z in (rows, rows * rows))
    return m1, delta, np.maximum(square - delta * delta, 0)


def _standardize(arguments: Arguments, s: Statistics, kept: Rows | None) -> Rows:
    """Return the normalized values before gamma and beta (S3)."""
    rows = _shifted(_gather(arguments.x, arguments, kept), s.exponent)
    rows = rows - _column(s.m1, rows)
    if s.delta.any():
        rows = rows - _column(s.delta, rows)
    return _keep(_scaled(rows, s.r), kept)


def _shifted(rows: Rows, exponent: Host) -> Rows:
    """Multiply by ``2^-exponent``, in two steps: the number itself may be out of range."""
    if exponent.any():
        for half in (exponent // 2, exponent - exponent // 2):
            rows = _scaled(rows, np.ldexp(1.0, -half))
    return rows


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
