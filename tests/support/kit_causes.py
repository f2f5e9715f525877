"""Batch norms with one fault each that shows first where something else is looked for."""

from __future__ import annotations

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
