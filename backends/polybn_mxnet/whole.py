"""One compiled call for a forward pass in training, and one for a backward pass.

Python would take longer to go from loop to loop than the loops take on a small array. What is written here is what
:mod:`polybn_mxnet.statistics` does with vectors, for channels that clause S10 need not rescue: the others are counted,
and left to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn_mxnet import layouts
from polybn_mxnet.kernels import compiled


@compiled()
def _settle(rest: Any, squares: Any, count: int, eps: float, floor: float, low: int, high: int, s: Any) -> int:
    """Fill in ``delta``, ``v`` and ``r`` (S2, S3); count the channels whose ``v + eps`` is out of range."""
    one, strayed = s.dtype.type(1), 0
    for c in range(low, high):
        delta, square = s.dtype.type(rest[c] / count), s.dtype.type(squares[c] / count)
        v = square - delta * delta
        if v < 0:
            v = s.dtype.type(0)
        shifted = v + s.dtype.type(eps)
        if not (floor <= shifted < np.inf):
            strayed += 1
        s[1, c], s[2, c], s[3, c] = delta, v, one / np.sqrt(shifted)
    return strayed


@compiled()
def _blend(old: Any, batch: Any, momentum: float, low: int, high: int, new: Any) -> None:
    """Fill in the running statistic (S4)."""
    weight, rest = new.dtype.type(momentum), new.dtype.type(1 - momentum)
    for c in range(low, high):
        if momentum == 1:
            new[c] = old[c]
        elif momentum == 0:
            new[c] = batch[c]
        else:
            new[c] = weight * old[c] + rest * batch[c]


@compiled()
def forward(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, momentum: float, eps: float, correction: float,
    floor: float, low: int, high: int, xhat: Any, y: Any, s: Any,
) -> int:  # fmt: skip
    """Fill in ``xhat``, ``y`` and the rows of ``s``; return how many channels need S10, and are not to be believed.

    The rows are ``m1, delta, v, r``, the multiplier, and the running mean and variance, of which the latter takes in
    ``correction * v``.
    """
    count = x.shape[0] * x.shape[2]
    total, squares = np.empty(x.shape[1]), np.empty(x.shape[1])
    layouts.sums(x, low, high, total)
    for c in range(low, high):
        s[0, c] = total[c] / count
    layouts.sums_about(x, s[0], low, high, total, squares)
    strayed = _settle(total, squares, count, eps, floor, low, high, s)
    if strayed:
        return strayed
    s[4, low:high] = gamma[low:high]
    layouts.normalize(x, s[0], s[1], s[3], s[4], beta, low, high, xhat, y)
    batch_mean, batch_variance = np.empty_like(s[0]), np.empty_like(s[0])
    for c in range(low, high):
        batch_mean[c], batch_variance[c] = s[0, c] + s[1, c], s[2, c] * correction
    _blend(mean, batch_mean, momentum, low, high, s[5])
    _blend(variance, batch_variance, momentum, low, high, s[6])
    return 0


@compiled()
def backward(
    g: Any, xhat: Any, r: Any, gamma: Any, training: bool, low: int, high: int, sum_g: Any, sum_gx: Any, dx: Any
) -> None:
    """Fill in ``sum(g)``, ``sum(g * xhat)`` and, where it has room, the gradient of x (S13)."""
    count = g.shape[0] * g.shape[2]
    total, products = np.empty(g.shape[1]), np.empty(g.shape[1])
    layouts.sums_with(g, xhat, low, high, total, products)
    mean_g, mean_gx = np.empty_like(r), np.empty_like(r)
    for c in range(low, high):
        sum_g[c], sum_gx[c] = total[c], products[c]
        mean_g[c], mean_gx[c] = total[c] / count, products[c] / count
    if dx.size and training:
        layouts.project(g, xhat, mean_g, mean_gx, r, gamma, low, high, dx)
    elif dx.size:
        layouts.multiply(g, r, gamma, low, high, dx)
