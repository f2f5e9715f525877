"""Loops over the values of contiguous arrays ``(A, C, B)``, compiled by Numba; the channel is the middle axis.

Every kernel serves channels ``low`` to ``high`` and touches no other, so that any number of threads gives the same
bits. Sums are float64: over a chunk of values as the processor likes it, the chunks one after another with their
rounding errors (TwoSum), so that a float64 sum, too, errs by less than 64 u. Only what runs under REORDER may be
reordered: ``(x - m1) - delta`` may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

NARROW = 16
"""Rows shorter than this are not worth a loop of their own: channels are then summed side by side."""
REORDER = {"reassoc"}


def compiled(reorder: bool = False) -> Callable[[F], F]:
    """Compile without the interpreter lock, and keep the result on disk where there is a place for it."""
    options: dict[str, Any] = {"nogil": True, "fastmath": REORDER if reorder else False, "error_model": "numpy"}

    def compile(function: F) -> F:
        try:
            return cast("F", numba.njit(cache=True, **options)(function))
        except RuntimeError:  # no place to keep it: https://numba.readthedocs.io/en/stable/developer/caching.html
            return cast("F", numba.njit(**options)(function))

    return compile


@compiled()
def _minus(a: Any, b: Any) -> Any:
    return a - b


@compiled()
def _chunk(x: Any) -> Any:
    return 4096 // (x.itemsize * x.itemsize)  # 256 float32, whose sum in float64 is as good as exact; 64 float64


@compiled(reorder=True)
def _sum(row: Any) -> Any:
    total = 0.0
    for i in range(row.size):
        total += np.float64(row[i])
    return total


@compiled(reorder=True)
def _sums_about(row: Any, m1: Any) -> Any:
    total, squares = 0.0, 0.0
    for i in range(row.size):
        d = np.float64(_minus(row[i], m1))
        total += d
        squares += d * d
    return total, squares


@compiled(reorder=True)
def _sums_with(row: Any, other: Any) -> Any:
    total, products = 0.0, 0.0
    for i in range(row.size):
        g = np.float64(row[i])
        total += g
        products += g * np.float64(other[i])
    return total, products


@compiled()
def _add(total: Any, error: Any, value: Any) -> Any:
    new = total + value
    if np.isfinite(new):
        part = new - total
        error += (total - (new - part)) + (value - part)
    return new, error


@compiled()
def _flush(part: Any, total: Any, error: Any) -> None:
    for c in range(part.size):
        total[c], error[c] = _add(total[c], error[c], part[c])
        part[c] = 0.0


@compiled()
def sums(x: Any, low: int, high: int, out: Any) -> None:
    """Fill in ``sum(x)``."""
    chunk = _chunk(x)
    if x.shape[2] < NARROW:
        part, total, error = np.zeros((3, high - low))
        for a in range(x.shape[0]):
            for b in range(x.shape[2]):
                for c in range(low, high):
                    part[c - low] += np.float64(x[a, c, b])
            if a % 4 == 3:
                _flush(part, total, error)
        _flush(part, total, error)
        out[low:high] = total + error
        return
    for c in range(low, high):
        total1, error1 = 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], chunk):
                total1, error1 = _add(total1, error1, _sum(x[a, c, b : b + chunk]))
        out[c] = total1 + error1


@compiled()
def sums_about(x: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    """Fill in ``sum(d)`` and ``sum(d * d)`` with ``d = x - m1``."""
    chunk = _chunk(x)
    if x.shape[2] < NARROW:
        part, total, error = np.zeros((3, high - low))
        part2, total2, error2 = np.zeros((3, high - low))
        for a in range(x.shape[0]):
            for b in range(x.shape[2]):
                for c in range(low, high):
                    d = np.float64(_minus(x[a, c, b], m1[c]))
                    part[c - low] += d
                    part2[c - low] += d * d
            if a % 4 == 3:
                _flush(part, total, error)
                _flush(part2, total2, error2)
        _flush(part, total, error)
        _flush(part2, total2, error2)
        out[low:high], squares[low:high] = total + error, total2 + error2
        return
    for c in range(low, high):
        total1, error1, total3, error3 = 0.0, 0.0, 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], chunk):
                one, two = _sums_about(x[a, c, b : b + chunk], m1[c])
                total1, error1 = _add(total1, error1, one)
                total3, error3 = _add(total3, error3, two)
        out[c], squares[c] = total1 + error1, total3 + error3


@compiled()
def sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    """Fill in ``sum(g)`` and ``sum(g * xhat)``."""
    chunk = _chunk(g)
    if g.shape[2] < NARROW:
        part, total, error = np.zeros((3, high - low))
        part2, total2, error2 = np.zeros((3, high - low))
        for a in range(g.shape[0]):
            for b in range(g.shape[2]):
                for c in range(low, high):
                    value = np.float64(g[a, c, b])
                    part[c - low] += value
                    part2[c - low] += value * np.float64(xhat[a, c, b])
            if a % 4 == 3:
                _flush(part, total, error)
                _flush(part2, total2, error2)
        _flush(part, total, error)
        _flush(part2, total2, error2)
        out[low:high], products[low:high] = total + error, total2 + error2
        return
    for c in range(low, high):
        total1, error1, total3, error3 = 0.0, 0.0, 0.0, 0.0
        for a in range(g.shape[0]):
            for b in range(0, g.shape[2], chunk):
                one, two = _sums_with(g[a, c, b : b + chunk], xhat[a, c, b : b + chunk])
                total1, error1 = _add(total1, error1, one)
                total3, error3 = _add(total3, error3, two)
        out[c], products[c] = total1 + error1, total3 + error3


@compiled()
def normalize(
    x: Any, m1: Any, delta: Any, r: Any, gamma: Any, beta: Any, low: int, high: int, xhat: Any, y: Any
) -> None:
    """Fill in ``xhat`` and ``y`` (S3)."""
    for a in range(x.shape[0]):
        if x.shape[2] < NARROW:
            # Two loops: LLVM compares the addresses of few arrays only before it gives up on vectors.
            for b in range(x.shape[2]):
                for c in range(low, high):
                    xhat[a, c, b] = (x[a, c, b] - m1[c] - delta[c]) * r[c]
                for c in range(low, high):
                    y[a, c, b] = xhat[a, c, b] * gamma[c] + beta[c]
            continue
        for c in range(low, high):
            mean, rest, root, scale, shift = m1[c], delta[c], r[c], gamma[c], beta[c]
            for b in range(x.shape[2]):
                z = (x[a, c, b] - mean - rest) * root
                xhat[a, c, b] = z
                y[a, c, b] = z * scale + shift


@compiled()
def project(g: Any, xhat: Any, mean_g: Any, mean_gx: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``(g - mean_g - xhat * mean_gx) * r * gamma`` (S13)."""
    for a in range(g.shape[0]):
        if g.shape[2] < NARROW:
            for b in range(g.shape[2]):
                for c in range(low, high):
                    dx[a, c, b] = g[a, c, b] - mean_g[c] - xhat[a, c, b] * mean_gx[c]
                for c in range(low, high):
                    dx[a, c, b] = dx[a, c, b] * r[c] * gamma[c]
            continue
        for c in range(low, high):
            mean, slope, root, scale = mean_g[c], mean_gx[c], r[c], gamma[c]
            for b in range(g.shape[2]):
                dx[a, c, b] = (g[a, c, b] - mean - xhat[a, c, b] * slope) * root * scale


@compiled()
def scale(g: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``g * r * gamma``: what S13 leaves of it in inference."""
    for a in range(g.shape[0]):
        for c in range(low, high):
            for b in range(g.shape[2]):
                dx[a, c, b] = g[a, c, b] * r[c] * gamma[c]
