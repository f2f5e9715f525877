"""Loops over the values of contiguous arrays ``(A, C, B)``, compiled by Numba; the channel is the middle axis.

Every kernel serves channels ``low`` to ``high`` and touches no other, so that any number of threads gives the same
bits. Sums are float64: over CHUNK values as the processor likes it, the chunks one after another with their
rounding errors (TwoSum), so that a float64 sum, too, errs by less than CHUNK u. Only what runs under REORDER may be
reordered: ``(x - m1) - delta`` may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

CHUNK = 64
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
def _scaled(x: Any, f1: Any, f2: Any) -> Any:
    return x * f1 * f2


@compiled(reorder=True)
def _sum_of(row: Any, f1: Any, f2: Any) -> Any:
    total = 0.0
    for i in range(row.size):
        total += np.float64(_scaled(row[i], f1, f2))
    return total


@compiled(reorder=True)
def _sums_about(row: Any, f1: Any, f2: Any, m1: Any) -> Any:
    total, squares = 0.0, 0.0
    for i in range(row.size):
        d = np.float64(_minus(_scaled(row[i], f1, f2), m1))
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
def sums(x: Any, f1: Any, f2: Any, low: int, high: int, out: Any) -> None:
    """Fill in ``sum(x * f1 * f2)``."""
    if x.shape[2] < NARROW:
        _narrow_sums(x, f1, f2, low, high, out)
        return
    for c in range(low, high):
        total, error = 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], CHUNK):
                total, error = _add(total, error, _sum_of(x[a, c, b : b + CHUNK], f1[c], f2[c]))
        out[c] = total + error


@compiled()
def sums_about(x: Any, f1: Any, f2: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    """Fill in ``sum(d)`` and ``sum(d * d)`` with ``d = x * f1 * f2 - m1``."""
    if x.shape[2] < NARROW:
        _narrow_sums_about(x, f1, f2, m1, low, high, out, squares)
        return
    for c in range(low, high):
        total, error, total2, error2 = 0.0, 0.0, 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], CHUNK):
                one, two = _sums_about(x[a, c, b : b + CHUNK], f1[c], f2[c], m1[c])
                total, error = _add(total, error, one)
                total2, error2 = _add(total2, error2, two)
        out[c], squares[c] = total + error, total2 + error2


@compiled()
def sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    """Fill in ``sum(g)`` and ``sum(g * xhat)``."""
    if g.shape[2] < NARROW:
        _narrow_sums_with(g, xhat, low, high, out, products)
        return
    for c in range(low, high):
        total, error, total2, error2 = 0.0, 0.0, 0.0, 0.0
        for a in range(g.shape[0]):
            for b in range(0, g.shape[2], CHUNK):
                one, two = _sums_with(g[a, c, b : b + CHUNK], xhat[a, c, b : b + CHUNK])
                total, error = _add(total, error, one)
                total2, error2 = _add(total2, error2, two)
        out[c], products[c] = total + error, total2 + error2


@compiled()
def _flush(part: Any, total: Any, error: Any) -> None:
    for c in range(part.size):
        total[c], error[c] = _add(total[c], error[c], part[c])
        part[c] = 0.0


@compiled()
def _narrow_sums(x: Any, f1: Any, f2: Any, low: int, high: int, out: Any) -> None:
    part, total, error = np.zeros((3, high - low))
    for start in range(0, x.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, x.shape[0])):
            for b in range(x.shape[2]):
                for c in range(low, high):
                    part[c - low] += np.float64(_scaled(x[a, c, b], f1[c], f2[c]))
        _flush(part, total, error)
    out[low:high] = total + error


@compiled()
def _narrow_sums_about(x: Any, f1: Any, f2: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    part, total, error = np.zeros((3, high - low))
    part2, total2, error2 = np.zeros((3, high - low))
    for start in range(0, x.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, x.shape[0])):
            for b in range(x.shape[2]):
                for c in range(low, high):
                    d = np.float64(_minus(_scaled(x[a, c, b], f1[c], f2[c]), m1[c]))
                    part[c - low] += d
                    part2[c - low] += d * d
        _flush(part, total, error)
        _flush(part2, total2, error2)
    out[low:high], squares[low:high] = total + error, total2 + error2


@compiled()
def _narrow_sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    part, total, error = np.zeros((3, high - low))
    part2, total2, error2 = np.zeros((3, high - low))
    for start in range(0, g.shape[0], CHUNK):
        for a in range(start, min(start + CHUNK, g.shape[0])):
            for b in range(g.shape[2]):
                for c in range(low, high):
                    value = np.float64(g[a, c, b])
                    part[c - low] += value
                    part2[c - low] += value * np.float64(xhat[a, c, b])
        _flush(part, total, error)
        _flush(part2, total2, error2)
    out[low:high], products[low:high] = total + error, total2 + error2


@compiled()
def normalize(
    x: Any, f1: Any, f2: Any, m1: Any, delta: Any, r: Any, gamma: Any, beta: Any, low: int, high: int, xhat: Any, y: Any
) -> None:
    """Fill in ``xhat`` and ``y`` (S3)."""
    for a in range(x.shape[0]):
        if x.shape[2] == 1:
            for c in range(low, high):
                z = (x[a, c, 0] * f1[c] * f2[c] - m1[c] - delta[c]) * r[c]
                xhat[a, c, 0] = z
                y[a, c, 0] = z * gamma[c] + beta[c]
            continue
        for c in range(low, high):
            p, q, mean, rest, root, scale, shift = f1[c], f2[c], m1[c], delta[c], r[c], gamma[c], beta[c]
            for b in range(x.shape[2]):
                z = (x[a, c, b] * p * q - mean - rest) * root
                xhat[a, c, b] = z
                y[a, c, b] = z * scale + shift


@compiled()
def project(
    g: Any, xhat: Any, mean_g: Any, mean_gx: Any, r: Any, gamma: Any, centred: bool, low: int, high: int, dx: Any
) -> None:
    """Fill in ``(g - mean_g - xhat * mean_gx) * r * gamma``, or ``g * r * gamma`` (S13)."""
    for a in range(g.shape[0]):
        for c in range(low, high):
            mean, slope, root, scale = mean_g[c], mean_gx[c], r[c], gamma[c]
            if centred:
                for b in range(g.shape[2]):
                    dx[a, c, b] = (g[a, c, b] - mean - xhat[a, c, b] * slope) * root * scale
            else:
                for b in range(g.shape[2]):
                    dx[a, c, b] = g[a, c, b] * root * scale
