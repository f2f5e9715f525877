"""Faults in the gradients: wrong terms, counts and arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.mutants_accuracy import half
from tests.sabotage.reference import Array, Normalized, Reference

R = Reference


def slope(term: Any) -> dict[str, Any]:
    """Replace the bracket of S13; ``term`` gets g, xhat, mean(g) and mean(g xhat)."""
    return {"dx": lambda self, g, xhat, mean_g, mean_gx, gamma, root: gamma * root * term(g, xhat, mean_g, mean_gx)}


def factor(of: Any) -> dict[str, Any]:
    """Replace the factor of S13; ``of`` gets gamma and the inverse root."""
    return {"dx": lambda self, g, xhat, mean_g, mean_gx, gamma, root: of(gamma, root) * (g - mean_g - xhat * mean_gx)}


def after(change: Any) -> dict[str, Any]:
    """Change what `vjp` returns; ``change`` gets the arguments and the three gradients."""

    def vjp(self: Reference, x: Array, gamma: Array, beta: Array, dy: Array, **options: Any) -> Any:
        given = {"self": self, "x": x, "gamma": gamma, "beta": beta, "dy": dy} | options
        results = R.vjp(self, x, gamma, beta, dy, **options)
        with np.errstate(all="ignore"):
            return change(given, *results)

    return {"vjp": vjp}


def other_statistics(**steps: Any) -> dict[str, Any]:
    """Use the changed steps in the gradient only."""
    changed = type("backward", (R,), steps)
    return {"vjp": lambda self, *args, **options: changed().vjp(*args, **options)}


def gradient_count(count: Any) -> dict[str, Any]:
    """Divide by another count, in the means of S13 only."""

    def dx(self: Reference, g: Array, xhat: Array, mean_g: Array, mean_gx: Array, gamma: Array, root: Array) -> Array:
        share = g.dtype.type(g.shape[1] / count(g.shape[1]))
        return R.dx(self, g, xhat, mean_g * share, mean_gx * share, gamma, root)

    return {"dx": dx}


def from_output(self: Reference, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int) -> Any:
    """Recover xhat from y, as memory-saving layers do, which needs a gamma other than 0."""
    dx, dgamma, dbeta = R.vjp(self, x, gamma, beta, dy, eps=eps, axis=axis)
    with np.errstate(all="ignore"):
        dgamma = np.where(gamma == 0, 0 / gamma, dgamma).astype(dgamma.dtype)
    return dx, dgamma, dbeta


def of_x(self: Reference, g: Array, n: Normalized) -> Array:
    """Multiply by x instead of xhat."""
    centered = n.xhat / n.root
    return self.total(g * (np.ldexp(centered, n.exponent) + n.mean))


def rounded_sums(self: Reference, g: Array, n: Normalized) -> Array:
    return half(self.total(g * n.xhat))


def tail(given: dict[str, Any], dx: Array, dgamma: Array, dbeta: Array) -> Any:
    end = len(dgamma) // 64 * 64
    if end:
        dgamma[end:] = 0
    return dx, dgamma, dbeta


def no_values(given: dict[str, Any], dx: Array, dgamma: Array, dbeta: Array) -> Any:
    return (dx, dgamma, dbeta) if dx.size else (dx, dgamma * np.nan, dbeta * np.nan)


GRADIENTS = (
    mutant("mean-of-dy-dropped", "dx lacks mean(dy).", "gradient terms", "",
           **slope(lambda g, xhat, mean_g, mean_gx: g - xhat * mean_gx)),
    mutant("projection-dropped", "dx lacks xhat mean(dy xhat).", "gradient terms", "",
           **slope(lambda g, xhat, mean_g, mean_gx: g - mean_g)),
    mutant("statistics-constant", "dx takes the statistics for constants, as in inference.", "gradient terms", "",
           **slope(lambda g, xhat, mean_g, mean_gx: g)),
    mutant("dy-dropped", "dx lacks dy itself.", "gradient terms", "",
           **slope(lambda g, xhat, mean_g, mean_gx: -mean_g - xhat * mean_gx)),
    mutant("dx-zero", "dx is 0, which a loss of sum(y) does not notice.", "gradient terms", "Odyssey#3174",
           **slope(lambda g, xhat, mean_g, mean_gx: 0 * g)),
    mutant("mean-of-dy-sign", "mean(dy) has the wrong sign.", "gradient signs", "",
           **slope(lambda g, xhat, mean_g, mean_gx: g + mean_g - xhat * mean_gx)),
    mutant("projection-sign", "The projection has the wrong sign.", "gradient signs", "",
           **slope(lambda g, xhat, mean_g, mean_gx: g - mean_g + xhat * mean_gx)),
    mutant("dx-sign", "dx has the wrong sign.", "gradient signs", "",
           **slope(lambda g, xhat, mean_g, mean_gx: mean_g + xhat * mean_gx - g)),
    mutant("dgamma-sign", "dgamma has the wrong sign.", "gradient signs", "",
           **after(lambda given, dx, dgamma, dbeta: (dx, -dgamma, dbeta))),
    mutant("dbeta-sign", "dbeta has the wrong sign.", "gradient signs", "",
           **after(lambda given, dx, dgamma, dbeta: (dx, dgamma, -dbeta))),
    mutant("gradient-m-minus-one", "The means divide by m - 1.", "gradient counts", "",
           **gradient_count(lambda m: max(m - 1, 1))),
    mutant("gradient-sums", "dx subtracts sums, not means.", "gradient counts", "", **gradient_count(lambda m: 1)),
    mutant("dx-gamma-dropped", "dx lacks gamma.", "gradient factors", "", **factor(lambda gamma, root: root)),
    mutant("dx-gamma-twice", "dx takes gamma twice.", "gradient factors", "",
           **factor(lambda gamma, root: gamma * gamma * root)),
    mutant("dx-gamma-size", "dx takes gamma without its sign.", "gradient factors", "",
           **factor(lambda gamma, root: np.abs(gamma) * root)),
    mutant("dx-root-dropped", "dx lacks the inverse root.", "gradient factors", "",
           **factor(lambda gamma, root: gamma)),
    mutant("dx-root-squared", "dx takes the inverse variance.", "gradient factors", "",
           **factor(lambda gamma, root: gamma * root * root)),
    mutant("dx-divided-by-gamma", "dx passes through y / gamma.", "gradient factors", "",
           **factor(lambda gamma, root: gamma * gamma / gamma * root)),
    mutant("gradient-eps-ignored", "The gradient forgets eps.", "gradient statistics", "",
           **other_statistics(normalize=lambda self, rows, eps: R.normalize(self, rows, 0.0))),
    mutant("gradient-eps-default", "The gradient takes eps = 1e-5 whatever is asked for.", "gradient statistics", "",
           **other_statistics(normalize=lambda self, rows, eps: R.normalize(self, rows, 1e-5))),
    mutant("gradient-unbiased", "The gradient takes the unbiased variance.", "gradient statistics", "",
           **other_statistics(moments=lambda self, rows: (lambda mean, d, v: (
               mean, d, v * rows.dtype.type(rows.shape[1] / max(rows.shape[1] - 1, 1))))(*R.moments(self, rows)))),
    mutant("gradient-of-running", "The gradient takes running statistics, at their start of 0 and 1.",
           "gradient statistics", "", **other_statistics(moments=lambda self, rows: (
               np.zeros_like(rows[:, :1]), rows, np.ones_like(rows[:, :1])))),
    mutant("dgamma-of-x", "dgamma multiplies by x.", "gradient factors", "", dgamma=of_x),
    mutant("dgamma-of-distance", "dgamma multiplies by x - mean.", "gradient factors", "",
           dgamma=lambda self, g, n: self.total(g * n.xhat / n.root) if n.xhat.size else self.total(g)),
    mutant("dgamma-with-beta", "dgamma multiplies by y / gamma, beta and all.", "gradient factors", "",
           **after(lambda given, dx, dgamma, dbeta: (
               dx, dgamma + (given["beta"] * dbeta / given["gamma"]).astype(dbeta.dtype), dbeta))),
    mutant("dgamma-mean", "dgamma is a mean.", "gradient counts", "",
           **after(lambda given, dx, dgamma, dbeta: (
               dx, (dgamma / max(dx.size // max(len(dgamma), 1), 1)).astype(dgamma.dtype), dbeta))),
    mutant("dbeta-mean", "dbeta is a mean.", "gradient counts", "",
           **after(lambda given, dx, dgamma, dbeta: (
               dx, dgamma, (dbeta / max(dx.size // max(len(dbeta), 1), 1)).astype(dbeta.dtype)))),
    mutant("dgamma-dbeta-swapped", "dgamma and dbeta change places.", "gradient factors", "",
           **after(lambda given, dx, dgamma, dbeta: (dx, dbeta, dgamma))),
    mutant("dgamma-zero-with-gamma", "Where gamma is 0, dgamma is 0.", "gamma zero", "",
           **after(lambda given, dx, dgamma, dbeta: (dx, dgamma * (given["gamma"] != 0), dbeta))),
    mutant("dgamma-recovered", "xhat is recovered from y: dgamma is NaN where gamma is 0.", "gamma zero", "",
           vjp=from_output),
    mutant("dgamma-in-half", "dgamma passes through float16.", "dtype", "", dgamma=rounded_sums),
    mutant("dgamma-tail", "dgamma of channels beyond a multiple of 64 is not written.", "tails", "", **after(tail)),
    mutant("dy-in-half", "dy is read as float16.", "dtype", "",
           load_cotangent=lambda self, dy, axis: half(R.load(self, dy, axis))),
    mutant("dy-flushed", "Small dy count as 0.", "clamps", "",
           load_cotangent=lambda self, dy, axis: (lambda g: np.where(np.abs(g) < 1e-3, 0, g))(R.load(self, dy, axis))),
    mutant("dy-clipped", "dy is clipped to 1, as gradients are elsewhere.", "clamps", "",
           load_cotangent=lambda self, dy, axis: np.clip(R.load(self, dy, axis), -1, 1)),
    mutant("no-values-gradient-nan", "N = 0 gives gradients of NaN.", "empty", "pytorch#95324", **after(no_values)),
    mutant("nan-gradient-zero", "A channel of NaN has no gradient.", "nan", "",
           dx=lambda self, *args: np.nan_to_num(R.dx(self, *args))),
)  # fmt: skip
