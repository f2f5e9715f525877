"""Batch norms with one fault each that shows first where something else is looked for."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import numpy as np

from polybn.conformance.cases import Array
from tests.support.kit_adapters import Right


class Cut(Right):
    """Takes the statistics of a part of the values only."""

    def part(self, x: Array, axis: int) -> Array:
        raise NotImplementedError

    def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
        if not x.size:
            return super().train(x, *vectors, **options)
        gamma, beta, *old = vectors
        axis, momentum = options["axis"], options["momentum"]
        part, rows = self.part(x, axis), self.rows(x, axis)
        root = 1 / np.sqrt(part.var(axis=1) + options["eps"])
        y = (rows - part.mean(axis=1)[:, None]) * (root * gamma)[:, None] + beta[:, None]
        new = part.mean(axis=1), part.var(axis=1)
        return self.shape(y, x, axis), *(self.blend(*pair, momentum) for pair in zip(old, new, strict=True))


class NoTail(Cut):
    """Forgets the values beyond the last multiple of 8."""

    def part(self, x: Array, axis: int) -> Array:
        rows = self.rows(x, axis)
        return rows[:, : rows.shape[1] // 8 * 8] if rows.shape[1] >= 8 else rows


class NoLastImages(Cut):
    """Forgets the images beyond the last multiple of 4."""

    def part(self, x: Array, axis: int) -> Array:
        kept = len(x) // 4 * 4 if axis % x.ndim and len(x) >= 4 else len(x)
        return self.rows(x[:kept], axis)


def values_left(x: Array, axis: int, block: int) -> Array:
    """Return where x holds values of a channel beyond the last multiple of a block, if there is a multiple."""
    rest = [length for place, length in enumerate(x.shape) if place != axis % x.ndim]
    return np.expand_dims(beyond(np.arange(math.prod(rest)), block).reshape(rest), axis)


def images_left(x: Array, axis: int, block: int) -> Array:
    """Return where x holds images beyond the last multiple of a block."""
    left = beyond(np.arange(len(x)), block) if axis % x.ndim else np.zeros(len(x), bool)
    return left.reshape(-1, *(1,) * (x.ndim - 1))


def channels_left(x: Array, axis: int, block: int) -> Array:
    """Return where x holds channels beyond the last multiple of a block."""
    return np.moveaxis(beyond(np.arange(x.shape[axis]), block).reshape(-1, *(1,) * (x.ndim - 1)), 0, axis)


def beyond(places: Array, block: int) -> Array:
    return np.asarray((places >= len(places) // block * block) & (len(places) > block))


class OneByRunning(Right):
    """Normalizes a batch of one image by the running statistics."""

    def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
        y, mean, var = super().train(x, *vectors, **options)
        if options["axis"] % x.ndim and len(x) == 1:
            y = self.infer(x, *vectors, eps=options["eps"], axis=options["axis"])
        return y, mean, var


class OneConstant(Right):
    """Returns beta for a batch of one image."""

    def train(self, x: Array, gamma: Array, *vectors: Any, **options: Any) -> Any:
        one = options["axis"] % x.ndim and len(x) == 1
        return super().train(x, 0 * gamma if one else gamma, *vectors, **options)


class OnlyLast(Right):
    """Takes the last axis for that of the channels, as Keras and Flax do, and does not declare it."""

    def rows(self, x: Array, axis: int) -> Array:
        return super().rows(x, -1)

    def shape(self, rows: Array, like: Array, axis: int) -> Array:
        return super().shape(rows, like, -1)


class DeclaredLast(OnlyLast):
    """Serves the last axis alone, and declares it."""

    conventions: ClassVar[dict[str, Any]] = {"axes": "last"}

    def train(self, x: Array, *args: Any, axis: int, **options: Any) -> Any:
        if axis != x.ndim - 1:
            raise ValueError("channels come last here")
        return super().train(x, *args, axis=axis, **options)

    def infer(self, x: Array, *args: Any, axis: int, **options: Any) -> Any:
        if axis != x.ndim - 1:
            raise ValueError("channels come last here")
        return super().infer(x, *args, axis=axis, **options)

    def vjp(self, x: Array, *args: Any, axis: int, **options: Any) -> Any:
        if axis != x.ndim - 1:
            raise ValueError("channels come last here")
        return super().vjp(x, *args, axis=axis, **options)


class OnlyLastImages(DeclaredLast):
    """Serves images with the channels last, and declares nothing."""

    conventions: ClassVar[dict[str, Any]] = {}

    def train(self, x: Array, *args: Any, **options: Any) -> Any:
        if x.ndim != 4:
            raise ValueError("images, please")
        return super().train(x, *args, **options)


class Gradients(Right):
    """Returns gradients that are changed."""

    def changed(self, dx: Array, dgamma: Array, dbeta: Array) -> tuple[Array, Array, Array]:
        raise NotImplementedError

    def vjp(self, *args: Any, **options: Any) -> Any:
        return self.changed(*super().vjp(*args, **options))


class Swapped(Gradients):
    """Returns dbeta and dgamma."""

    def changed(self, dx: Array, dgamma: Array, dbeta: Array) -> tuple[Array, Array, Array]:
        return dx, dbeta, dgamma


class Meaning(Gradients):
    """Returns means where sums are asked for."""

    def changed(self, dx: Array, dgamma: Array, dbeta: Array) -> tuple[Array, Array, Array]:
        count = dgamma.dtype.type(max(dx.size // max(len(dgamma), 1), 1))
        return dx, dgamma / count, dbeta / count


class Opposite(Gradients):
    """Returns dx with the wrong sign."""

    def changed(self, dx: Array, dgamma: Array, dbeta: Array) -> tuple[Array, Array, Array]:
        return -dx, dgamma, dbeta


class Doubled(Gradients):
    """Returns twice the gradient of beta, which is no usual fault."""

    def changed(self, dx: Array, dgamma: Array, dbeta: Array) -> tuple[Array, Array, Array]:
        return dx, dgamma, 2 * dbeta


class Terms(Right):
    """Leaves out terms of dx."""

    mean: ClassVar[bool] = True
    product: ClassVar[bool] = True

    def vjp(self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int) -> Any:
        dx, dgamma, dbeta = super().vjp(x, gamma, beta, dy, eps=eps, axis=axis)
        if not x.size:
            return dx, dgamma, dbeta
        rows, g = self.rows(x, axis), self.rows(dy, axis)
        xhat, root = self.normalize(rows, eps)
        lost = g.mean(axis=1, keepdims=True) * self.mean
        lost = lost + xhat * (g * xhat).mean(axis=1, keepdims=True) * self.product
        return self.shape(gamma[:, None] * root * (g - lost), x, axis), dgamma, dbeta


class NoMean(Terms):
    mean = False


class NoProduct(Terms):
    product = False


class Constants(Terms):
    mean = product = False


class NoEps(Right):
    """Forgets eps in the gradients."""

    def vjp(self, *args: Any, eps: float, axis: int) -> Any:
        with np.errstate(all="ignore"):
            return super().vjp(*args, eps=0.0, axis=axis)


class SquaredVariance(Right):
    """Takes the running variance for a standard deviation in inference."""

    def infer(self, x: Array, *vectors: Any, **options: Any) -> Any:
        gamma, beta, mean, var = vectors
        with np.errstate(over="ignore"):
            return super().infer(x, gamma, beta, mean, var * var, **options)


class OneMore(Right):
    """Scales by 1 + gamma in inference."""

    def infer(self, x: Array, gamma: Array, *vectors: Any, **options: Any) -> Any:
        return super().infer(x, 1 + gamma, *vectors, **options)


class Leaving(Right):
    """Ends the process in the backward pass."""

    def vjp(self, *args: Any, **options: Any) -> Any:
        os._exit(3)


class Racing(Right):
    """Leaves a value of y unwritten now and then, as threads do that race."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        if y.size > 16 and self.rng.random() < 0.1:
            y.flat[self.rng.integers(y.size)] = 100
        return y, mean, var


class LastBits(Right):
    """Sums in an order that varies, which changes last bits, and keeps the unbiased variance."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def kept(self, rows: Array) -> Array:
        return np.asarray(rows.var(axis=1) * rows.shape[1] / max(rows.shape[1] - 1, 1))

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        return np.where(self.rng.random(y.shape) < 0.5, y, np.nextafter(y, np.float32(9))), mean, var


class Fixed(Right):
    """Weighs the old value by 0.9, whatever momentum is passed, and keeps the unbiased variance."""

    conventions: ClassVar[dict[str, Any]] = {"running_variance": "unbiased"}

    def kept(self, rows: Array) -> Array:
        return np.asarray(rows.var(axis=1) * rows.shape[1] / max(rows.shape[1] - 1, 1))

    def blend(self, old: Array, new: Array, momentum: float) -> Array:
        return super().blend(old, new, 0.9)


class HalfReversed(Right):
    """Takes momentum for the weight of the new value, in the running variance alone."""

    def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
        y, mean, _ = super().train(x, *vectors, **options)
        _, _, var = super().train(x, *vectors, **options | {"momentum": 1 - options["momentum"]})
        return y, mean, var


class FixedVariance(Right):
    """Weighs the old variance by 0.9, whatever momentum is passed."""

    def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
        y, mean, _ = super().train(x, *vectors, **options)
        _, _, var = super().train(x, *vectors, **options | {"momentum": 0.9})
        return y, mean, var


class Clamping(Right):
    """Takes the larger of variance and eps in place of their sum."""

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        root = 1 / np.sqrt(np.maximum(rows.var(axis=1, keepdims=True), eps))
        return (rows - rows.mean(axis=1, keepdims=True)) * root, root
