"""Batch norms in plain NumPy, one for each accuracy class, as adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.conformance.adapter import Info
from polybn.conformance.cases import Case, Outcome, rows

Array = NDArray[Any]
Statistics = Callable[[Array], tuple[Array, Array]]
"""A function from rows ``(C, m)`` to mean and biased variance, each ``(C, 1)``."""


def in_order(values: Array) -> Array:
    """Add up rows from left to right, rounding at each step."""
    return np.cumsum(values, axis=1, dtype=values.dtype)[:, -1:]


def in_a_tree(values: Array) -> Array:
    """Add up rows by halves."""
    while values.shape[1] > 1:
        even, odd = values[:, 0::2], values[:, 1::2]
        total = even.copy()
        total[:, : odd.shape[1]] += odd
        values = total
    return values


def in_chains(values: Array) -> Array:
    """Add up chains of 64 from left to right, and then the sums of the chains by halves."""
    m = values.shape[1]
    stretches = np.pad(values, ((0, 0), (0, -m % 64))).reshape(len(values), -1, 64)
    return in_a_tree(np.cumsum(stretches, axis=2, dtype=values.dtype)[:, :, -1])


def two_pass(add: Callable[[Array], Array]) -> Statistics:
    def statistics(x: Array) -> tuple[Array, Array]:
        m = x.dtype.type(x.shape[1])
        mean = add(x) / m
        return mean, add((x - mean) ** 2) / m

    return statistics


def one_pass(x: Array) -> tuple[Array, Array]:
    m = x.dtype.type(x.shape[1])
    mean = in_order(x) / m
    return mean, np.maximum(in_order(x * x) / m - mean * mean, 0)


def welford(x: Array) -> tuple[Array, Array]:
    mean, m2 = np.zeros_like(x[:, 0]), np.zeros_like(x[:, 0])
    for k, column in enumerate(x.T, 1):
        difference = column - mean
        mean = mean + difference / x.dtype.type(k)
        m2 = m2 + difference * (column - mean)
    return mean[:, None], (m2 / x.dtype.type(x.shape[1]))[:, None]


def chan(x: Array) -> tuple[Array, Array]:
    """Merge moments in pairs; the last of an odd number waits for the next round."""
    n, mean, m2 = np.ones(x.shape[1]), x, np.zeros_like(x)
    while len(n) > 1:
        (na, a, m2a), (nb, b, m2b) = (
            (n[i : len(n) // 2 * 2 : 2], mean[:, i : len(n) // 2 * 2 : 2], m2[:, i : len(n) // 2 * 2 : 2])
            for i in (0, 1)
        )
        d, share, weight = b - a, (nb / (na + nb)).astype(x.dtype), (na * nb / (na + nb)).astype(x.dtype)
        rest = slice(len(n) // 2 * 2, None)
        n = np.append(na + nb, n[rest])
        mean, m2 = (
            np.append(merged, whole[:, rest], axis=1)
            for merged, whole in ((a + d * share, mean), (m2a + m2b + d * d * weight, m2))
        )
    return mean, m2 / x.dtype.type(n[0])


class Plain:
    """The formulas of the specification with given statistics; gradients use the same rows."""

    def __init__(
        self, statistics: Statistics, wide: type[np.floating[Any]] | None = None, kappa_free: bool = False
    ) -> None:
        self.statistics, self.wide, self.kappa_free = statistics, wide, kappa_free

    def info(self) -> Info:
        return Info("plain NumPy", np.__version__, dtypes=("float16", "bfloat16", "float32", "float64"))

    def centered(self, x: Array, axis: int) -> tuple[Array, Array, Array]:
        """Return ``x - mean`` as rows, the mean and the variance."""
        narrow = np.float64 if x.dtype == np.float64 else np.float32
        values = rows(x, axis).astype(self.wide or narrow)
        if self.kappa_free and not np.isfinite(values.var(axis=1)).all():
            values = np.full_like(values, np.nan)  # a result that cannot be right must not be finite
        mean, variance = self.statistics(values)
        c = values - mean
        if self.kappa_free:
            m = values.dtype.type(values.shape[1])
            delta = in_chains(c) / m
            variance = np.maximum(in_chains(c * c) / m - delta * delta, 0)
            return c - delta, mean + delta, variance
        return c, mean, variance

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, momentum: float,
        eps: float, axis: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        c, mean, variance = self.centered(x, axis)
        r = 1 / np.sqrt(variance + c.dtype.type(eps))
        y = c * r * gamma[:, None].astype(c.dtype) + beta[:, None].astype(c.dtype)
        share, old = c.dtype.type(1 - momentum), c.dtype.type(momentum)
        new_mean = old * running_mean + share * mean[:, 0]
        new_var = old * running_var + share * variance[:, 0]
        return _back(y, x, axis), new_mean.astype(running_mean.dtype), new_var.astype(running_var.dtype)

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, eps: float, axis: int
    ) -> Array:
        shape = [1] * x.ndim
        shape[axis] = -1
        mean, variance, scale, shift = (v.reshape(shape) for v in (running_mean, running_var, gamma, beta))
        y: Array = ((x - mean) / np.sqrt(variance + variance.dtype.type(eps)) * scale + shift).astype(x.dtype)
        return y

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        c, _, variance = self.centered(x, axis)
        g, m = rows(dy, axis).astype(c.dtype), c.dtype.type(c.shape[1])
        r = 1 / np.sqrt(variance + c.dtype.type(eps))
        xhat = c * r
        dgamma, dbeta = in_a_tree(g * xhat), in_a_tree(g)
        dx = gamma[:, None].astype(c.dtype) * r * (g - dbeta / m - xhat * (dgamma / m))
        return _back(dx, x, axis), dgamma[:, 0].astype(gamma.dtype), dbeta[:, 0].astype(gamma.dtype)


def _back(values: Array, x: Array, axis: int) -> Array:
    first = np.moveaxis(x, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(values.reshape(first), 0, axis)).astype(x.dtype)


VARIANTS = {
    "wide": Plain(two_pass(in_order), np.float64),
    "kappa-free": Plain(two_pass(in_chains), kappa_free=True),
    "tree": Plain(two_pass(in_a_tree)),
    "in order": Plain(two_pass(in_order)),
    "Welford": Plain(welford),
    "Chan": Plain(chan),
    "one-pass": Plain(one_pass),
}


def run(adapter: Plain, info: Info, case: Case) -> Outcome:
    """Make the calls of a training case."""
    assert case.gamma is not None
    assert case.beta is not None
    assert case.running_mean is not None
    assert case.running_var is not None
    weight = case.momentum if info.momentum == "old" else 1 - case.momentum
    with np.errstate(all="ignore"):
        forward = adapter.train(
            case.x, case.gamma, case.beta, case.running_mean, case.running_var, momentum=weight, eps=case.eps,
            axis=case.axis,
        )  # fmt: skip
        return Outcome(*forward, *adapter.vjp(case.x, case.gamma, case.beta, case.dy, eps=case.eps, axis=case.axis))
