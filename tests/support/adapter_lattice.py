"""Calls of an adapter whose exact answers are floating-point numbers, so that results are compared with ``==``.

A channel holds ``s * (offset + k)`` with small integers k, and eps makes ``v + eps`` the square of ``4 s``, s a power
of two, so that every accurate algorithm gets the exact answer. Answers are computed in fractions.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from polybn.conformance.adapter import Info

Array = np.ndarray[Any, Any]

fractions = np.vectorize(Fraction, otypes=[object])


class Problem(NamedTuple):
    """A call on the lattice."""

    x: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    dy: Array
    eps: float
    axis: int
    rows: Array
    """The values of x as fractions, one row per channel."""
    dy_rows: Array
    root: Fraction
    """``sqrt(variance + eps)``, equal in all channels."""

    @property
    def mean(self) -> Array:
        """Return the batch's mean, as fractions."""
        return np.asarray(self.rows.sum(axis=1) / self.rows.shape[1])

    @property
    def variance(self) -> Array:
        """Return the batch's biased variance, as fractions."""
        return np.asarray(((self.rows - self.mean[:, None]) ** 2).sum(axis=1) / self.rows.shape[1])


@st.composite
def problems(draw: st.DrawFn, info: Info, pattern: tuple[int, ...] = (-3, -1, 1, 3)) -> Problem:
    """Draw a problem that an adapter accepts; ``pattern`` has mean 0 and a mean square below 16."""
    dtype, rank = draw(st.sampled_from(info.dtypes)), draw(st.sampled_from(info.ranks))
    axis = draw(st.integers(-rank, rank - 1) if info.axes == "any" else st.sampled_from((1, 1 - rank)))
    repeats, channels = draw(st.sampled_from((1, 2, 4) if len(pattern) > 2 else (1,))), draw(st.sampled_from((1, 3)))
    rest = draw(rests(len(pattern) * repeats, rank - 1))
    half = dtype in ("float16", "bfloat16")
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, g = draws(rng, pattern, repeats, channels, half=half)
    s = 2.0 ** draw(st.integers(-2, 2) if half else st.integers(-8, 8))
    offset = rng.integers(-1, 3, channels) if half else rng.integers(-40, 41, channels)
    variance = s * s * float(np.square(pattern).mean())
    vectors = (
        rng.choice([-2, -1, -0.5, 0.5, 1, 2], channels),
        rng.integers(-3, 4, channels),
        (offset + 8 * rng.choice([-1, 1], channels)) * s,
        variance + 4 * s * s * rng.integers(4, 9, channels),
    )
    gamma, beta, old_mean, old_var = (v.astype("float64" if dtype == "float64" else "float32") for v in vectors)
    rows, eps = (offset[:, None] + k) * s, 16 * s * s - variance
    x, dy = (in_shape(z, rest, axis).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for z in (rows, g))
    exact = fractions(rows), fractions(g.astype(float))
    p = Problem(x, gamma, beta, old_mean, old_var, dy, eps, axis, *exact, root=Fraction(4 * s))
    assert all(p.variance + Fraction(eps) == p.root**2), "not on the lattice"
    return p


def draws(
    rng: np.random.Generator, pattern: tuple[int, ...], repeats: int, channels: int, *, half: bool
) -> tuple[Array, Array]:
    """Draw rows of k, the pattern in any order, and of dy."""
    k = np.tile(pattern, (channels, repeats))
    g = rng.integers(-4, 5, k.shape)
    if half and len(pattern) == 4:
        # Even libraries that differentiate in bfloat16 are exact if every step fits its 8 bits. These four
        # terms are orthogonal, and dx holds 0, 1, 1 and 11/16 of them.
        terms = (np.ones_like(k), np.tile((1, -1, -1, 1), repeats), np.tile((-1, 3, -3, 1), repeats), k)
        g = np.sum([rng.integers(-1, 2, (channels, 1)) * term for term in terms], axis=0)
    order = rng.permuted(np.tile(np.arange(k.shape[1]), (channels, 1)), axis=1)
    return np.take_along_axis(k, order, axis=1), np.take_along_axis(g, order, axis=1)


def rests(m: int, rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw a shape of m values with at most two sizes other than 1."""
    if rank == 1:
        return st.just((m,))
    return st.sampled_from((1, 2, m)).flatmap(
        lambda size: st.permutations((size, m // size, *[1] * (rank - 2))).map(tuple)
    )


def in_shape(rows: Array, rest: tuple[int, ...], axis: int) -> Array:
    """Lay rows of channels out as x, channels at ``axis``."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), *rest), 0, axis))


def laid_out(draw: Callable[..., Any], x: Array) -> Array:
    """Return x in one of three layouts."""
    layout = draw(st.sampled_from(("C", "F", "reversed")))
    return np.flip(np.flip(x).copy()) if layout == "reversed" else np.array(x, order=layout)


def output(p: Problem, rows: Array | None = None) -> Array:
    """Return the exact y of x, or of other rows, normalized by the given mean and variance (S3, S5)."""
    gamma, beta, mean = (z[:, None] for z in (fractions(p.gamma), fractions(p.beta), p.mean))
    return as_x(p, ((p.rows if rows is None else rows) - mean) / p.root * gamma + beta)


def gradients(p: Problem) -> tuple[Array, Array, Array]:
    """Return the exact gradients of x, gamma and beta (S13)."""
    m, g = p.rows.shape[1], p.dy_rows
    xhat = (p.rows - p.mean[:, None]) / p.root
    along, total = (g * xhat).sum(axis=1), g.sum(axis=1)
    dx = (fractions(p.gamma) / p.root)[:, None] * (g - total[:, None] / m - xhat * along[:, None] / m)
    return as_x(p, dx), along, total


def as_x(p: Problem, rows: Array) -> Array:
    return in_shape(rows, np.moveaxis(p.x, p.axis, 0).shape[1:], p.axis)


def equal(got: Array, exact: Array, dtype: np.dtype[Any]) -> bool:
    """Return whether an array has the given dtype and the exact values, rounded to it."""
    return got.dtype == dtype and got.shape == exact.shape and bool((got == exact.astype(float).astype(dtype)).all())
