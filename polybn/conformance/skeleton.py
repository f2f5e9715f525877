"""The file that ``polybn check --new-adapter`` writes: an adapter that runs, to be filled in."""

from __future__ import annotations

TEXT = '''\
"""My batch norm, as the conformance kit sees it: polybn check --adapter {module}:MyBatchNorm

Everything arrives as NumPy arrays and leaves as NumPy arrays of your own: convert at both ends, and compute with your
library in between. As it stands, this computes with NumPy, in float64, and passes. Replace the lines marked <-.
"""

import numpy as np

from polybn.conformance import Info


class MyBatchNorm:
    def info(self):
        # What differs from the specification is declared here. Declare nothing at first: the check tells you what to
        # declare. For example momentum="new", running_variance="unbiased", single_value="error", axes="last".
        return Info("my batch norm", "0.1", dtypes=("float32",))

    def train(self, x, gamma, beta, running_mean, running_var, *, momentum, eps, axis):
        # Returns y and both updated running statistics. No argument may change.
        rows = self.rows(x, axis)  # <-
        if not rows.size:
            return np.empty_like(x), running_mean.copy(), running_var.copy()
        xhat, _ = self.normalize(rows, rows.mean(axis=1), rows.var(axis=1), eps)
        y = self.like(x, xhat * gamma[:, None] + beta[:, None], axis)
        # Where x holds NaN or infinity, nothing finite may come of it.
        var = rows.var(axis=1)
        mean = np.where(np.isnan(var), np.nan, rows.mean(axis=1))
        return y, self.blend(running_mean, mean, momentum), self.blend(running_var, var, momentum)

    def infer(self, x, gamma, beta, running_mean, running_var, *, eps, axis):
        # Returns y. If there is no inference, declare infers=False and delete this.
        rows = self.rows(x, axis)  # <-
        xhat, _ = self.normalize(rows, running_mean, running_var, eps)
        return self.like(x, xhat * gamma[:, None] + beta[:, None], axis)

    def vjp(self, x, gamma, beta, dy, *, eps, axis):
        # Returns the gradients of sum(y * dy) in training: of x, gamma and beta. If there is no derivative, declare
        # differentiates=False and delete this.
        rows, g = self.rows(x, axis), self.rows(dy, axis)  # <-
        if not rows.size:
            return np.empty_like(x), np.zeros_like(gamma), np.zeros_like(beta)
        xhat, root = self.normalize(rows, rows.mean(axis=1), rows.var(axis=1), eps)
        along = (g * xhat).mean(axis=1, keepdims=True)
        dx = gamma[:, None] * root * (g - g.mean(axis=1, keepdims=True) - xhat * along)
        return self.like(x, dx, axis), (g * xhat).sum(axis=1).astype(gamma.dtype), g.sum(axis=1).astype(beta.dtype)

    # The rest belongs to this example.

    def rows(self, x, axis):
        first = np.moveaxis(x, axis, 0)
        return first.reshape(len(first), x.size // max(len(first), 1)).astype(np.float64)

    def normalize(self, rows, mean, var, eps):
        square = var.astype(np.float64)[:, None] + eps
        root = np.where(square == 0, 0, 1 / np.sqrt(np.where(square == 0, 1, square)))
        return (rows - mean.astype(np.float64)[:, None]) * root, root

    def like(self, x, rows, axis):
        y = np.empty_like(x)
        first = np.moveaxis(y, axis, 0)
        first[...] = rows.reshape(first.shape)
        return y

    def blend(self, old, new, momentum):
        return (momentum * old.astype(np.float64) + (1 - momentum) * new).astype(old.dtype)
'''


def text(module: str) -> str:
    """Return the file for a module of this name."""
    return TEXT.format(module=module)
