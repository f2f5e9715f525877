"""The calls of the grid, from subnormal to largest numbers: see :mod:`polybn.conformance.properties.whole_range`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Array, Case, case_of
from polybn.conformance.properties import served

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info

EXPONENTS = {
    "float16": (-23, -14, -5, 0, 8, 14),
    "bfloat16": (-132, -126, -66, 0, 62, 64, 126),
    "float32": (-148, -126, -75, -66, 0, 3, 62, 64, 66, 100, 126),
    "float64": (-1073, -1022, -540, -500, 0, 3, 505, 512, 520, 900, 1022),
}
"""Sizes of x and dy, as powers of two: subnormal, barely normal, with squares that vanish or overflow, and largest.
The variance of the size in the middle of the large ones is out of range, but not what momentum leaves of it."""
LARGEST = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}
"""A size that dy may have, too: two such values add up to more than the largest number. And a size of vectors:
``xhat * gamma`` may be out of range, and beta bring it back."""
EPS = {"float32": (1e-5, 0.3, 1e-20, 0.0), "float64": (1e-5, 0.3, 1e-200, 0.0)}
"""Values of eps by the dtype of the statistics; 0, which some libraries refuse, comes last."""
PATTERN = (1.0, -0.75, 0.4375)
NEAR, WIDE, FAR = 2.0**-4, 1.0, 2.0
"""The spread of a channel relative to its first value. FAR: the others have another size."""
CHANNELS = 96
"""Points of the grid in one call."""


class Grid(NamedTuple):
    """One call: many channels of one dtype, number of values and eps."""

    dtype: str
    m: int
    eps: float
    training: bool
    derivatives: bool
    nan: bool = False
    """Whether some channels hold a NaN or an infinity; all others must be what they are without."""


def grids(info: Info, *, training: bool, derivatives: bool) -> Sequence[Grid]:
    """List the calls of the grid."""
    found = [
        Grid(dtype, m, eps, training, derivatives)
        for dtype in info.dtypes
        for m in (1, 2, 3)
        for eps in EPS["float64" if dtype == "float64" else "float32"]
        if m > 1 or not training or info.single_value == "beta"
    ]
    return [*found, *(grid._replace(nan=True) for grid in found if grid.m == 3 and grid.eps in (1e-5, 0.0))]


def call_of(info: Info, grid: Grid) -> Case:
    """Make the call of a grid, the same each time."""
    rng = np.random.default_rng([len(grid.dtype), grid.m, int(grid.training), int(-math.log2(grid.eps or 1))])
    dtype, wide = DTYPES[grid.dtype], np.dtype(np.float64 if grid.dtype == "float64" else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        x = _x(rng, info, grid)
        dy = _powers(rng, [*_sizes(info, grid.dtype), LARGEST[grid.dtype]], 1.25) * _factors(rng, grid.m)
        pool = [*_sizes(info, wide.name), LARGEST[wide.name]]
        gamma = np.where(rng.random(CHANNELS) < 0.1, 0.0, _powers(rng, pool, 1.75))
        like_gamma = rng.choice([0.75, 1.0, -1.0], CHANNELS) * gamma
        beta = np.where(rng.random(CHANNELS) < 0.5, like_gamma, rng.choice([0.0, -0.75], CHANNELS))
        mean, var = _running(rng, grid, x, pool)
        if grid.nan:
            x[-1, ::10], x[0, 5::10] = np.nan, np.inf
        whole = served.fitted(info, (grid.m, CHANNELS))
        values, cotangent = (a.astype(dtype).reshape(whole) for a in (x, dy))
        return case_of(
            values,
            (v.astype(wide) for v in (gamma, beta, mean, var)),
            cotangent,
            eps=grid.eps,
            momentum=0.75,
            training=grid.training,
            running_variance=info.running_variance,
        )


def _sizes(info: Info, dtype: str) -> list[int]:
    """Leave out sizes that a library flushes."""
    least = int(np.log2(float(np.finfo("float32" if dtype == "bfloat16" else dtype).smallest_normal)))
    return [e for e in EXPONENTS[dtype] if not info.flushes or e > least + 1]


def _powers(rng: np.random.Generator, pool: Sequence[int], factor: float) -> Array:
    """Draw a size, and a sign, for each channel."""
    signs = rng.choice([-1.0, 1.0], CHANNELS)
    return np.asarray(factor * signs * np.exp2(rng.choice(pool, CHANNELS).astype(np.float64)))


def _x(rng: np.random.Generator, info: Info, grid: Grid) -> Array:
    """Choose values that are equal, nearly equal, of one size, or of two."""
    sizes = _sizes(info, grid.dtype)
    first, other, spread = (
        _powers(rng, sizes, 1.5),
        _powers(rng, sizes, 1.25),
        rng.choice([0, NEAR, WIDE, FAR], CHANNELS),
    )
    pattern = np.array(PATTERN[: grid.m])[:, None]
    near = np.array((-1.0, 1.0, 0.0)[: grid.m])[:, None] * (grid.m > 1)
    x: Array = np.where(spread >= WIDE, first * pattern, first + near * first * spread)
    x[1:] = np.where(spread == FAR, other * pattern[:-1], x[1:])
    return x


def _factors(rng: np.random.Generator, m: int) -> Array:
    """Choose the form of dy: unequal values, equal ones, one alone."""
    shape = np.array(rng.choice([0, 1, 2], CHANNELS))
    factors: Array = np.where(shape == 1, 1.0, np.where(shape == 2, np.eye(m, 1), np.array(PATTERN[:m])[::-1, None]))
    return factors


def _running(rng: np.random.Generator, grid: Grid, x: Array, pool: Sequence[int]) -> tuple[Array, Array]:
    """Choose running statistics: of the size of x in training, of any size in inference."""
    size = np.abs(x).max(axis=0)
    wide = np.finfo(np.float64 if grid.dtype == "float64" else np.float32)
    with np.errstate(under="ignore"):
        square = np.minimum(size**2, float(wide.max) / 4)
    square[square < float(wide.smallest_normal)] = 0.0
    if grid.training:
        return 0.5 * size, square
    other = rng.choice([0.0, 1.0, -1.0], CHANNELS) * x[0]
    mean = np.where(rng.random(CHANNELS) < 0.25, _powers(rng, pool, 1.5), other)
    return mean, np.where((rng.random(CHANNELS) < 0.5) & (square > 0), square, np.abs(_powers(rng, pool, 1.5)))
