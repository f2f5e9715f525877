"""The passes over all values, written for NumPy and for MXNet's own NumPy operators alike.

A row holds the values of one channel in the order of clause S1; rows are a matrix ``(C, m)`` in the type of the
statistics. What there is one of per channel is on the host, in NumPy, where the clauses are decided; so are the
results of every sum. With ``mxnet.numpy`` this runs in any context; with NumPy, on views of MXNet's memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polybn.spec import Array
from polybn_mxnet import memory
from polybn_mxnet.case import Case
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.memory import Host
from polybn_mxnet.statistics import Statistics

Values: TypeAlias = Any  # numpy.ndarray or mxnet.numpy.ndarray
Mask: TypeAlias = Any

# MXNet's sums are float64. BLAS adds up CHUNK values in several lanes, then the sums of the chunks likewise, so that
# float64 values, too, err by less than 64 u, and the equal residues of a constant channel add up exactly (S8). MXNet's
# own sums add up one value after another, and its float32 products with ones erred by 3 u at a mean of 1e4.
CHUNK = 64


class Trained(NamedTuple):
    """What a forward pass in training finds, besides y."""

    statistics: Statistics
    gamma: Host | None
    xhat: Values
    running_mean: Host | None
    running_var: Host | None


class Rows:
    """The passes of :mod:`polybn_mxnet.batch_norm` on rows of a library: ``numpy`` or ``mxnet.numpy``."""

    train = None
    """There is no short way here from the arguments to all results."""

    def __init__(self, library: Any) -> None:
        self._np = library
        self._on_host = library is np

    def mask(self, where: Array | None, shape: tuple[int, ...], case: Case) -> tuple[Mask, Host]:
        """Bring a mask to rows, and count what it keeps."""
        if where is None:
            return None, np.full(case.channels, case.count)
        bytes_ = self._load(where).astype("uint8")  # MXNet transposes bytes, but not bool
        kept = self._rows(self._np.broadcast_to(bytes_, shape), case)
        counts = self._fetch(self._np.sum(kept.astype("int64"), axis=1)).astype(np.int64)
        return kept.astype("bool"), counts

    def measure(self, x: Array, case: Case, exponent: Host, kept: Mask, counts: Host) -> tuple[Host, Host, Host]:
        """Return ``m1``, ``delta`` and ``v`` (S2) of the values times ``2^-exponent``."""
        dtype, m = case.dtype, np.maximum(counts, 1)
        rows = self._gather(x, case, kept, exponent)
        m1 = (self._sums(rows) / m).astype(dtype)
        rows = self._keep(rows - self._column(m1, rows), kept)
        delta, square = ((self._sums(z) / m).astype(dtype) for z in (rows, rows * rows))
        return m1, delta, np.maximum(square - delta * delta, 0)

    def largest(self, x: Array, case: Case, kept: Mask) -> Host:
        """Return the largest magnitude in each channel."""
        rows = self._gather(x, case, kept)
        return self._fetch(self._np.max(self._np.abs(rows), axis=1))

    def normalize(
        self, x: Array, case: Case, s: Statistics, gamma: Host | None, beta: Host | None, kept: Mask,
        out: Array,
    ) -> Values:  # fmt: skip
        """Write ``y`` and return ``xhat`` (S3)."""
        rows = self._gather(x, case, kept, s.exponent)
        rows = rows - self._column(s.m1, rows)
        if s.delta.any():
            rows = rows - self._column(s.delta, rows)
        xhat = self._keep(rows * self._column(s.r, rows), kept)
        y = xhat if gamma is None else xhat * self._column(gamma, xhat)
        y = y if beta is None else y + self._column(beta, xhat)
        self._scatter(self._keep(y, kept), out, case)
        return xhat

    def sums(self, dy: Array, xhat: Values, case: Case, kept: Mask) -> tuple[Host, Host]:
        """Return ``sum(g)`` and ``sum(g * xhat)`` of each channel (S13)."""
        g = self._gather(dy, case, kept)
        return self._sums(g), self._sums(g * xhat)

    def project(
        self, dy: Array, xhat: Values, case: Case, means: tuple[Host, Host] | None, slopes: tuple[Host, Host],
        kept: Mask, out: Array,
    ) -> None:  # fmt: skip
        """Write ``(g - mean_g - xhat * mean_gx) * r * gamma``, or ``g * r * gamma`` without means (S13)."""
        rows = self._gather(dy, case, kept)
        if means is not None:
            mean_g, mean_gx = (self._column(z, rows) for z in means)
            rows = rows - mean_g - xhat * mean_gx
        for slope in slopes:
            rows = rows * self._column(slope, rows)
        self._scatter(self._keep(rows, kept), out, case)

    def pull(
        self, dy: Array, xhat: Values, case: Case, counts: Host, training: bool, slopes: tuple[Host, Host],
        kept: Mask, out: Array | None,
    ) -> tuple[Host, Host]:  # fmt: skip
        """Write the gradient of x, where it is wanted; return ``sum(g)`` and ``sum(g * xhat)`` (S13)."""
        dtype, wide = case.dtype, self.sums(dy, xhat, case, kept)
        if out is not None:
            mean_g, mean_gx = ((z / np.maximum(counts, 1)).astype(dtype) for z in wide)
            self.project(dy, xhat, case, (mean_g, mean_gx) if training else None, slopes, kept, out)
        sum_g, sum_gx = (z.astype(dtype) for z in wide)
        return sum_g, sum_gx

    def _gather(self, x: Array, case: Case, kept: Mask, exponent: Host | None = None) -> Values:
        rows = self._keep(self._rows(self._load(x), case).astype(case.dtype), kept)
        if exponent is not None and exponent.any():
            for half in (exponent // 2, exponent - exponent // 2):  # 2^-exponent itself may be out of range
                rows = rows * self._column(np.ldexp(np.ones(1, case.dtype), -half), rows)
        return rows

    def _scatter(self, rows: Values, out: Array, case: Case) -> None:
        shape = out.shape
        first = (shape[case.axis], *shape[: case.axis], *shape[case.axis + 1 :])
        values = self._np.moveaxis(rows.reshape(first), 0, case.axis)
        if self._on_host:
            memory.store(values, out)
        else:
            memory.assign(values, out)

    def _rows(self, values: Values, case: Case) -> Values:
        rows = self._np.moveaxis(values, case.axis, 0).reshape((case.channels, case.count))
        return np.ascontiguousarray(rows) if self._on_host else rows  # BLAS adds up in an order that suits the strides

    def _keep(self, rows: Values, kept: Mask) -> Values:
        return rows if kept is None else self._np.where(kept, rows, self._np.zeros_like(rows))

    def _sums(self, rows: Values) -> Host:
        if self._on_host:
            return np.asarray(np.sum(rows, axis=1, dtype=np.float64))  # pairwise, and no channel knows of another
        rows = rows.astype("float64")
        while rows.shape[1] > 1:
            rows = self._add_chunks(rows)
        return self._fetch(rows)[:, 0]

    def _add_chunks(self, rows: Values) -> Values:
        channels, m = rows.shape
        whole, parts = m - m % CHUNK, []
        if whole:
            chunks = rows[:, :whole].reshape((-1, CHUNK))
            parts.append(self._np.dot(chunks, self._ones(CHUNK, rows)).reshape((channels, -1)))
        if m > whole:
            parts.append(self._np.dot(rows[:, whole:], self._ones(m - whole, rows)).reshape((channels, 1)))
        return parts[0] if len(parts) == 1 else self._np.concatenate(parts, axis=1)

    def _ones(self, count: int, like: Values) -> Values:
        return self._send(np.ones(count, like.dtype), like)

    def _column(self, per_channel: Host, like: Values) -> Values:
        return self._send(per_channel[:, None], like)

    def _load(self, array: Array) -> Values:
        return memory.values(array) if self._on_host else array.as_np_ndarray()

    def _send(self, host: Host, like: Values) -> Values:
        return host if self._on_host else memory.send(host, like)

    def _fetch(self, values: Values) -> Host:
        return values if self._on_host else values.asnumpy()


HOST, DEVICE = Rows(np), Rows(mx.np)
