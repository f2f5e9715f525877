"""Clause S13 over NumPy arrays: the derivative of one call, and the derivative of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_numpy import blocks, kernels
from polybn_numpy.kernels import Column, Mask, Rows, Statistics

Array = NDArray[Any]


class Residuals(NamedTuple):
    """What a forward call leaves for its derivative, beside its arguments."""

    kept: NDArray[np.bool_] | None
    """The mask in the shape of ``x``, channels first; None where all values take part."""
    counts: NDArray[np.int64]
    """Number of values that take part, per channel."""
    statistics: Statistics


class Call(NamedTuple):
    """One forward call: its arguments, and the statistics that it normalized with."""

    arguments: Arguments
    residuals: Residuals

    def centered(self, block: slice, kept: Mask | None) -> Rows:
        """Gather ``x`` and subtract the mean, in the two steps of S2 and the scale of S10."""
        m1, delta, _, _, exponent = (a[block] for a in self.residuals.statistics)
        rows = self.gather(self.arguments.x, block, kept)
        if exponent.any():
            np.ldexp(rows, -exponent, out=rows)
        kernels.subtract(rows, m1, kept)
        if self.arguments.training:
            kernels.subtract(rows, delta, kept)
        return rows

    def xhat(self, block: slice, kept: Mask | None) -> Rows:
        """Return the normalized values before gamma and beta."""
        rows = self.centered(block, kept)
        rows *= self.residuals.statistics.r[block]
        return rows

    def gather(self, array: Array, block: slice, kept: Mask | None) -> Rows:
        """Gather an array that has the shape of ``x``."""
        arguments = self.arguments
        return blocks.gather(blocks.channels_first(array, arguments.axis), block, arguments.dtype, kept)

    def slope(self, block: slice) -> tuple[Column, Column | None]:
        """Return ``r`` of the unscaled values, and gamma, as columns."""
        return self.residuals.statistics.inverse_root()[block], blocks.column(self.arguments.gamma, block)

    def divisor(self, block: slice) -> Column:
        """Return the number of values per channel, at least 1."""
        return np.maximum(self.residuals.counts[block, None], 1)

    def vector(self, wanted: bool = True) -> Array | None:
        """Allocate a per-channel result of zeros, where one is wanted."""
        return np.zeros(self.arguments.channels, self.arguments.dtype) if wanted else None


def backward(arguments: Arguments, residuals: Residuals, dy: Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    call, training = Call(arguments, residuals), arguments.training
    dx = np.empty_like(arguments.x)
    target = blocks.channels_first(dx, arguments.axis)
    dgamma, dbeta = call.vector(arguments.gamma is not None), call.vector(arguments.beta is not None)
    dmean, dvar = (call.vector(not training) for _ in range(2))

    def differentiate(block: slice) -> None:
        kept = blocks.gather_mask(residuals.kept, block)
        g, xhat = call.gather(dy, block, kept), call.xhat(block, kept)
        r, gamma = call.slope(block)
        if training:
            sum_g, sum_gx = kernels.differentiate_centering(g, xhat, call.divisor(block), kept)
        else:
            sum_g, sum_gx = kernels.sums(g), kernels.dots(g, xhat)
        kernels.affine(g, r, gamma, None, kept)
        blocks.scatter(g, target, block)
        scale = r if gamma is None else gamma * r
        _fill((dgamma, dbeta, dmean, dvar), (sum_gx, sum_g, -scale * sum_g, -scale * r * sum_gx / 2), block)

    if dx.size:
        blocks.for_each_block(differentiate, arguments.channels, arguments.m)
    return Gradients(dx, dgamma, dbeta, dmean, dvar)


def double_backward(arguments: Arguments, residuals: Residuals, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`; the formulas are those of :class:`polybn.pullback.SecondPullback`."""
    second = _Second(Call(arguments, residuals), dy, cotangents)
    ddy, ddx = np.zeros_like(dy), np.zeros_like(arguments.x)
    first_dy, first_dx = (blocks.channels_first(z, arguments.axis) for z in (ddy, ddx))
    dgamma = second.call.vector(arguments.gamma is not None)
    dmean, dvar = (second.call.vector(not arguments.training) for _ in range(2))

    def differentiate(block: slice) -> None:
        kept = blocks.gather_mask(residuals.kept, block)
        of_dy, of_x, *columns = (second.training if arguments.training else second.inference)(block, kept)
        for rows, target in ((of_dy, first_dy), (of_x, first_dx)):
            if kept is not None:
                np.copyto(rows, 0, where=~kept)
            blocks.scatter(rows, target, block)
        _fill((dgamma, dmean, dvar), columns, block)

    if ddx.size:
        blocks.for_each_block(differentiate, arguments.channels, arguments.m)
    return SecondGradients(ddy, ddx, dgamma, dmean, dvar)


class _Second(NamedTuple):
    """One call of :func:`double_backward`, block by block."""

    call: Call
    dy: Array
    cotangents: Gradients

    def operands(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Rows]:
        """Gather ``dy``, the normalized values and the cotangent of ``dx``."""
        g, xhat = self.call.gather(self.dy, block, kept), self.call.xhat(block, kept)
        of_x = self.cotangents.x
        a = np.zeros_like(g) if of_x is None else self.call.gather(of_x, block, kept)
        return g, xhat, a

    def training(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Column]:
        """Return the cotangents of ``dy``, ``x`` and ``gamma``."""
        g, xhat, a = self.operands(block, kept)
        b, c = (_column_or_zero(z, block, g.dtype) for z in (self.cotangents.gamma, self.cotangents.beta))
        r, gamma = self.call.slope(block)
        scale, m = r if gamma is None else gamma * r, self.call.divisor(block)
        q_g, q_a = (_rounded(kernels.dots(z, xhat) / m, g) for z in (g, a))
        projected = a.copy()
        kernels.differentiate_centering(projected, xhat.copy(), m, kept)
        a_dot_pg = _rounded(kernels.dots(projected, g), g)
        h = b * g - scale * (q_g * a + q_a * g)
        kernels.differentiate_centering(h, xhat.copy(), m, kept)
        of_x = r * h - (scale * r * a_dot_pg / m).astype(g.dtype) * xhat
        return scale * projected + b * xhat + c, of_x, r * a_dot_pg

    def inference(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Column, Column, Column]:
        """Return the cotangents of ``dy``, ``x``, ``gamma`` and the running statistics."""
        g, xhat, a = self.operands(block, kept)
        _, gamma_bar, beta_bar, mean_bar, var_bar = self.cotangents
        b, c, e, f = (_column_or_zero(z, block, g.dtype) for z in (gamma_bar, beta_bar, mean_bar, var_bar))
        r, gamma = self.call.slope(block)
        gamma = np.ones_like(r) if gamma is None else gamma
        half = r * r * f / 2
        per_gamma = r * (a - e) - half * xhat
        of_x = r * (b - gamma * half) * g
        of_var = -r * r / 2 * kernels.dots(g, gamma * per_gamma + (b - 2 * gamma * half) * xhat)
        return gamma * per_gamma + b * xhat + c, of_x, kernels.dots(g, per_gamma), -kernels.sums(of_x), of_var


def _fill(vectors: tuple[Array | None, ...], columns: Sequence[Column], block: slice) -> None:
    """Write a block of per-channel results into those that are wanted."""
    for vector, column in zip(vectors, columns, strict=False):
        if vector is not None:
            vector[block] = column[:, 0]


def _column_or_zero(vector: Array | None, block: slice, dtype: np.dtype[Any]) -> Column:
    return np.zeros((1, 1), dtype) if vector is None else vector[block, None]


def _rounded(column: Column, like: Rows) -> Column:
    return column.astype(like.dtype)
