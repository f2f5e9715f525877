"""One compiled call for a forward pass in training, and one for a backward pass.

Python would take longer to go from loop to loop than the loops take on a small array. What is written here is what
:mod:`polybn_mxnet.statistics` does with vectors, for channels that clause S10 need not rescue: the others are counted,
and left to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from polybn_mxnet import layouts
from polybn_mxnet.kernels import compiled


@intrinsic
def _pointer(_: Any, address: Any, dtype: Any) -> Any:
    pointer = types.CPointer(dtype.dtype)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, dtype), generate


@compiled()
def _at(address: int, shape: Any, like: Any) -> Any:
    return carray(_pointer(address, like.dtype), shape)


@compiled()
def _take(address: int, default: float, low: int, high: int, out: Any) -> None:
    if address:
        out[low:high] = _at(address, out.shape, out)[low:high]
    else:
        out[low:high] = default


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
def _update(mean: Any, variance: Any, momentum: float, correction: float, low: int, high: int, s: Any) -> None:
    batch_mean, batch_variance = np.empty_like(s[0]), np.empty_like(s[0])
    for c in range(low, high):
        batch_mean[c], batch_variance[c] = s[0, c] + s[1, c], s[2, c] * correction
    _blend(mean, batch_mean, momentum, low, high, s[5])
    _blend(variance, batch_variance, momentum, low, high, s[6])


@compiled()
def forward(
    x: int, gamma: int, beta: int, mean: int, variance: int, momentum: float, eps: float, correction: float,
    floor: float, xhat: Any, s: Any, low: int, high: int, y: int,
) -> int:  # fmt: skip
    """Fill in ``y``, ``xhat`` and the rows of ``s``; return how many channels need S10, and are not to be believed.

    The rows are ``m1, delta, v, r``, the multiplier, and the running mean and variance, of which the latter takes in
    ``correction * v``. Integers are addresses, which are had for less than arrays; 0 stands for None.
    """
    channels, count = xhat.shape[1], xhat.shape[0] * xhat.shape[2]
    values, total, squares = _at(x, xhat.shape, s), np.empty(channels), np.empty(channels)
    layouts.sums(values, low, high, total)
    for c in range(low, high):
        s[0, c] = total[c] / count
    layouts.sums_about(values, s[0], low, high, total, squares)
    strayed = _settle(total, squares, count, eps, floor, low, high, s)
    if strayed:
        return strayed
    shift = np.empty_like(s[4])
    _take(gamma, 1.0, low, high, s[4])
    _take(beta, -0.0, low, high, shift)  # which changes nothing
    layouts.normalize(values, s[0], s[1], s[3], s[4], shift, low, high, xhat, _at(y, xhat.shape, s))
    if mean:
        _update(_at(mean, (channels,), s), _at(variance, (channels,), s), momentum, correction, low, high, s)
    return 0


@compiled()
def backward(
    dy: int, xhat: Any, r: Any, gamma: Any, training: bool, s: Any, low: int, high: int, dx: int
) -> None:  # fmt: skip
    """Fill in the rows ``sum(g)`` and ``sum(g * xhat)`` of ``s`` and, unless it is 0, the gradient of x (S13)."""
    count = xhat.shape[0] * xhat.shape[2]
    g, total, products = _at(dy, xhat.shape, s), np.empty(xhat.shape[1]), np.empty(xhat.shape[1])
    layouts.sums_with(g, xhat, low, high, total, products)
    mean_g, mean_gx = np.empty_like(r), np.empty_like(r)
    for c in range(low, high):
        s[0, c], s[1, c] = total[c], products[c]
        mean_g[c], mean_gx[c] = total[c] / count, products[c] / count
    if dx and training:
        layouts.project(g, xhat, mean_g, mean_gx, r, gamma, low, high, _at(dx, xhat.shape, s))
    elif dx:
        layouts.multiply(g, r, gamma, low, high, _at(dx, xhat.shape, s))
