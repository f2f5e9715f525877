"""The inputs that a grade is based on: distances from zero, constants, outliers, and both ends of the range."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Array

RESTS = {
    2: (2, 1, 1), 3: (3, 1, 1), 31: (31, 1, 1), 257: (257, 1, 1), 1000: (10, 10, 10), 1024: (16, 8, 8),
    16384: (64, 16, 16),
}  # fmt: skip
"""The shape of x without its channels, by m."""
FEW = (3, 31, 1024)
MANY = (2, 3, 31, 257, 1024, 16384)

LONG = (31, 1000, 16384)

Maker = Callable[[np.random.Generator, int, int], Array]


class Family(NamedTuple):
    """A kind of input."""

    name: str
    make: Maker
    """A function that takes a generator, C and m and returns float64 rows ``(C, m)``, not yet rounded to the dtype."""
    sizes: tuple[int, ...] = FEW
    """The values of m to try."""
    both_layouts: bool = False
    """Whether to try channels last, too."""
    in_range: bool = True
    """Whether the sum of the squares of x is finite in the arithmetic."""
    scale: float = 1.0
    """The approximate variance."""


def normal(mean: float, deviation: float, **options: bool | float | tuple[int, ...]) -> Family:
    """Describe normal variates; means have either sign.

    Examples
    --------
    >>> normal(1e4, 0.01).name
    'N(10000, 0.01)'
    """

    def make(rng: np.random.Generator, channels: int, m: int) -> Array:
        return mean * rng.choice([-1, 1], (channels, 1)) + deviation * rng.normal(size=(channels, m))

    name = f"N({mean:.6g}, {deviation:.6g})"
    return Family(name, make, **options)  # type: ignore[arg-type]


def constant(value: float) -> Family:
    """Describe constant channels, each of this value or its negative.

    Examples
    --------
    >>> constant(0.1).name
    'constant 0.1'
    """

    def make(rng: np.random.Generator, channels: int, m: int) -> Array:
        return value * rng.choice([-1, 1], (channels, 1)) * np.ones((channels, m))

    return Family(f"constant {value:.7g}", make, (3, 31, 1024, 16384), both_layouts=True)


def outlier(size: float) -> Family:
    """Describe standard normal variates of which the first is replaced by a large number.

    Examples
    --------
    >>> outlier(1e4).name
    'one outlier'
    """

    def make(rng: np.random.Generator, channels: int, m: int) -> Array:
        rows = rng.normal(size=(channels, m))
        rows[:, 0] = size
        return rows

    return Family("one outlier", make)


def _integers(rng: np.random.Generator, channels: int, m: int) -> Array:
    return rng.integers(0, 256, (channels, m)).astype(np.float64)


def _one_among(rare: float, common: float) -> Maker:
    def make(rng: np.random.Generator, channels: int, m: int) -> Array:
        rows = np.full((channels, m), common)
        rows[np.arange(channels), rng.integers(0, m, channels)] = rare
        return rows

    return make


def _two_valued(rng: np.random.Generator, channels: int, m: int) -> Array:
    return np.where(rng.random((channels, m)) < 0.3, 0.7, 0.1)


def _rectified(rng: np.random.Generator, channels: int, m: int) -> Array:
    return np.maximum(rng.normal(size=(channels, m)), 0)


def _sparse(rng: np.random.Generator, channels: int, m: int) -> Array:
    return np.where(rng.random((channels, m)) < 0.05, rng.normal(1, 0.3, (channels, m)), 0) + _one_among(1, 0)(
        rng, channels, m
    )


def _subnormals(smallest: float) -> Maker:
    return lambda rng, channels, m: smallest * rng.integers(-100, 101, (channels, m))


# Pairs (mean, standard deviation) at which the dtype can still tell values one standard deviation apart.
_LADDERS = {
    "float16": ((10, 1), (100, 1), (0, 1e4)),
    "bfloat16": ((10, 1), (50, 1)),
    "float32": ((10, 1), (100, 1), (1e3, 1), (1e4, 1), (1e5, 1), (1e4, 1e-2)),
    "float64": ((10, 1), (1e3, 1), (1e6, 1), (1e9, 1), (1e12, 1), (1e4, 1e-2)),
}
_LARGE = {"float16": (), "bfloat16": (1e18, 1e25), "float32": (1e18, 1e25), "float64": (1e154, 1e200)}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
# The means at which libraries' sums differ most: they are tried with more values, and in both layouts.
_FAR = {1e3, 1e6}


def _families(dtype: str) -> tuple[Family, ...]:
    ladder = [
        normal(mean, deviation, scale=float(deviation) ** 2)
        if mean not in _FAR
        else normal(mean, deviation, sizes=MANY, both_layouts=True)
        for mean, deviation in _LADDERS[dtype]
    ]
    return (
        normal(0, 1, sizes=MANY, both_layouts=True),
        *ladder,
        *(constant(value) for value in (0.1, 1234.567, 1e4 + 0.1)),
        outlier(1e3 if dtype == "float16" else 1e4),
        Family("integers 0 to 255", _integers, (31, 1024, 16384)),
        # Activations of networks: sums of many equal terms drift where those of random terms do not.
        Family("one 0.7 among 0.1", _one_among(0.7, 0.1), LONG, both_layouts=True),
        Family("one 1 among 0", _one_among(1.0, 0.0), LONG),
        Family("0.1 and 0.7", _two_valued, LONG),
        Family("rectified N(0, 1)", _rectified, LONG),
        Family("sparse", _sparse, LONG),
        Family("subnormal", _subnormals(_SMALLEST[dtype]), (31, 1024)),
        *(normal(0, large, in_range=False) for large in _LARGE[dtype]),
    )


FAMILIES: dict[str, tuple[Family, ...]] = {dtype: _families(dtype) for dtype in DTYPES}
"""The families of each dtype."""
