"""A right batch norm in plain NumPy, cut into steps that are small enough to break one at a time.

It follows S1 to S4 line by line and works on rows: one channel per row, in the order of S1. Each public method
below `vjp` is a step; a mutant (mutants.py) or an honest variant (honest.py) is this class with one or two
steps replaced. What `conventions` declares, the class also does, so an honest variant may declare something else.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from polybn.conformance.adapter import Info
from polybn.spec import DomainError

Array: TypeAlias = Any


class Normalized(NamedTuple):
    """A normalized batch with its statistics (S10). ``root`` belongs to values scaled by ``2^-exponent``, and the
    variance is ``variance * 2^lowered``: that may be too large, but not what momentum leaves of it.
    """

    xhat: Array
    root: Array
    exponent: Array
    mean: Array
    variance: Array
    lowered: Array


def column(vector: Array) -> Array:
    return vector[:, None]


class Reference:
    """The specification as an adapter."""

    conventions: ClassVar[dict[str, Any]] = {}

    def info(self) -> Info:
        dtypes = ("float16", "bfloat16", "float32", "float64")
        return Info(type(self).__name__, "1", dtypes=dtypes, differentiates_inference=True)._replace(**self.conventions)

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array,
        *, momentum: float, eps: float, axis: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        with np.errstate(all="ignore"):
            rows = self.load(x, axis)
            if not rows.size:
                return self.no_values(x, running_mean, running_var)
            n = self.normalize(rows, eps)
            y = self.line(rows, n.xhat, 0, column(gamma), column(beta))
            variance = self.kept_variance(n.variance, self.count(rows))
            weight = momentum if self.info().momentum == "old" else 1 - momentum
            new_mean = self.blend(column(running_mean), n.mean, weight)
            new_var = self.blend(np.ldexp(column(running_var), -n.lowered), variance, weight)
            return self.store(y, x, axis), new_mean[:, 0], np.ldexp(new_var, n.lowered)[:, 0]

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, eps: float, axis: int
    ) -> Array:
        with np.errstate(all="ignore"):
            rows = self.load(x, axis)
            xhat, _, k = self.by_running(rows, column(running_mean), column(running_var), eps)
            return self.store(self.line(rows, xhat, k, column(gamma), column(beta)), x, axis)

    def line(self, rows: Array, xhat: Array, k: Any, gamma: Array, beta: Array) -> Array:
        """Scale and shift ``xhat * 2^k``; where that leaves the range on the way, the sum is of halves (S10)."""
        usual, (_, scale) = np.ldexp(xhat, k), np.frexp(gamma)
        y = self.affine(usual, gamma, beta)
        half = np.ldexp(xhat * np.ldexp(gamma, -scale), k + scale - 1) + beta / 2
        safe = np.isfinite(y) & ((np.abs(usual) > np.finfo(usual.dtype).smallest_normal) | (xhat == 0))
        return np.where(safe | ~np.isfinite(rows), y, 2 * half)

    def by_running(self, rows: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Array, Array]:
        """Return values normalized by running statistics, each scaled by its ``2^-k``, the root, and k (S5, S10)."""
        largest = np.maximum(np.abs(rows), np.abs(mean))
        _, k = np.frexp(np.where(np.isfinite(largest), largest, 0))
        root = self.running_root(variance, rows.dtype.type(eps))
        return (np.ldexp(rows, -k) - np.ldexp(mean, -k)) * root, root, k

    def infer_vjp(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, dy: Array, *,
        eps: float, axis: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        with np.errstate(all="ignore"):
            rows, g = self.load(x, axis), self.load_cotangent(dy, axis)
            xhat, root, k = self.by_running(rows, column(running_mean), column(running_var), eps)
            scale, down = self.exponent_of(column(gamma)), self.exponent_of(g)
            g = np.ldexp(g, -down)
            dx = np.ldexp(np.ldexp(column(gamma), -scale) * root * g, scale + down)
            parts, most = np.frexp(g * xhat)
            most = np.where(parts, most + k, -(10**6)).max(axis=1, keepdims=True)
            dgamma = np.ldexp(self.total(np.ldexp(g * xhat, k - most)), down + most)
            return self.store(dx, x, axis), dgamma[:, 0], np.ldexp(self.total(g), down)[:, 0]

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        with np.errstate(all="ignore"):
            rows, g = self.load(x, axis), self.load_cotangent(dy, axis)
            if not rows.size:
                return np.empty_like(x), np.zeros_like(gamma), np.zeros_like(beta)
            n, down = self.normalize(rows, eps), self.exponent_of(g)
            g = np.ldexp(g, -down)
            dbeta, dgamma, m = self.dbeta(g, n), self.dgamma(g, n), self.count(rows)
            scale = self.exponent_of(column(gamma))
            dx = self.dx(g, n.xhat, dbeta / m, dgamma / m, np.ldexp(column(gamma), -scale), n.root)
            dgamma, dbeta = np.ldexp(dgamma, down), np.ldexp(dbeta, down)
            return self.store(np.ldexp(dx, down + scale - n.exponent), x, axis), dgamma[:, 0], dbeta[:, 0]

    def load(self, x: Array, axis: int) -> Array:
        """Bring the values to rows of at least float32 (S1, S6)."""
        first = np.moveaxis(x, axis, 0)
        wide = np.float64 if x.dtype == np.float64 else np.float32
        return first.reshape(len(first), math.prod(first.shape[1:])).astype(wide, order="C")

    def load_cotangent(self, dy: Array, axis: int) -> Array:
        return Reference.load(self, dy, axis)

    def store(self, rows: Array, x: Array, axis: int) -> Array:
        """Bring rows back to shape and dtype of ``x``."""
        result = np.empty(x.shape, x.dtype)
        first = np.moveaxis(result, axis, 0)
        first[...] = rows.reshape(first.shape)
        return result

    def no_values(self, x: Array, running_mean: Array, running_var: Array) -> tuple[Array, Array, Array]:
        return np.empty_like(x), running_mean.copy(), running_var.copy()

    def normalize(self, rows: Array, eps: float) -> Normalized:
        """Measure and normalize a batch, at a scale at which no square leaves the range (S10)."""
        k = self.exponent(rows, eps)
        mean, centered, variance = self.moments(np.ldexp(rows, -k))
        root = self.inverse_root(variance, np.ldexp(rows.dtype.type(eps), -2 * k))
        constant = ~centered.any(axis=1, keepdims=True)  # its scale is that of eps alone
        root = np.where(constant, self.inverse_root(variance, rows.dtype.type(eps)), root)
        mean = mean + 0 * root  # NaN if the channel holds infinity: some variants would keep infinity (S9)
        lowered = np.where(np.isinf(2 * np.ldexp(variance, 2 * k)), 8, 0)  # twice, for the unbiased one
        variance = np.ldexp(variance, 2 * k - lowered)
        return Normalized(centered * root, root, np.where(constant, 0, k), np.ldexp(mean, k), variance, lowered)

    def exponent(self, rows: Array, eps: float) -> Array:
        """Return k such that ``x 2^-k`` and ``eps 4^-k`` are at most 1, or 0 if they need no scale."""
        largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), rows.dtype.type(math.sqrt(eps)))
        _, k = np.frexp(largest)
        far = np.isfinite(largest) & (np.abs(k) > np.finfo(rows.dtype).maxexp // 6)
        return np.where(far, k, 0)

    def exponent_of(self, values: Array) -> Array:
        """Return k such that the values times ``2^-k`` are at most 1, so that no product of a few overflows (S10)."""
        largest = np.abs(values).max(axis=1, keepdims=True, initial=0)
        _, k = np.frexp(np.where(np.isfinite(largest), largest, 0))
        return k

    def moments(self, rows: Array) -> tuple[Array, Array, Array]:
        """Return the mean, the centred values and the biased variance (S2)."""
        m = self.count(rows)
        m1 = self.mean(rows)
        d = rows - m1
        delta = self.total(d) / m
        variance = np.maximum(self.total(d * d) / m - delta * delta, 0)
        return m1 + delta, d - delta, variance

    def mean(self, rows: Array) -> Array:
        """Return the mean, rounded; for a constant channel this is the constant (S8)."""
        constant = (rows == rows[:, :1]).all(axis=1, keepdims=True)
        return np.where(constant, rows[:, :1], self.total(rows) / self.count(rows))

    def total(self, rows: Array) -> Array:
        """Add up each row, pairwise."""
        return np.sum(rows, axis=1, keepdims=True)

    def count(self, rows: Array) -> Any:
        """Return m in the type of the statistics."""
        return rows.dtype.type(rows.shape[1])

    def inverse_root(self, variance: Array, eps: Any) -> Array:
        """Return ``1 / sqrt(v + eps)``, and 0 for 0 (S3)."""
        square = variance + eps
        return np.where(square == 0, 0, 1 / np.sqrt(square)).astype(variance.dtype)

    def running_root(self, variance: Array, eps: Any) -> Array:
        return Reference.inverse_root(self, variance, eps)

    def affine(self, xhat: Array, gamma: Array, beta: Array) -> Array:
        return xhat * gamma + beta

    def kept_variance(self, variance: Array, m: Any) -> Array:
        """Return the variance for the running statistic (S4, S11)."""
        info = self.info()
        if m == 1 and info.single_value == "error":
            raise DomainError("reference: x must have two values a channel or more; got 1 (the variance is unbiased)")
        return variance * (m / (m - 1)) if info.running_variance == "unbiased" and m > 1 else variance

    def blend(self, old: Array, batch: Array, momentum: float) -> Array:
        """Move the old value towards the batch's; momentum 0 and 1 are exact (S4)."""
        if momentum in (0, 1):
            return np.array(old if momentum == 1 else batch)
        return old * old.dtype.type(momentum) + batch * old.dtype.type(1 - momentum)

    def dbeta(self, g: Array, n: Normalized) -> Array:
        return self.total(g)

    def dgamma(self, g: Array, n: Normalized) -> Array:
        return self.total(g * n.xhat)

    def dx(self, g: Array, xhat: Array, mean_g: Array, mean_gx: Array, gamma: Array, root: Array) -> Array:
        """Return the gradient of x (S13); ``mean_gx`` is ``mean(g * xhat)``."""
        return gamma * root * (g - mean_g - xhat * mean_gx)
