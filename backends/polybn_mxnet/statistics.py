"""The arithmetic on one value per channel for :mod:`polybn_mxnet.operators`: clauses S3, S4 and S10, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Arguments
from polybn_mxnet.arrays import Host
from polybn_numpy.call import check_variances
from polybn_numpy.kernels import inverse_root


class Statistics(NamedTuple):
    """Statistics as in S2 and S3, shape ``(C,)`` each."""

    m1: Host
    delta: Host
    v: Host
    r: Host
    strayed: NDArray[np.bool_]
    """The channels whose statistics left the range on the way, so that the others mean nothing there (S10)."""

    def mean(self) -> Host:
        """Return the mean."""
        return self.m1 + self.delta

    def low(self) -> Host:
        """Return what the mean lost when it was rounded (S15)."""
        return (self.m1 - self.mean()) + self.delta


def from_running(arguments: Arguments, mean: Host, variance: Host) -> Statistics:
    """Use running statistics in place of the batch's (S5)."""
    check_variances(arguments.function, variance)
    r = inverse_root(variance, variance.dtype.type(arguments.eps))
    return Statistics(mean, np.zeros_like(mean), variance, r, np.zeros(mean.shape, bool))


def out_of_range(v: Host, eps: float) -> NDArray[np.bool_]:
    """Find the channels whose ``v + eps`` overflowed or came near underflow (S10)."""
    square, info = v + v.dtype.type(eps), np.finfo(v.dtype)
    smallest = info.smallest_normal * 2.0 ** (info.nmant + 8)  # what underflows is less than a rounding error
    strayed: NDArray[np.bool_] = ~np.isfinite(square) | (square < smallest)
    return strayed


def strayed_in_training(s: Statistics, gamma: Host | None) -> NDArray[np.bool_]:
    """Find the channels in which ``y`` or the running statistics may leave the range on the way (S10)."""
    return s.strayed | _magnifies(gamma, s.r)


def strayed_in_inference(s: Statistics, largest: Host, gamma: Host | None) -> NDArray[np.bool_]:
    """Find the channels in which a factor of ``y``, or a product of some, may leave the range (S10)."""
    x, r, g = map(_exponent, (np.maximum(largest, np.abs(s.m1)), s.r, _or_one(gamma, s.r)))
    return _magnifies(gamma, s.r) | _beyond(s.r.dtype, x, r, g, x + r, x + r + g)


def strayed_in_derivative(s: Statistics, g: Host, xhat: Host, gamma: Host | None) -> NDArray[np.bool_]:
    """Find the channels in which a factor of a gradient, or a product of some, may leave the range (S10).

    ``g`` and ``xhat`` are the largest magnitudes of the cotangents and of the normalized values.
    """
    dy, x, r, slope = map(_exponent, (g, xhat, s.r, _or_one(gamma, s.r)))
    slope = slope + r
    products = dy + x, dy + r, dy + slope, dy + x + slope, dy + x + r + slope
    return s.strayed | _magnifies(gamma, s.r) | _beyond(s.r.dtype, dy, x, r, slope, *products)


def _magnifies(gamma: Host | None, like: Host) -> NDArray[np.bool_]:
    """Find large gammas: times one, a value far smaller than the row's largest shows what it lost to underflow."""
    large: NDArray[np.bool_] = _exponent(_or_one(gamma, like)) > np.finfo(like.dtype).nmant
    return large


def _or_one(gamma: Host | None, like: Host) -> Host:
    return np.ones_like(like) if gamma is None else gamma


def _exponent(vector: Host) -> NDArray[np.int64]:
    """Return the exponents of numbers, 0 for 0; what is not finite hides the others: an exponent beyond every range."""
    return np.where(np.isfinite(vector), np.frexp(vector)[1], 10_000).astype(np.int64)


def _beyond(dtype: np.dtype, *exponents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether an exponent comes near an end of the range, with room for sums and for unequal values."""
    limit = 90 if dtype == np.float32 else 900
    beyond: NDArray[np.bool_] = np.any(np.abs(exponents) > limit, axis=0)
    return beyond


def update(arguments: Arguments, old: tuple[Host, Host], s: Statistics, counts: Host) -> tuple[Host, Host]:
    """Return the new running statistics (S4)."""
    variance = s.v
    if arguments.unbiased:
        variance = (variance * (counts / np.maximum(counts - 1, 1))).astype(variance.dtype)
    mean, var = (_blend(*pair, arguments.momentum, counts) for pair in zip(old, (s.mean(), variance), strict=True))
    return mean, var


def _blend(old: Host, batch: Host, momentum: float, counts: Host) -> Host:
    """Update a running statistic: exact for the momenta 0 and 1 (S4), unchanged where no value was kept (S12)."""
    if momentum in (0, 1):
        new = old if momentum == 1 else batch
    else:
        new = old.dtype.type(momentum) * old + old.dtype.type(1 - momentum) * batch
    return np.where(counts == 0, old, new)
