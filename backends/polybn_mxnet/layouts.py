"""The loops on contiguous arrays ``(A, C, B)`` of either shape: along rows, or, where these are short, along columns.

Everything else is a vector ``(C,)``; channels ``low`` to ``high`` are served.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn_mxnet import columns, kernels
from polybn_mxnet.kernels import compiled

NARROW = 16
"""Rows of fewer values are not worth a loop of their own."""


@compiled()
def _flat(x: Any) -> Any:
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])


@compiled()
def _wide(vector: Any, lanes: int, low: int, high: int) -> Any:
    if lanes == 1:
        return vector
    wide = np.empty(vector.size * lanes, vector.dtype)
    for c in range(low, high):
        wide[c * lanes : (c + 1) * lanes] = vector[c]
    return wide


@compiled()
def _gather(wide: Any, lanes: int, low: int, high: int, out: Any) -> None:
    for c in range(low, high):
        total = wide[c * lanes]
        for b in range(1, lanes):
            total += wide[c * lanes + b]
        out[c] = total


@compiled()
def sums(x: Any, low: int, high: int, out: Any) -> None:
    """Fill in ``sum(x)``."""
    lanes = x.shape[2]
    if lanes >= NARROW:
        kernels.sums(x, low, high, out)
    else:
        wide = np.empty(x.shape[1] * lanes)
        columns.sums(_flat(x), low * lanes, high * lanes, wide)
        _gather(wide, lanes, low, high, out)


@compiled()
def sums_about(x: Any, m1: Any, low: int, high: int, out: Any, squares: Any) -> None:
    """Fill in ``sum(d)`` and ``sum(d * d)`` with ``d = x - m1``."""
    lanes = x.shape[2]
    if lanes >= NARROW:
        kernels.sums_about(x, m1, low, high, out, squares)
    else:
        wide, wide2 = np.empty(x.shape[1] * lanes), np.empty(x.shape[1] * lanes)
        columns.sums_about(_flat(x), _wide(m1, lanes, low, high), low * lanes, high * lanes, wide, wide2)
        _gather(wide, lanes, low, high, out)
        _gather(wide2, lanes, low, high, squares)


@compiled()
def sums_with(g: Any, xhat: Any, low: int, high: int, out: Any, products: Any) -> None:
    """Fill in ``sum(g)`` and ``sum(g * xhat)``."""
    lanes = g.shape[2]
    if lanes >= NARROW:
        kernels.sums_with(g, xhat, low, high, out, products)
    else:
        wide, wide2 = np.empty(g.shape[1] * lanes), np.empty(g.shape[1] * lanes)
        columns.sums_with(_flat(g), _flat(xhat), low * lanes, high * lanes, wide, wide2)
        _gather(wide, lanes, low, high, out)
        _gather(wide2, lanes, low, high, products)


@compiled()
def normalize(
    x: Any, m1: Any, delta: Any, r: Any, gamma: Any, beta: Any, low: int, high: int, xhat: Any, y: Any
) -> None:
    """Fill in ``xhat`` and ``y`` (S3)."""
    lanes = x.shape[2]
    if lanes >= NARROW:
        kernels.normalize(x, m1, delta, r, gamma, beta, low, high, xhat, y)
    else:
        columns.normalize(
            _flat(x), _wide(m1, lanes, low, high), _wide(delta, lanes, low, high), _wide(r, lanes, low, high),
            _wide(gamma, lanes, low, high), _wide(beta, lanes, low, high), low * lanes, high * lanes, _flat(xhat),
            _flat(y),
        )  # fmt: skip


@compiled()
def project(g: Any, xhat: Any, mean_g: Any, mean_gx: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``(g - mean_g - xhat * mean_gx) * r * gamma`` (S13)."""
    lanes = g.shape[2]
    if lanes >= NARROW:
        kernels.project(g, xhat, mean_g, mean_gx, r, gamma, low, high, dx)
    else:
        columns.project(
            _flat(g), _flat(xhat), _wide(mean_g, lanes, low, high), _wide(mean_gx, lanes, low, high),
            _wide(r, lanes, low, high), _wide(gamma, lanes, low, high), low * lanes, high * lanes, _flat(dx),
        )  # fmt: skip


@compiled()
def multiply(g: Any, r: Any, gamma: Any, low: int, high: int, dx: Any) -> None:
    """Fill in ``g * r * gamma``: what S13 leaves of it in inference."""
    lanes = g.shape[2]
    if lanes >= NARROW:
        kernels.multiply(g, r, gamma, low, high, dx)
    else:
        columns.multiply(
            _flat(g), _wide(r, lanes, low, high), _wide(gamma, lanes, low, high), low * lanes, high * lanes, _flat(dx)
        )
