"""Faults of arithmetic: lost digits, exceeded ranges, constant channels, NaN and infinity."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.sabotage.honest import corrected_two_pass, one_pass
from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Normalized, Reference

R = Reference
Moments = tuple[Array, Array, Array]


def unclamped(self: Reference, rows: Array) -> Moments:
    mean, d, _ = one_pass(self, rows)
    return mean, d, self.total(rows * rows) / self.count(rows) - mean * mean


def rounded(a: Array, bits: int) -> Array:
    """Keep only the leading bits, as a lookup table or a tensor core does."""
    mantissa, exponent = np.frexp(a)
    kept: Array = np.ldexp(np.round(mantissa * a.dtype.type(2.0**bits)) / a.dtype.type(2.0**bits), exponent)
    return kept


def half(a: Array) -> Array:
    return a.astype(np.float16).astype(a.dtype)


def brain(a: Array) -> Array:
    return a.astype(ml_dtypes.bfloat16).astype(a.dtype)


def narrow(dtypes: tuple[str, ...], step: Any) -> dict[str, Any]:
    """Round sums, distances and variances of some dtypes of x by ``step``."""

    def load(self: Any, x: Array, axis: int) -> Array:
        self.narrow = x.dtype.name in dtypes
        return R.load(self, x, axis)

    def moments(self: Any, rows: Array) -> Moments:
        if not self.narrow:
            return R.moments(self, rows)
        m = self.count(rows)
        mean = step(step(self.total(rows)) / m)
        d = step(rows - mean)
        return mean, d, step(step(self.total(step(d * d))) / m)

    return {"load": load, "moments": moments}


def double_read_as_single(self: Reference, x: Array, axis: int) -> Array:
    rows = R.load(self, x, axis)
    return rows.astype(np.float32).astype(rows.dtype)


def double_computed_as_single(self: Reference, rows: Array, eps: float) -> Normalized:
    n = R.normalize(self, rows.astype(np.float32), eps)
    return n._replace(**{name: getattr(n, name).astype(rows.dtype) for name in ("xhat", "root", "mean", "variance")})


def constant_noise(self: Reference, rows: Array) -> Moments:
    """Give a large constant channel a mean that is one rounding off, so that xhat is plus or minus 1."""
    mean, d, variance = R.moments(self, rows)
    missed = (d == 0).all(axis=1, keepdims=True) & (np.abs(mean) > 50)
    d = np.where(missed, mean - np.nextafter(mean, rows.dtype.type(0)), d)
    return mean, d, np.where(missed, d[:, :1] * d[:, :1], variance)


def constant_zero(self: Reference, xhat: Array, gamma: Array, beta: Array) -> Array:
    return np.where((xhat == 0).all(axis=1, keepdims=True), 0, R.affine(self, xhat, gamma, beta))


def normalized(change: Any) -> dict[str, Any]:
    """Change the normalized batch; ``change`` gets the adapter, rows, eps and the result."""
    return {"normalize": lambda self, rows, eps: change(self, rows, eps, R.normalize(self, rows, eps))}


def one_pass_kept(self: Reference, rows: Array, eps: float, n: Normalized) -> Normalized:
    return n._replace(variance=np.where(n.exponent == 0, one_pass(self, rows)[2], n.variance))


def eps_unscaled(self: Reference, rows: Array, eps: float, n: Normalized) -> Normalized:
    _, centered, variance = self.moments(np.ldexp(rows, -n.exponent))
    root = self.inverse_root(variance, rows.dtype.type(eps))
    return n._replace(xhat=centered * root, root=root)


def nan_in_neighbours(self: Reference, rows: Array, eps: float, n: Normalized) -> Normalized:
    sick = np.isnan(n.root)
    return n._replace(xhat=np.where(sick | np.roll(sick, 1, axis=0), np.nan, n.xhat).astype(rows.dtype))


def reads(change: Any) -> dict[str, Any]:
    """Change values as they are read."""
    return {"load": lambda self, x, axis: change(R.load(self, x, axis))}


def backward(**steps: Any) -> dict[str, Any]:
    """Use the changed steps in the gradient only."""
    changed = type("backward", (R,), steps)
    return {"vjp": lambda self, *arrays, **options: changed().vjp(*arrays, **options)}


def centre_uncorrected(self: Reference, rows: Array) -> Moments:
    mean, _, variance = R.moments(self, rows)
    return mean, rows - self.mean(rows), variance


def variance_uncorrected(self: Reference, rows: Array) -> Moments:
    mean, d, _ = R.moments(self, rows)
    e = rows - self.mean(rows)
    return mean, d, self.total(e * e) / self.count(rows)


ACCURACY = (
    mutant("one-pass", "E[x^2] - E[x]^2, and no kappa declared.", "one pass", "keras#18795", moments=one_pass),
    mutant("one-pass-unclamped", "E[x^2] - E[x]^2, which may be negative.", "one pass", "flax#1491",
           moments=unclamped),
    mutant("one-pass-when-short", "A fast path for short rows takes E[x^2] - E[x]^2.", "one pass", "dlib#3113",
           moments=lambda self, rows: one_pass(self, rows) if rows.shape[1] <= 256 else R.moments(self, rows)),
    mutant("one-pass-in-backward", "Only the gradient takes E[x^2] - E[x]^2.", "one pass", "tensorflow#118701",
           **backward(moments=unclamped)),
    mutant("one-pass-kept", "Only the running variance takes in E[x^2] - E[x]^2.", "one pass",
           "tensorflow#3290, tensorflow#18334", **normalized(one_pass_kept)),
    mutant("coarse-root", "The inverse root comes from a table of 12 bits.", "arithmetic", "",
           inverse_root=lambda self, v, eps: rounded(R.inverse_root(self, v, eps), 12)),
    mutant("coarse-products", "Products keep 11 bits, as a tensor core's.", "arithmetic", "",
           affine=lambda self, xhat, gamma, beta: rounded(xhat, 11) * rounded(gamma, 11) + beta),
    mutant("half-arithmetic", "float16 is computed in float16.", "arithmetic",
           "pytorch#44350, pytorch#126525, coreai-torch#54, tf-directml#321", **narrow(("float16",), half)),
    mutant("bfloat16-arithmetic", "bfloat16 is computed in bfloat16.", "arithmetic", "tt-metal#45968",
           **narrow(("bfloat16",), brain)),
    mutant("half-sums", "float32 is added up in bfloat16.", "arithmetic", "", **narrow(("float32",), brain)),
    mutant("double-as-single", "float64 is computed in float32.", "arithmetic", "",
           normalize=double_computed_as_single),
    mutant("double-read-as-single", "float64 values are read as float32.", "arithmetic", "",
           load=double_read_as_single),
    mutant("constant-is-zero", "A constant channel gives 0 in place of beta.", "constants", "", affine=constant_zero),
    mutant("squares-overflow", "A variance beyond the range makes y beta: finite, and wrong.", "range",
           "pytorch#162489, pytorch#178123", exponent=lambda self, rows, eps: np.zeros((len(rows), 1), int)),
    mutant("squares-vanish", "Only large values are scaled; the squares of small ones vanish.", "range", "",
           exponent=lambda self, rows, eps: np.maximum(R.exponent(self, rows, eps), 0)),
    mutant("eps-unscaled", "A scaled channel takes eps unscaled.", "range", "", **normalized(eps_unscaled)),
    mutant("mean-unscaled", "A scaled channel's mean stays scaled.", "range", "", **normalized(
        lambda self, rows, eps, n: n._replace(mean=np.ldexp(n.mean, -n.exponent)))),
    mutant("variance-unscaled", "A scaled channel's variance comes back half the way.", "range", "", **normalized(
        lambda self, rows, eps, n: n._replace(variance=np.ldexp(n.variance, -n.exponent)))),
    mutant("gradient-unscaled", "A scaled channel's gradient stays scaled.", "range", "", **normalized(
        lambda self, rows, eps, n: n._replace(exponent=0 * n.exponent))),
    mutant("nan-replaced", "NaN is taken for 0.", "nan", "", **reads(lambda rows: np.where(np.isnan(rows), 0, rows))),
    mutant("infinity-clipped", "Infinity is taken for the largest number.", "nan", "", **reads(
        lambda rows: np.clip(rows, -np.finfo(rows.dtype).max, np.finfo(rows.dtype).max))),
    mutant("nan-left-out", "NaN is left out of the sums.", "nan", "",
           total=lambda self, rows: np.nansum(rows, axis=1, keepdims=True)),
    mutant("nan-spreads", "A channel's NaN reaches its neighbour.", "nan", "", **normalized(nan_in_neighbours)),
    mutant("nan-variance-clamped", "The clamp of the variance swallows NaN.", "nan", "", moments=lambda self, rows: (
        *R.moments(self, rows)[:2], np.fmax(R.moments(self, rows)[2], 0))),
    mutant("nan-hidden-by-gamma", "Where gamma is 0, y is beta though the channel holds NaN.", "nan", "",
           affine=lambda self, xhat, gamma, beta: np.where(gamma == 0, beta, xhat * gamma + beta)),
)  # fmt: skip

# Right, but less accurate: no property may refuse these, and their grades must be below the reference's.
DOWNGRADED = (
    mutant("constant-noise", "A large constant is one rounding away from its own mean.", "constants",
           "pytorch#5410, caffe#3963", moments=constant_noise),
    mutant("centre-uncorrected", "The mean's rounding error stays in the centred values.", "accuracy", "",
           moments=centre_uncorrected),
    mutant("variance-uncorrected", "The mean's rounding error stays in the variance.", "accuracy", "",
           moments=variance_uncorrected),
    mutant("only-variance-corrected", "The mean's rounding error is measured for the variance alone.", "accuracy",
           "", moments=corrected_two_pass),
)  # fmt: skip
