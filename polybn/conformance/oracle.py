"""Batch normalization of one channel in exact arithmetic: what every backend is measured against.

Statistics are fractions, the inverse root has a relative error below ``2^-BITS``, and everything
else is exact. Plain Python on purpose: no array library, no floating-point operation, no line shared with
a backend. A channel is a :class:`ExactRow`: many rational numbers over one denominator, so that a hundred
thousand values cost integer operations and no greatest common divisors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

BITS = 320


class ExactRow(NamedTuple):
    """Rational numbers over one positive denominator."""

    numerators: list[int]
    denominator: int

    def floats(self) -> list[float]:
        """Round each number to float64, correctly."""
        return [_divided(n, self.denominator) for n in self.numerators]

    def distances(self, got: Iterable[float]) -> list[float]:
        """Return the exact distance of each given number from each of these, rounded at the end.

        Parameters
        ----------
        got : iterable of float
            Finite, and as many.
        """
        pairs = (g.as_integer_ratio() for g in got)
        d = self.denominator
        return [_divided(abs(p * d - n * q), q * d) for n, (p, q) in zip(self.numerators, pairs, strict=True)]


def _divided(n: int, d: int) -> float:
    """Round a quotient to float64; what is too large is infinite."""
    try:
        return n / d
    except OverflowError:
        return math.inf if n > 0 else -math.inf


class Statistics(NamedTuple):
    """The statistics that a channel is normalized with."""

    m: int
    """The number of values."""
    mean: Fraction
    variance: Fraction
    """The biased variance."""
    square: Fraction
    """``variance + eps``."""
    root: Fraction
    """``1 / sqrt(square)``; 0 where ``square`` is 0 (S3)."""


class Derivatives(NamedTuple):
    """Cotangents of the arguments; those of the running statistics are 0 in training."""

    x: ExactRow
    gamma: Fraction
    beta: Fraction
    running_mean: Fraction
    running_var: Fraction


class Parts(NamedTuple):
    """Mergeable moments of one channel (S15)."""

    m: int
    mean: Fraction
    m2: Fraction


def row(values: Iterable[float]) -> ExactRow:
    """Take finite floating-point numbers as they are.

    Examples
    --------
    >>> from polybn.conformance import oracle
    >>> oracle.row([0.5, 3.0])
    ExactRow(numerators=[1, 6], denominator=2)
    """
    ratios = [value.as_integer_ratio() for value in values]
    denominator = max((d for _, d in ratios), default=1)  # powers of two: the largest serves them all
    return ExactRow([n * (denominator // d) for n, d in ratios], denominator)


def combine(constant: Fraction, *terms: tuple[Fraction, ExactRow]) -> ExactRow:
    """Return ``constant + sum(factor * row)``, value by value.

    Parameters
    ----------
    *terms : tuple of Fraction and ExactRow
        Factors and rows of equal length.
    """
    factors = [factor / row.denominator for factor, row in terms]
    denominator = math.lcm(constant.denominator, *(f.denominator for f in factors))
    start = int(constant * denominator)
    total = [start] * len(terms[0][1].numerators)
    for factor, (_, values) in zip(factors, terms, strict=True):
        scale = int(factor * denominator)
        total = [t + scale * n for t, n in zip(total, values.numerators, strict=True)]
    return ExactRow(total, denominator)


def total(values: ExactRow) -> Fraction:
    """Add up a row."""
    return Fraction(sum(values.numerators), values.denominator)


def dot(a: ExactRow, b: ExactRow) -> Fraction:
    """Return the inner product of two rows.

    Parameters
    ----------
    a, b : ExactRow
        Two rows of equal length.
    """
    products = (p * q for p, q in zip(a.numerators, b.numerators, strict=True))
    return Fraction(sum(products), a.denominator * b.denominator)


def inverse_root(square: Fraction) -> Fraction:
    """Return ``1 / sqrt(square)`` rounded down to BITS correct bits, and 0 for 0.

    Parameters
    ----------
    square : Fraction
        Not negative.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from polybn.conformance import oracle
    >>> float(oracle.inverse_root(Fraction(4)))
    0.5
    """
    if square == 0:
        return Fraction(0)
    up, down = square.denominator, square.numerator
    shift = max(0, BITS + 1 + (down.bit_length() - up.bit_length()) // 2)
    return Fraction(math.isqrt((up << 2 * shift) // down), 1 << shift)


def batch_statistics(x: ExactRow, eps: Fraction) -> Statistics:
    """Measure a channel (S2).

    Parameters
    ----------
    x : ExactRow
        The channel's values.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from polybn.conformance import oracle
    >>> s = oracle.batch_statistics(oracle.row([1.0, 2.0, 3.0, 6.0]), Fraction(0))
    >>> s.mean, s.variance
    (Fraction(3, 1), Fraction(7, 2))
    """
    m, first, second = len(x.numerators), sum(x.numerators), sum(n * n for n in x.numerators)
    variance = Fraction(m * second - first * first, (m * x.denominator) ** 2)
    return given_statistics(m, Fraction(first, m * x.denominator), variance, eps)


def given_statistics(m: int, mean: Fraction, variance: Fraction, eps: Fraction) -> Statistics:
    """Take running statistics as they are (S5).

    Parameters
    ----------
    m : int
        The number of values of the channel.
    """
    square = variance + eps
    return Statistics(m, mean, variance, square, inverse_root(square))


def unbiased(s: Statistics) -> Fraction:
    """Apply Bessel's correction to the variance.

    Parameters
    ----------
    s : Statistics
        Statistics of two values or more.
    """
    return s.variance * s.m / (s.m - 1)


def blend(old: Fraction, batch: Fraction, momentum: Fraction) -> Fraction:
    """Update a running statistic (S4).

    Parameters
    ----------
    old, batch : Fraction
        The running value, and the batch's.
    momentum : Fraction
        Weight of the old value.
    """
    return momentum * old + (1 - momentum) * batch


def centered(x: ExactRow, s: Statistics) -> ExactRow:
    """Subtract the mean.

    Parameters
    ----------
    x : ExactRow
        The channel's values.
    s : Statistics
        The statistics that normalize it.
    """
    return combine(-s.mean, (Fraction(1), x))


def output(x: ExactRow, s: Statistics, gamma: Fraction, beta: Fraction) -> ExactRow:
    """Normalize, scale and shift (S3, S5).

    Parameters
    ----------
    x : ExactRow
        The channel's values.
    s : Statistics
        The statistics that normalize it.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from polybn.conformance import oracle
    >>> x = oracle.row([1.0, 3.0])
    >>> oracle.output(x, oracle.batch_statistics(x, Fraction(0)), Fraction(2), Fraction(1)).floats()
    [-1.0, 3.0]
    """
    slope = gamma * s.root
    return combine(beta - slope * s.mean, (slope, x))


def derivatives(x: ExactRow, dy: ExactRow, s: Statistics, gamma: Fraction, *, training: bool) -> Derivatives:
    """Map a cotangent of the output to cotangents of the arguments (S13).

    ``xhat = c * r``, so ``xhat * mean(g * xhat) = c * mean(g * c) / (v + eps)`` is rational.

    Parameters
    ----------
    x : ExactRow
        The channel's values.
    dy : ExactRow
        The cotangent.
    s : Statistics
        The statistics that normalize it.
    training : bool
        Whether the statistics are the batch's own.
    """
    c, slope, sum_g = centered(x, s), gamma * s.root, total(dy)
    along = dot(dy, c)
    curvature = along / s.square if s.square else Fraction(0)
    zero = Fraction(0)
    if not training:
        return Derivatives(combine(zero, (slope, dy)), s.root * along, sum_g, -slope * sum_g, -slope * curvature / 2)
    dx = combine(-slope * sum_g / s.m, (slope, dy), (-slope * curvature / s.m, c))
    return Derivatives(dx, s.root * along, sum_g, zero, zero)


def tangent(x: ExactRow, s: Statistics, gamma: Fraction, dx: ExactRow, dgamma: Fraction, dbeta: Fraction) -> ExactRow:
    """Map tangents of x, gamma and beta to the tangent of the output, in training.

    The mean moves by ``mean(dx)`` and ``v`` by ``2 mean(c dx)``, hence ``r`` by ``-r mean(c dx) / (v + eps)``.

    Parameters
    ----------
    x : ExactRow
        The channel's values.
    s : Statistics
        The statistics that normalize it.
    dx : ExactRow
        The tangent of x.
    dgamma, dbeta : Fraction
        Those of gamma and beta.
    """
    c, slope = centered(x, s), gamma * s.root
    drift = dot(c, dx) / s.m / s.square
    shift = dbeta - slope * total(dx) / s.m
    return combine(shift, (slope, dx), (dgamma * s.root - slope * drift, c))


def parts(x: ExactRow) -> Parts:
    """Measure a channel in mergeable form; an empty one has mean 0.

    Parameters
    ----------
    x : ExactRow
        Its values; there may be none.
    """
    if not x.numerators:
        return Parts(0, Fraction(0), Fraction(0))
    s = batch_statistics(x, Fraction(0))
    return Parts(s.m, s.mean, s.variance * s.m)


def merge(a: Parts, b: Parts) -> Parts:
    """Return the moments of two parts together, by way of the raw sums (not the formula of S15)."""
    m = a.m + b.m
    if m == 0:
        return a
    first = a.m * a.mean + b.m * b.mean
    second = a.m2 + a.m * a.mean**2 + b.m2 + b.m * b.mean**2
    return Parts(m, first / m, second - first**2 / m)
