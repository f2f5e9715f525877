"""Faults of inference: wrong statistics, or eps in a wrong place."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Reference, column

R = Reference


def blend(old: Array, batch: Array) -> Array:
    return R.blend(R(), old, batch, 0.9)


def infers(change: Any) -> dict[str, Any]:
    """Change the input of `infer`; ``change`` gets the adapter, rows, mean, variance and eps as columns."""

    def infer(
        self: Reference, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, axis: int
    ) -> Array:
        with np.errstate(all="ignore"):
            rows = self.load(x, axis)
            if rows.size:
                mean, var, e = change(self, rows, column(mean), column(var), rows.dtype.type(eps))
                xhat = (rows - mean) * self.inverse_root(np.asarray(var), e)
                return self.store(self.affine(xhat, column(gamma), column(beta)).astype(rows.dtype), x, axis)
            return np.empty_like(x)

    return {"infer": infer}


def batch(self: Reference, rows: Array) -> tuple[Array, Array]:
    n = self.normalize(rows, 1e-5)
    return n.mean, n.variance


def blended_with_batch(self: Reference, rows: Array, mean: Array, var: Array, eps: Any) -> tuple[Array, Array, Any]:
    batch_mean, batch_var = batch(self, rows)
    return blend(mean, batch_mean), blend(var, batch_var), eps


def folded_in_half(
    self: Reference, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, axis: int
) -> Array:
    if x.dtype.itemsize != 2:
        return R.infer(self, x, gamma, beta, mean, var, eps=eps, axis=axis)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + np.float32(eps))
        shift = beta - mean * scale
        y = R.load(self, x, axis).astype(x.dtype) * column(scale.astype(x.dtype)) + column(shift.astype(x.dtype))
        return self.store(y, x, axis)


INFERENCE = (
    mutant("batch-in-inference", "Inference takes the batch's statistics.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (*batch(self, rows), eps))),
    mutant("blend-in-inference", "Inference blends the batch's statistics in.", "inference",
           "onnx#8442, onnx#5799", **infers(blended_with_batch)),
    mutant("eps-ignored-in-inference", "Inference forgets eps.", "inference", "chainer#2149, chainer#855",
           **infers(lambda self, rows, mean, var, eps: (mean, var, 0 * eps))),
    mutant("eps-twice-in-inference", "Inference adds eps twice.", "inference", "chainer#4505",
           **infers(lambda self, rows, mean, var, eps: (mean, var, eps + eps))),
    mutant("eps-outside-in-inference", "Inference adds eps to the root.", "inference", "",
           running_root=lambda self, variance, eps: 1 / (np.sqrt(variance) + eps)),
    mutant("mean-dropped-in-inference", "Inference does not subtract the mean.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (0 * mean, var, eps))),
    mutant("no-root-in-inference", "Inference takes the variance for a deviation.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (mean, var * var, eps))),
    mutant("statistics-swapped-in-inference", "Inference takes the mean for the variance.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (var, np.abs(mean), eps))),
    mutant("unbiased-in-inference", "Inference corrects the running variance for bias.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (
               mean, (var * (rows.shape[1] / max(rows.shape[1] - 1, 1))).astype(var.dtype), eps))),
    mutant("batch-mean-in-inference", "Inference takes the batch's mean and the running variance.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (batch(self, rows)[0], var, eps))),
    mutant("half-in-inference", "Inference folds into float16 or bfloat16 factors.", "inference", "",
           infer=folded_in_half),
    mutant("neighbours-mean-in-inference", "Inference subtracts the neighbour's mean.", "inference", "",
           **infers(lambda self, rows, mean, var, eps: (np.roll(mean, 1, axis=0), var, eps))),
)  # fmt: skip
