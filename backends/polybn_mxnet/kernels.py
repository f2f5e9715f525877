"""Loops along the rows of contiguous arrays ``(A, C, B)``, compiled by Numba; the channel is the middle axis.

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
def sums(x: Any, low: int, high: int, out: Any) -> None:
    """Fill in ``sum(x)``."""
    chunk = _chunk(x)
    for c in range(low, high):
        total, error = 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], chunk):
                total, error = _add(total, error, _sum(x[a, c, b : b + chunk]))
        out[c] = total + error


@compiled()
def sums_about(x: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    """Fill in ``sum(d)`` and ``sum(d * d)`` with ``d = x - m1``."""
    chunk = _chunk(x)
    for c in range(low, high):
        total, error, total2, error2 = 0.0, 0.0, 0.0, 0.0
        for a in range(x.shape[0]):
            for b in range(0, x.shape[2], chunk):
                one, two = _sums_about(x[a, c, b : b + chunk], m1[c])
                total, error = _add(total, error, one)
                total2, error2 = _add(total2, error2, two)
        out[c], squares[c] = total + error, total2 + error2


@compiled()
def sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    """Fill in ``sum(g)`` and ``sum(g * xhat)``."""
    chunk = _chunk(g)
    for c in range(low, high):
        total, error, total2, error2 = 0.0, 0.0, 0.0, 0.0
        for a in range(g.shape[0]):
            for b in range(0, g.shape[2], chunk):
                one, two = _sums_with(g[a, c, b : b + chunk], xhat[a, c, b : b + chunk])
                total, error = _add(total, error, one)
                total2, error2 = _add(total2, error2, two)
        out[c], products[c] = total + error, total2 + error2


@compiled()
def normalize(
    x: Any, m1: Any, delta: Any, r: Any, gamma: Any, beta: Any, low: int, high: int, xhat: Any, y: Any
) -> None:
    """Fill in ``xhat`` and ``y`` (S3)."""
    for a in range(x.shape[0]):
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
        for c in range(low, high):
            mean, slope, root, scale = mean_g[c], mean_gx[c], r[c], gamma[c]
            for b in range(g.shape[2]):
                dx[a, c, b] = (g[a, c, b] - mean - xhat[a, c, b] * slope) * root * scale


@compiled()
def multiply(g: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``g * r * gamma``: what S13 leaves of it in inference."""
    for a in range(g.shape[0]):
        for c in range(low, high):
            root, scale = r[c], gamma[c]
            for b in range(g.shape[2]):
                dx[a, c, b] = g[a, c, b] * root * scale
