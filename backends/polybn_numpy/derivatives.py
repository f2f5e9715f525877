"""The second derivative in plain NumPy, by the formulas of :class:`polybn.pullback.SecondPullback`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_numpy import blocks, kernels, plain
from polybn_numpy.call import Residuals
from polybn_numpy.kernels import Column, Mask, Rows
from polybn_numpy.plain import Call

Array = NDArray[Any]


def double_backward(arguments: Arguments, residuals: Residuals, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`polybn_numpy.batch_norm.backward`."""
    second = _Second(plain.call_of(arguments, residuals.counts), residuals.saved, dy, cotangents)
    ddy, ddx = np.zeros_like(dy, subok=False), np.zeros_like(arguments.x, subok=False)
    first_dy, first_dx = (blocks.channels_first(z, arguments.axis) for z in (ddy, ddx))
    wanted = (arguments.gamma is not None, not arguments.training, not arguments.training)
    vectors = [np.zeros(arguments.channels, arguments.dtype) if w else None for w in wanted]

    def differentiate(block: slice) -> None:
        kept = second.call.kept(block)
        of_dy, of_x, *columns = (second.training if arguments.training else second.inference)(block, kept)
        for rows, target in ((of_dy, first_dy), (of_x, first_dx)):
            if kept is not None:
                np.copyto(rows, 0, where=~kept)
            blocks.scatter(rows, target, block)
        _fill(vectors, columns, block)

    if ddx.size:
        blocks.for_each_block(differentiate, arguments.channels, arguments.m)
    return SecondGradients(ddy, ddx, *vectors)


class _Second(NamedTuple):
    """One call of :func:`double_backward`, computed block by block in float64."""

    call: Call
    saved: NDArray[np.float64]
    dy: Array
    cotangents: Gradients

    def operands(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Rows, Column]:
        """Return ``dy``, the normalized values and the cotangent of ``dx`` as rows, and ``r``."""
        g = self.call.rows(self.dy, block, np.float64, kept)
        xhat, statistics = plain.centered(self.call, self.saved, block, np.float64, kept)
        xhat *= statistics.r
        of_x = self.cotangents.x
        a = np.zeros_like(g) if of_x is None else self.call.rows(of_x, block, np.float64, kept)
        return g, xhat, a, statistics.r

    def columns(self, vectors: Sequence[Array | None], block: slice) -> list[Column]:
        """Return a block of cotangents of vectors as columns; None stands for 0."""
        return [self.call.column(vector, block, np.float64, 0) for vector in vectors]

    def training(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Column]:
        """Return the cotangents of ``dy``, ``x`` and ``gamma``."""
        g, xhat, a, r = self.operands(block, kept)
        b, c = self.columns((self.cotangents.gamma, self.cotangents.beta), block)
        scale = r * self.call.column(self.call.arguments.gamma, block, np.float64, 1)
        m = self.call.divisor(block)
        q_g, q_a = (kernels.dots(z, xhat) / m for z in (g, a))
        projected = a.copy()
        kernels.differentiate_centering(projected, xhat.copy(), m, kept)
        a_dot_pg = kernels.dots(projected, g)
        h = b * g - scale * (q_g * a + q_a * g)
        kernels.differentiate_centering(h, xhat.copy(), m, kept)
        of_x = r * h - scale * r * a_dot_pg / m * xhat
        return scale * projected + b * xhat + c, of_x, r * a_dot_pg

    def inference(self, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Column, Column, Column]:
        """Return the cotangents of ``dy``, ``x``, ``gamma`` and the running statistics."""
        g, xhat, a, r = self.operands(block, kept)
        b, c, e, f = self.columns(self.cotangents[1:], block)
        gamma = self.call.column(self.call.arguments.gamma, block, np.float64, 1)
        half = r * r * f / 2
        per_gamma = r * (a - e) - half * xhat
        of_x = r * (b - gamma * half) * g
        of_var = -r * r / 2 * kernels.dots(g, gamma * per_gamma + (b - 2 * gamma * half) * xhat)
        return gamma * per_gamma + b * xhat + c, of_x, kernels.dots(g, per_gamma), -kernels.sums(of_x), of_var


def _fill(vectors: Sequence[Array | None], columns: Sequence[Column], block: slice) -> None:
    """Write a block of per-channel results into the vectors that are wanted."""
    for vector, column in zip(vectors, columns, strict=False):
        if vector is not None:
            vector[block] = column[:, 0]
