"""Batch norms for tests of the kit: a right one in float64, and wrong ones with one fault each."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from polybn.conformance import Info
from polybn.conformance.cases import Array


class Right:
    """The specification for float32, computed in float64, where nothing overflows."""

    conventions: ClassVar[dict[str, Any]] = {}
    """The declarations that differ from the specification."""

    def info(self) -> Info:
        return Info(type(self).__name__, "1", **self.conventions)

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array,
        *, momentum: float, eps: float, axis: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        rows = self.rows(x, axis)
        if not rows.size:
            return np.empty_like(x), running_mean.copy(), running_var.copy()
        xhat, _ = self.normalize(rows, eps)
        mean, var = rows.mean(axis=1), self.kept(rows)
        mean[np.isnan(var)] = np.nan
        y = self.shape(xhat * gamma[:, None] + beta[:, None], x, axis)
        return y, self.blend(running_mean, mean, momentum), self.blend(running_var, var, momentum)

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, eps: float, axis: int
    ) -> Array:
        root = 1 / np.sqrt(running_var.astype(float) + eps)
        xhat = (self.rows(x, axis) - running_mean[:, None]) * root[:, None]
        return self.shape(xhat * gamma[:, None] + beta[:, None], x, axis)

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        rows, g = self.rows(x, axis), self.rows(dy, axis)
        if not rows.size:
            return np.empty_like(x), np.zeros_like(gamma), np.zeros_like(beta)
        xhat, root = self.normalize(rows, eps)
        along = (g * xhat).mean(axis=1, keepdims=True)
        dx = gamma[:, None] * root * (g - g.mean(axis=1, keepdims=True) - xhat * along)
        dgamma, dbeta = (s.sum(axis=1).astype(gamma.dtype) for s in (g * xhat, g))
        return self.shape(dx, x, axis), dgamma, dbeta

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        """Return the normalized values and the inverse root, 0 for 0."""
        square = rows.var(axis=1, keepdims=True) + eps
        with np.errstate(divide="ignore"):
            root = np.where(square == 0, 0, 1 / np.sqrt(square))
        return (rows - rows.mean(axis=1, keepdims=True)) * root, root

    def kept(self, rows: Array) -> Array:
        """Return the variance for the running statistic."""
        variance: Array = rows.var(axis=1)
        return variance

    def blend(self, old: Array, new: Array, momentum: float) -> Array:
        with np.errstate(over="ignore"):
            return (momentum * old.astype(float) + (1 - momentum) * new).astype(np.float32)

    def rows(self, x: Array, axis: int) -> Array:
        first = np.moveaxis(x, axis, 0)
        return first.reshape(len(first), math.prod(first.shape[1:])).astype(float)

    def shape(self, rows: Array, x: Array, axis: int) -> Array:
        result = np.empty(x.shape, x.dtype)
        first = np.moveaxis(result, axis, 0)
        first[...] = rows.reshape(first.shape)
        return result


class UnbiasedOutput(Right):
    """Normalizes by the unbiased variance."""

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        m = max(rows.shape[1], 2)
        root = 1 / np.sqrt(rows.var(axis=1, keepdims=True) * m / (m - 1) + eps)
        return (rows - rows.mean(axis=1, keepdims=True)) * root, root


class EpsOutside(Right):
    """Adds eps to the root."""

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        root = 1 / (rows.std(axis=1, keepdims=True) + eps)
        return (rows - rows.mean(axis=1, keepdims=True)) * root, root


class Reversed(Right):
    """Takes momentum for the weight of the new value, and does not declare it."""

    def blend(self, old: Array, new: Array, momentum: float) -> Array:
        return super().blend(old, new, 1 - momentum)


class DeclaredReversed(Reversed):
    """Takes momentum for the weight of the new value, and declares it."""

    conventions: ClassVar[dict[str, Any]] = {"momentum": "new"}


class Unbiased(Right):
    """Keeps the unbiased variance and refuses one value per channel, as PyTorch does, and declares both."""

    conventions: ClassVar[dict[str, Any]] = {"running_variance": "unbiased", "single_value": "error"}

    def kept(self, rows: Array) -> Array:
        if rows.shape[1] == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        variance: Array = rows.var(axis=1, ddof=1)
        return variance


class LeakingNaN(Right):
    """Replaces NaN and infinity in the batch by 0."""

    def rows(self, x: Array, axis: int) -> Array:
        return np.nan_to_num(super().rows(x, axis), posinf=0, neginf=0)


class Writing(Right):
    """Also updates the running mean in place."""

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> Any:
        results = super().train(x, gamma, beta, running_mean, running_var, **options)
        running_mean[...] = results[1]
        return results


class TwoResults(Right):
    """Forgets the running variance."""

    def train(self, *args: Any, **options: Any) -> Any:
        return super().train(*args, **options)[:2]


class WideOutput(Right):
    """Returns float64 for float32."""

    def shape(self, rows: Array, x: Array, axis: int) -> Array:
        return super().shape(rows, x.astype(np.float64), axis)


class Frozen(Right):
    """Normalizes by the statistics of the batch in inference."""

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> Array:
        return self.train(x, gamma, beta, running_mean, running_var, momentum=1.0, **options)[0]


class Forgetful(Right):
    """Counts its training calls, and errs from the third one on."""

    def __init__(self) -> None:
        self.calls = 0

    def train(self, *args: Any, **options: Any) -> tuple[Array, Array, Array]:
        self.calls += 1
        y, mean, var = super().train(*args, **options)
        return y, mean + np.float32(self.calls // 3), var


class OnlyForward(Right):
    """Has no vjp and no inference, and serves one layout."""

    conventions: ClassVar[dict[str, Any]] = {
        "differentiates": False, "infers": False, "axes": "second", "ranks": (4,), "empty": "error",
    }  # fmt: skip
    infer = vjp = None  # type: ignore[assignment]

    def train(self, x: Array, *args: Any, axis: int, **options: Any) -> tuple[Array, Array, Array]:
        if axis != 1 or x.ndim != 4 or not x.size:
            raise ValueError("an image batch (N, C, H, W), please")
        return super().train(x, *args, axis=axis, **options)


class OnePass(Right):
    """Computes the variance in float32 as the mean of squares minus the square of the mean, and declares max_kappa."""

    conventions: ClassVar[dict[str, Any]] = {"max_kappa": 4.0, "differentiates": False}
    vjp = None  # type: ignore[assignment]

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            x = rows.astype(np.float32)
            mean = x.mean(axis=1, keepdims=True)
            var = np.maximum((x * x).mean(axis=1, keepdims=True) - mean * mean, 0)
            root = 1 / np.sqrt(var + np.float32(eps))
            return (x - mean) * root, root


class Untracked(Right):
    """Has no running statistics, and returns meaningless arrays in their place."""

    conventions: ClassVar[dict[str, Any]] = {"tracks": False}

    def train(self, x: Array, gamma: Array, *args: Any, **options: Any) -> tuple[Array, Array, Array]:
        y, mean, _ = super().train(x, gamma, *args, **options)
        return y, np.full_like(mean, np.nan), np.full_like(mean, -1)
