"""Batch norms as different authors might write them: wrong with one fault each, or right in unusual ways."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, ClassVar

import numpy as np

from polybn.conformance.cases import Array
from tests.sabotage.honest import HONEST, Honest
from tests.support.kit_adapters import Reversed, Right, Unbiased

__all__ = ["Reversed", "Right", "Unbiased"]

# Wrong ones.


class Crashing(Right):
    """Crashes in the backward pass, by reading memory that is not its own."""

    def vjp(self, *args: Any, **options: Any) -> Any:
        ctypes.string_at(0)


class Hanging(Right):
    """Never returns from inference."""

    def infer(self, *args: Any, **options: Any) -> Any:
        time.sleep(3600)


class Exiting(Right):
    """Ends the process with exit code 0."""

    def train(self, *args: Any, **options: Any) -> Any:
        raise SystemExit(0)


class Leaving(Right):
    """Ends the process without any clean-up in Python."""

    def infer(self, *args: Any, **options: Any) -> Any:
        os._exit(0)


class Printing(Right):
    """Prints an escape sequence, and writes to the file descriptor directly."""

    def train(self, *args: Any, **options: Any) -> Any:
        print("\x1b[2Jtraining")  # noqa: T201
        os.write(1, b"raw\n")
        return super().train(*args, **options)


class Flat(Right):
    """Returns a flattened y."""

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        return y.ravel(), mean, var


class Wide(Right):
    """Returns float64 gradients for float32."""

    def vjp(self, *args: Any, **options: Any) -> Any:
        dx, dgamma, dbeta = super().vjp(*args, **options)
        return dx.astype(np.float64), dgamma, dbeta


class Blank(Right):
    """Returns NaN in inference."""

    def infer(self, *args: Any, **options: Any) -> Any:
        return np.full_like(super().infer(*args, **options), np.nan)


class Random(Right):
    """Adds a little noise to y."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        return (y * (1 + 1e-7 * self.rng.integers(0, 2, y.shape))).astype(y.dtype), mean, var


class Overwriting(Right):
    """Normalizes in place."""

    def train(self, x: Array, *args: Any, **options: Any) -> Any:
        results = super().train(x, *args, **options)
        if x.flags.writeable:
            x[...] = results[0]
        return results


class Refusing(Right):
    """Refuses subnormal numbers."""

    def train(self, x: Array, *args: Any, **options: Any) -> Any:
        if ((x != 0) & (np.abs(x) < np.finfo(np.float32).smallest_normal)).any():
            raise ValueError("denormal input")
        return super().train(x, *args, **options)


class Subclassed(Right):
    """Returns masked arrays."""

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        return np.ma.masked_array(y), mean, var


class Leaking(Unbiased):
    """Returns a running variance of NaN for one value per channel, and does not declare an error for that."""

    conventions: ClassVar[dict[str, Any]] = {"running_variance": "unbiased"}

    def kept(self, rows: Array) -> Array:
        with np.errstate(all="ignore"):
            m = rows.shape[1]
            return np.asarray(rows.var(axis=1) * (np.float64(m) / (m - 1)))

    def train(self, x: Array, gamma: Array, *args: Any, **options: Any) -> Any:
        y, _, var = super().train(x, gamma, *args, **options)
        mean = self.rows(x, options["axis"]).mean(axis=1) if x.size else args[1]
        return y, self.blend(args[1], mean, options["momentum"]) if x.size else args[1].copy(), var


class NearlySingle(Right):
    """Returns almost beta for one value, declares an unbiased variance, and replaces NaN by 0."""

    conventions: ClassVar[dict[str, Any]] = {"running_variance": "unbiased"}

    def kept(self, rows: Array) -> Array:
        m = rows.shape[1]
        return np.asarray(np.nan_to_num(rows.var(axis=1) * m / max(m - 1, 1)))

    def rows(self, x: Array, axis: int) -> Array:
        return np.asarray(np.nan_to_num(super().rows(x, axis)))

    def shape(self, rows: Array, x: Array, axis: int) -> Array:
        return super().shape(rows + 1e-3 * (rows.shape[1] == 1), x, axis)


class Thawed(Right):
    """Differentiates inference by the formula of training."""

    conventions: ClassVar[dict[str, Any]] = {"differentiates_inference": True}

    def infer_vjp(self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, dy: Array, **options: Any) -> Any:
        return self.vjp(x, gamma, beta, dy, **options)


class Rubbish(Right):
    """Declares values that do not exist."""

    conventions: ClassVar[dict[str, Any]] = {"momentum": "weight"}


class OnlySingle(Right):
    """Serves float32 alone, and says so."""

    conventions: ClassVar[dict[str, Any]] = {"dtypes": ("float32",)}


class SecondAlone(Right):
    """Takes the second axis for that of the channels, whatever it is told, and does not say so."""

    def rows(self, x: Array, axis: int) -> Array:
        return super().rows(x, 1)

    def shape(self, rows: Array, like: Array, axis: int) -> Array:
        return super().shape(rows, like, 1)


class Narrow(Right):
    """Serves float16 alone, on any axis, and sums in float16: its sums depend on the strides of x."""

    conventions: ClassVar[dict[str, Any]] = {"dtypes": ("float16",)}

    def rows(self, x: Array, axis: int) -> Array:
        first = np.moveaxis(x, axis, 0)
        return first.reshape(len(first), x.size // len(first))


class Plainly(Right):
    """Follows PyTorch's conventions and declares nothing, as an author would who does not know that they differ."""

    def blend(self, old: Array, new: Array, momentum: float) -> Array:
        return super().blend(old, new, 1 - momentum)

    def kept(self, rows: Array) -> Array:
        return Unbiased.kept(self, rows)  # type: ignore[arg-type]


class OnlySecond(Right):
    """Serves only images with channel axis 1, and declares to serve everything."""

    def train(self, x: Array, *args: Any, axis: int, **options: Any) -> Any:
        if axis != 1 or x.ndim != 4:
            raise ValueError("expected (N, C, H, W)")
        return super().train(x, *args, axis=axis, **options)


class Flushing(Right):
    """Flushes subnormal numbers to zero, and does not declare it."""

    def rows(self, x: Array, axis: int) -> Array:
        rows = super().rows(x, axis)
        return np.where(np.abs(rows) < np.finfo(np.float32).smallest_normal, 0, rows)


class ByRunning(Right):
    """Normalizes by the updated running statistics in training, and does not declare it."""

    def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
        _, mean, var = super().train(x, *vectors, **options)
        gamma, beta, *_ = vectors
        return self.infer(x, gamma, beta, mean, var, eps=options["eps"], axis=options["axis"]), mean, var


# Right ones.


class Long(Right):
    """Computes in long double."""

    def rows(self, x: Array, axis: int) -> Array:
        return super().rows(x, axis).astype(np.longdouble)


class WelfordWide(Right):
    """Computes by Welford's recurrence in float64."""

    def normalize(self, rows: Array, eps: float) -> tuple[Array, Array]:
        mean, m2 = np.zeros(len(rows)), np.zeros(len(rows))
        for k, column in enumerate(rows.T, 1):
            before = column - mean
            mean = mean + before / k
            m2 = m2 + before * (column - mean)
        square = (m2 / max(rows.shape[1], 1) + eps)[:, None]
        with np.errstate(divide="ignore"):
            root = np.where(square == 0, 0, 1 / np.sqrt(square))
        return (rows - mean[:, None]) * root, root


class Compiled(Right):
    """Declares that it is compiled for each shape."""

    conventions: ClassVar[dict[str, Any]] = {"compiles": True}


class Unlike(Unbiased, Reversed):
    """Differs from the specification in every convention, and declares it."""

    conventions: ClassVar[dict[str, Any]] = {
        "momentum": "new", "running_variance": "unbiased", "single_value": "error", "empty": "error",
        "axes": "second", "ranks": (4,), "dtypes": ("float64",),
    }  # fmt: skip

    def train(self, x: Array, *args: Any, axis: int, **options: Any) -> Any:
        if axis != 1 or x.ndim != 4 or not x.size:
            raise ValueError("expected (N, C, H, W)")
        return super().train(x, *args, axis=axis, **options)

    def blend(self, old: Array, new: Array, momentum: float) -> Array:
        return ((1 - momentum) * old.astype(np.longdouble) + momentum * new).astype(np.float64)

    def rows(self, x: Array, axis: int) -> Array:
        return super().rows(x, axis).astype(np.longdouble)


(TREE,) = (variant for variant in HONEST if variant.id == "tree")


def two_passes(variant: Honest = TREE) -> Any:
    """Make a batch norm that sums in a tree, in the arithmetic of its arrays."""
    return variant.make()
