"""Faults in the formula of y: bias, eps, clamps, gamma and beta."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Reference

R = Reference


def variance(change: Any) -> dict[str, Any]:
    """Change the variance; ``change`` gets it, the centred values and m."""

    def moments(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
        mean, d, v = R.moments(self, rows)
        return mean, d, np.asarray(change(v, d, rows.shape[1])).astype(v.dtype)

    return {"moments": moments}


def root(formula: Any) -> dict[str, Any]:
    """Compute the inverse root as ``formula(v, eps)``."""
    return {"inverse_root": lambda self, v, eps: np.asarray(formula(v, eps)).astype(v.dtype)}


def eps(change: Any) -> dict[str, Any]:
    """Use another eps, in training and its gradient."""
    return {"normalize": lambda self, rows, eps: R.normalize(self, rows, change(eps))}


def affine(formula: Any) -> dict[str, Any]:
    """Compute y as ``formula(xhat, gamma, beta)``."""
    return {"affine": lambda self, xhat, gamma, beta: formula(xhat, gamma, beta)}


def without_sign(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
    mean, d, v = R.moments(self, rows)
    return np.abs(mean), d, v


FORMULA = (
    mutant("unbiased-in-y", "y is divided by the unbiased deviation.", "bias", "",
           **variance(lambda v, d, m: v * (m / max(m - 1, 1)))),
    mutant("mean-distance", "The mean distance stands for the deviation.", "formula", "",
           **variance(lambda v, d, m: np.abs(d).mean(axis=1, keepdims=True) ** 2)),
    mutant("range-for-deviation", "The range stands for the deviation.", "formula", "",
           **variance(lambda v, d, m: np.ptp(d, axis=1, keepdims=True) ** 2)),
    mutant("size-of-mean", "A negative mean loses its sign on its way to the running mean.", "formula", "",
           moments=without_sign),
    mutant("no-root", "y is divided by the variance.", "formula", "", **root(lambda v, eps: 1 / (v + eps))),
    mutant("eps-outside", "eps is added to the root.", "eps", "", **root(lambda v, eps: 1 / (np.sqrt(v) + eps))),
    mutant("eps-squared", "eps is squared.", "eps", "", **root(lambda v, eps: 1 / np.sqrt(v + eps * eps))),
    mutant("eps-subtracted", "eps is subtracted.", "eps", "", **root(lambda v, eps: 1 / np.sqrt(np.abs(v - eps)))),
    mutant("eps-ignored", "eps is not added.", "eps", "",
           **root(lambda v, eps: np.where(v > 0, 1 / np.sqrt(v), 0))),
    mutant("eps-twice", "eps is added twice.", "eps", "", **root(lambda v, eps: 1 / np.sqrt(v + eps + eps))),
    mutant("eps-is-least-variance", "eps replaces smaller variances instead of being added.", "eps", "",
           **root(lambda v, eps: 1 / np.sqrt(np.maximum(v, eps)))),
    mutant("eps-in-half", "eps is rounded to float16.", "eps", "", **eps(lambda eps: float(np.float16(eps)))),
    mutant("eps-of-the-default", "eps is 1e-5 whatever is asked for.", "eps", "", **eps(lambda eps: 1e-5)),
    mutant("eps-has-a-minimum", "An eps below 1e-5 is raised to it in silence.", "eps", "",
           **eps(lambda eps: max(eps, 1e-5))),
    mutant("variance-clamped", "A variance below 1e-6 is raised to it.", "clamps", "",
           **variance(lambda v, d, m: np.maximum(v, 1e-6))),
    mutant("tiny-variance-clamped", "A variance below 1e-12 is raised to it.", "clamps", "",
           **variance(lambda v, d, m: np.maximum(v, 1e-12))),
    mutant("variance-flushed", "A variance below 1e-10 counts as 0.", "clamps", "",
           **variance(lambda v, d, m: np.where(v < 1e-10, 0, v))),
    mutant("values-clipped", "Values are clipped to the range of float16.", "clamps", "",
           load=lambda self, x, axis: np.clip(R.load(self, x, axis), -65504, 65504)),
    mutant("gamma-dropped", "gamma is not applied.", "affine", "", **affine(lambda xhat, gamma, beta: xhat + beta)),
    mutant("beta-dropped", "beta is not added.", "affine", "", **affine(lambda xhat, gamma, beta: xhat * gamma)),
    mutant("gamma-beta-swapped", "gamma and beta change places.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * beta + gamma)),
    mutant("gamma-twice", "gamma is applied twice.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * gamma * gamma + beta)),
    mutant("beta-twice", "beta is added twice.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * gamma + beta + beta)),
    mutant("beta-scaled", "beta is added before gamma is applied.", "affine", "",
           **affine(lambda xhat, gamma, beta: (xhat + beta) * gamma)),
    mutant("gamma-plus-one", "gamma is taken for its distance from 1.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * (1 + gamma) + beta)),
    mutant("gamma-size", "gamma loses its sign.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * np.abs(gamma) + beta)),
    mutant("gamma-of-first", "All channels take the first one's gamma.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * gamma[:1] + beta)),
    mutant("gamma-zero-is-one", "gamma = 0 is taken for no gamma at all.", "affine", "",
           **affine(lambda xhat, gamma, beta: xhat * np.where(gamma == 0, 1, gamma) + beta)),
)  # fmt: skip
