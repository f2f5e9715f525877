"""Clause S13 over NumPy arrays: the pullback of one call, and the pullback of that pullback."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.arguments import Problem, check_arrays, check_cotangents, check_dy, check_record
from polybn.spec import Gradients, SecondGradients
from polybn_numpy import blocks, kernels
from polybn_numpy.kernels import Column, Mask, Rows, Statistics

Array = NDArray[Any]


class Call(NamedTuple):
    """One forward call: what it was given, and the statistics that it normalized with."""

    x: Array
    gamma: Array | None
    beta: Array | None
    kept: NDArray[np.bool_] | None
    counts: NDArray[np.int64]
    statistics: Statistics
    problem: Problem
    training: bool

    def centered(self, block: slice, kept: Mask | None) -> Rows:
        """Gather ``x`` and subtract the mean, in the two steps of S2 and the scale of S10."""
        m1, delta, exponent = (a[block] for a in (self.statistics.m1, self.statistics.delta, self.statistics.exponent))
        rows = blocks.gather(blocks.channels_first(self.x, self.problem.axis), block, self.problem.dtype, kept)
        if exponent.any():
            np.ldexp(rows, -exponent, out=rows)
        kernels.subtract(rows, m1, kept)
        if self.training:
            kernels.subtract(rows, delta, kept)
        return rows

    def xhat(self, block: slice, kept: Mask | None) -> Rows:
        """Return the normalized values before gamma and beta."""
        rows = self.centered(block, kept)
        rows *= self.statistics.r[block]
        return rows

    def cotangent(self, dy: Array, block: slice, kept: Mask | None) -> Rows:
        """Gather an array that has the shape of ``x``."""
        return blocks.gather(blocks.channels_first(dy, self.problem.axis), block, self.problem.dtype, kept)

    def slope(self, block: slice) -> tuple[Column, Column | None]:
        """Return ``r`` of the unscaled values, and gamma, as columns."""
        return self.statistics.inverse_root()[block], blocks.column(self.gamma, block)

    def divisor(self, block: slice) -> Column:
        """Return the number of values per channel, at least 1."""
        return np.maximum(self.counts[block, None], 1)

    def vector(self, wanted: bool = True) -> Array | None:
        """Allocate a per-channel result of zeros, where one is wanted."""
        return np.zeros(self.problem.channels, self.problem.dtype) if wanted else None


class Pullback:
    """The derivative of one call of :func:`batch_norm_vjp`, as a function of ``dy``; call it as often as you like."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, dy: Array, /) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments.

        Parameters
        ----------
        dy : ndarray
            Shape ``(N, C, ...)`` and dtype of ``y``.

        Returns
        -------
        Gradients
            ``x`` in shape and dtype of ``x``; the others shape ``(C,)`` in the dtype of the statistics.

        Raises
        ------
        BackendError, ShapeError, DTypeError
            If ``dy`` is not a NumPy array of that shape and dtype.
        """
        call = self._call
        check_arrays("batch_norm_vjp", "NumPy", _is_array, dy=dy)
        check_dy(dy, call.x)
        dx = np.empty_like(call.x)
        target = blocks.channels_first(dx, call.problem.axis)
        dgamma, dbeta = call.vector(call.gamma is not None), call.vector(call.beta is not None)
        dmean, dvar = (call.vector(not call.training) for _ in range(2))

        def differentiate(block: slice) -> None:
            kept = blocks.gather_mask(call.kept, block)
            g, xhat = call.cotangent(dy, block, kept), call.xhat(block, kept)
            r, gamma = call.slope(block)
            if call.training:
                sum_g, sum_gx = kernels.differentiate_centering(g, xhat, call.divisor(block), kept)
            else:
                sum_g, sum_gx = kernels.sums(g), kernels.dots(g, xhat)
            kernels.affine(g, r, gamma, None, kept)
            blocks.scatter(g, target, block)
            scale = r if gamma is None else gamma * r
            for vector, value in (
                (dgamma, sum_gx), (dbeta, sum_g), (dmean, -scale * sum_g), (dvar, -scale * r * sum_gx / 2),
            ):  # fmt: skip
                if vector is not None:
                    vector[block] = value[:, 0]

        if call.x.size:
            blocks.for_each_block(differentiate, call.problem.channels, call.problem.count)
        return Gradients(dx, dgamma, dbeta, dmean, dvar)

    def vjp(self, dy: Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them."""
        return self(dy), SecondPullback(self._call, dy)


class SecondPullback:
    """The derivative of a pullback: from cotangents of :class:`Gradients` to cotangents of its arguments.

    With ``a`` the cotangent of dx, ``b`` of dgamma, ``c`` of dbeta, ``q_z = mean(z * xhat)`` and
    ``P(z) = z - mean(z) - xhat * q_z``, which is symmetric, training gives::

        of dy     = gamma r P(a) + b xhat + c
        of gamma  = r sum(a P(g))
        of x      = r P(h) - gamma r^2 xhat sum(a P(g)) / m,   h = b g - gamma r (q_g a + q_a g)

    by differentiating ``gamma r sum(a P(g)) + b sum(g xhat) + c sum(g)`` first at fixed r and xhat, then
    through them. Inference, with ``e`` and ``f`` the cotangents of drunning_mean and drunning_var::

        of dy            = gamma r a + b xhat + c - gamma r e - gamma r^2 xhat f / 2
        of x             = r g (b - gamma r^2 f / 2)
        of gamma         = sum(g (r a - r e - r^2 xhat f / 2))
        of running_mean  = -sum(of x)
        of running_var   = -r^2 / 2 sum(g (gamma r a + b xhat - gamma r e - 3/2 gamma r^2 xhat f))
    """

    def __init__(self, call: Call, dy: Array) -> None:
        self._call, self._dy = call, dy

    def __call__(self, cotangents: Gradients, /) -> SecondGradients:
        """Map cotangents of the gradients (None stands for 0) to cotangents of ``dy`` and the arguments."""
        call, problem = self._call, self._call.problem
        self._check(cotangents)
        ddy, ddx = np.zeros_like(self._dy), np.zeros_like(call.x)
        first_dy, first_dx = (blocks.channels_first(z, problem.axis) for z in (ddy, ddx))
        dgamma = call.vector(call.gamma is not None)
        dmean, dvar = (call.vector(not call.training) for _ in range(2))

        def differentiate(block: slice) -> None:
            kept = blocks.gather_mask(call.kept, block)
            step = self._training if call.training else self._inference
            of_dy, of_x, *columns = step(cotangents, block, kept)
            for rows, target in ((of_dy, first_dy), (of_x, first_dx)):
                if kept is not None:
                    np.copyto(rows, 0, where=~kept)
                blocks.scatter(rows, target, block)
            for vector, value in zip((dgamma, dmean, dvar), columns, strict=False):
                if vector is not None:
                    vector[block] = value[:, 0]

        if call.x.size:
            blocks.for_each_block(differentiate, problem.channels, problem.count)
        return SecondGradients(ddy, ddx, dgamma, dmean, dvar)

    def _check(self, cotangents: Gradients) -> None:
        check_record("batch_norm_vjp", "cotangents", cotangents, Gradients)
        given = cotangents._asdict()
        check_arrays("batch_norm_vjp", "NumPy", _is_array, **{f"the cotangent of {k}": v for k, v in given.items()})
        call = self._call
        inference = None if call.training else call.statistics.v[:, 0]
        expected = {"x": call.x, "gamma": call.gamma, "beta": call.beta}
        check_cotangents(expected | {"running_mean": inference, "running_var": inference}, given)

    def _operands(self, cotangents: Gradients, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Rows]:
        call = self._call
        g, xhat = call.cotangent(self._dy, block, kept), call.xhat(block, kept)
        a = np.zeros_like(g) if cotangents.x is None else call.cotangent(cotangents.x, block, kept)
        return g, xhat, a

    def _training(self, cotangents: Gradients, block: slice, kept: Mask | None) -> tuple[Rows, Rows, Column]:
        g, xhat, a = self._operands(cotangents, block, kept)
        b, c = (_column_or_zero(z, block, g.dtype) for z in (cotangents.gamma, cotangents.beta))
        r, gamma = self._call.slope(block)
        scale, m = r if gamma is None else gamma * r, self._call.divisor(block)
        q_g, q_a = (_rounded(kernels.dots(z, xhat) / m, g) for z in (g, a))
        projected = a.copy()
        kernels.differentiate_centering(projected, xhat.copy(), m, kept)
        a_dot_pg = _rounded(kernels.dots(projected, g), g)
        h = b * g - scale * (q_g * a + q_a * g)
        kernels.differentiate_centering(h, xhat.copy(), m, kept)
        of_x = r * h - (scale * r * a_dot_pg / m).astype(g.dtype) * xhat
        return scale * projected + b * xhat + c, of_x, r * a_dot_pg

    def _inference(
        self, cotangents: Gradients, block: slice, kept: Mask | None
    ) -> tuple[Rows, Rows, Column, Column, Column]:
        g, xhat, a = self._operands(cotangents, block, kept)
        _, gamma_bar, beta_bar, mean_bar, var_bar = cotangents
        b, c, e, f = (_column_or_zero(z, block, g.dtype) for z in (gamma_bar, beta_bar, mean_bar, var_bar))
        r, gamma = self._call.slope(block)
        gamma = np.ones_like(r) if gamma is None else gamma
        half = r * r * f / 2
        per_gamma = r * (a - e) - half * xhat
        of_x = r * (b - gamma * half) * g
        of_var = -r * r / 2 * kernels.dots(g, gamma * per_gamma + (b - 2 * gamma * half) * xhat)
        return gamma * per_gamma + b * xhat + c, of_x, kernels.dots(g, per_gamma), -kernels.sums(of_x), of_var


def _is_array(value: object) -> bool:
    return type(value) in (np.ndarray, np.memmap)


def _column_or_zero(vector: Array | None, block: slice, dtype: np.dtype[Any]) -> Column:
    return np.zeros((1, 1), dtype) if vector is None else vector[block, None]


def _rounded(column: Column, like: Rows) -> Column:
    return column.astype(like.dtype)
