"""The loops of :mod:`polybn_mxnet.kernels` for arrays ``(A, W)`` whose columns are what is summed.

Where channels lie side by side, as behind a dense layer, a row of one channel is a value or few. Each of the W
columns then belongs to one channel, and the processor works on several columns at a time. Longer expressions are
cut in two loops: LLVM compares the addresses of few arrays only before it gives up on vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn_mxnet.kernels import _add, _minus, compiled

CHUNK = 64
"""Values added up before their sum goes to the total."""


@compiled()
def _flush(part: Any, total: Any, error: Any) -> None:
    for w in range(part.size):
        total[w], error[w] = _add(total[w], error[w], part[w])
        part[w] = 0.0


@compiled()
def sums(x: Any, low: int, high: int, out: Any) -> None:
    """Fill in ``sum(x)``."""
    part, total, error = np.zeros(high - low), np.zeros(high - low), np.zeros(high - low)
    for start in range(0, x.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, x.shape[0])):
            row = x[a, low:high]
            for w in range(row.size):
                part[w] += np.float64(row[w])
        _flush(part, total, error)
    out[low:high] = total + error


@compiled()
def sums_about(x: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    """Fill in ``sum(d)`` and ``sum(d * d)`` with ``d = x - m1``."""
    part, total, error = np.zeros(high - low), np.zeros(high - low), np.zeros(high - low)
    part2, total2, error2 = np.zeros(high - low), np.zeros(high - low), np.zeros(high - low)
    mean = m1[low:high]
    for start in range(0, x.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, x.shape[0])):
            row = x[a, low:high]
            for w in range(row.size):
                d = np.float64(_minus(row[w], mean[w]))
                part[w] += d
                part2[w] += d * d
        _flush(part, total, error)
        _flush(part2, total2, error2)
    out[low:high], squares[low:high] = total + error, total2 + error2


@compiled()
def sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    """Fill in ``sum(g)`` and ``sum(g * xhat)``."""
    part, total, error = np.zeros(high - low), np.zeros(high - low), np.zeros(high - low)
    part2, total2, error2 = np.zeros(high - low), np.zeros(high - low), np.zeros(high - low)
    for start in range(0, g.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, g.shape[0])):
            row, other = g[a, low:high], xhat[a, low:high]
            for w in range(row.size):
                value = np.float64(row[w])
                part[w] += value
                part2[w] += value * np.float64(other[w])
        _flush(part, total, error)
        _flush(part2, total2, error2)
    out[low:high], products[low:high] = total + error, total2 + error2


@compiled()
def normalize(
    x: Any, m1: Any, delta: Any, r: Any, gamma: Any, beta: Any, low: int, high: int, xhat: Any, y: Any
) -> None:
    """Fill in ``xhat`` and ``y`` (S3)."""
    mean, rest, root, scale, shift = m1[low:high], delta[low:high], r[low:high], gamma[low:high], beta[low:high]
    for a in range(x.shape[0]):
        row, normal, result = x[a, low:high], xhat[a, low:high], y[a, low:high]
        for w in range(row.size):
            normal[w] = (row[w] - mean[w] - rest[w]) * root[w]
        for w in range(row.size):
            result[w] = normal[w] * scale[w] + shift[w]


@compiled()
def project(g: Any, xhat: Any, mean_g: Any, mean_gx: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``(g - mean_g - xhat * mean_gx) * r * gamma`` (S13)."""
    mean, slope, root, scale = mean_g[low:high], mean_gx[low:high], r[low:high], gamma[low:high]
    for a in range(g.shape[0]):
        row, normal, result = g[a, low:high], xhat[a, low:high], dx[a, low:high]
        for w in range(row.size):
            result[w] = row[w] - mean[w] - normal[w] * slope[w]
        for w in range(row.size):
            result[w] = result[w] * root[w] * scale[w]


@compiled()
def multiply(g: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``g * r * gamma``: what S13 leaves of it in inference."""
    root, scale = r[low:high], gamma[low:high]
    for a in range(g.shape[0]):
        row, result = g[a, low:high], dx[a, low:high]
        for w in range(row.size):
            result[w] = row[w] * root[w] * scale[w]
