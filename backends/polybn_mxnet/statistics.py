"""What there is one of per channel, on the host, in the type of the statistics: clauses S3, S4 and S10."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn_mxnet.memory import Host


class Settings(NamedTuple):
    """The options of a call that change numbers."""

    momentum: float
    eps: float
    running_variance: str

    def correction(self, count: int) -> float:
        """Return what the variance of so many values is multiplied by before the running one takes it in (S4)."""
        return count / (count - 1) if self.running_variance == "unbiased" and count > 1 else 1.0


class Statistics(NamedTuple):
    """Statistics in the form of S2 and S3, shape ``(C,)`` each; they describe the values times ``2^-exponent``.

    The exponent is 0 but for the channels that S10 rescues.
    """

    m1: Host
    delta: Host
    v: Host
    r: Host
    exponent: NDArray[np.int32]

    def mean(self) -> Host:
        """Return the mean of the original values."""
        return np.ldexp(self.m1 + self.delta, self.exponent)

    def variance(self) -> Host:
        """Return the biased variance of the original values."""
        return np.ldexp(self.v, 2 * self.exponent)

    def inverse_root(self) -> Host:
        """Return ``r`` of the original values."""
        return np.ldexp(self.r, -self.exponent)


def from_running(mean: Host, variance: Host, eps: float) -> Statistics:
    """Take running statistics for the batch's (S5)."""
    r = inverse_root(variance, variance.dtype.type(eps))
    return Statistics(mean, np.zeros_like(mean), variance, r, np.zeros(mean.shape, np.int32))


def inverse_root(variance: Host, eps: Host | np.floating) -> Host:
    """Return ``1 / sqrt(variance + eps)``, and 0 where both are 0 (S3)."""
    square = variance + eps
    r = np.zeros_like(square)
    np.divide(1, np.sqrt(square), out=r, where=square != 0)
    overflowed = np.isinf(square) & np.isfinite(variance)
    if overflowed.any():  # a quarter of each does not
        r[overflowed] = 0.5 / np.sqrt(variance / 4 + eps / 4)[overflowed]
    return r


def out_of_range(v: Host, eps: float) -> NDArray[np.bool_]:
    """Find the channels whose ``v + eps`` overflowed or came near underflow (S10)."""
    square = v + v.dtype.type(eps)
    strayed: NDArray[np.bool_] = ~np.isfinite(square) | (square < smallest(v.dtype.name))
    return strayed


@cache
def smallest(dtype: str) -> float:
    """Return the least ``v + eps`` that is far enough from underflow (S10)."""
    return float(np.finfo(dtype).smallest_normal) * 2.0**64


def exponents(largest: Host, eps: float) -> NDArray[np.int32]:
    """Return the exponent of the larger of the values and ``sqrt(eps)``: both fit the range times its inverse."""
    magnitude = np.maximum(largest, math.sqrt(eps))
    return np.where(np.isfinite(magnitude), np.frexp(magnitude)[1], 0).astype(np.int32)


def blend(old: Host, batch: Host, momentum: float, counts: Host) -> Host:
    """Move ``old`` towards ``batch``: exact at the ends (S4), and not at all where nothing was kept (S12)."""
    if momentum in (0, 1):
        new = old if momentum == 1 else batch
    else:
        new = old.dtype.type(momentum) * old + old.dtype.type(1 - momentum) * batch
    return np.where(counts == 0, old, new)
