"""Calls in which every intermediate result is a floating-point number: the answer is compared with ``==``.

A channel holds ``(offset + k) s`` with s a power of two and k from a pattern whose mean is 0 and whose variance
plus ``eps / s^2`` is a square ``q^2``. So the mean is ``offset * s``, ``sqrt(v + eps) = q s`` and ``xhat = k / q``,
exactly, with q a power of two. Gamma is a power of two, beta and dy are small integers, and every sum is one of
integers. An implementation that is right gives these bits, whatever the order of its sums; a wrong axis,
divisor, root or place of eps does not.

========================================  =====  ==  ====================================================
pattern                                   eps    q   m
========================================  =====  ==  ====================================================
``-a, -b, b, a`` of one of PATTERNS       11     q   any multiple of 4; gradients where m is a power of two
``-2, -1, 0, 1, 2``                       2      2   5, where the unbiased variance, 5/4 of 2, is exact, and TAILS,
                                                     LONG_TAILS and other multiples of 5 that are none of 4
``-3, -3, -3, 0, 0, 0, 3, 3, 3``          10     4   9, likewise, 9/8 of 6
========================================  =====  ==  ====================================================
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Array, Case, case_of, rows, statistics_dtype

PATTERNS = ((3, 1, 4), (9, 5, 8), (21, 7, 16), (45, 1, 32))
"""Triples ``a, b, q`` with ``(a^2 + b^2) / 2 + 11 = q^2``."""
ODD = {5: ((-2, -1, 0, 1, 2), 2, 2), 9: ((-3, -3, -3, 0, 0, 0, 3, 3, 3), 4, 10)}
"""The pattern, q and ``eps / s^2``, by m."""
TAILS = (15, 25, 35, 45, 55, 65)
"""Multiples of 5 that leave 1 or 3 values beyond the last multiple of 4, and others beyond those of 8, 16 and 32:
there, loops over vectors need an end of their own. With dy a multiple of m, gradients are exact, too."""
LONG_TAILS = (65, 135, 265, 515, 1025)
"""The same for the blocks of threads and of memory: some values beyond multiples of 64, 128, 256, 512 and 1024."""
TIGHT = (3, 1, 4)
"""The pattern of variance 5: the sum of its squares is exact in float32 up to m = 2^21."""
WIDEST = 2**14
"""Up to this m, the sums of squares of all patterns are exact in float32."""


class Lattice(NamedTuple):
    """A lattice call and its exact answers in float64; round them once to the dtype of a result."""

    case: Case
    y: Array
    """The exact y, in the shape of x."""
    mean: Array
    """The means of the batch, shape ``(C,)``."""
    variance: Array
    """The biased variances of the batch, shape ``(C,)``."""
    unbiased: Array | None
    """The unbiased variances of the batch where they are exact, for m of 5 and 9; else None."""
    dx: Array
    """The exact dx, in the shape of x."""
    dgamma: Array
    dbeta: Array


def lattice(
    seed: int,
    dtype: str,
    channels: int,
    rest: tuple[int, ...],
    axis: int,
    power: int = 0,
    offset: int = 0,
) -> Lattice:
    """Make a lattice call in training, with momentum 0.75 (with any multiple of 1/4, running statistics are exact).

    ``rest`` is the shape of x without its channel axis, which goes to ``axis``, not negative. Its product m is 9 or a
    multiple of 4 or 5; gradients are exact if m is a power of two, or no multiple of 4 and a number of the dtype. A
    channel with more than WIDEST values has the pattern TIGHT. ``s`` is ``2**power``; the offset of a channel is
    ``offset`` or its negative. If x would not be exact in its dtype, this is a ValueError.

    Examples
    --------
    >>> made = lattice(0, "float32", 2, (4,), 1, offset=10)
    >>> made.mean.tolist(), made.variance.tolist(), made.case.eps
    ([-10.0, 10.0], [1013.0, 245.0], 11.0)
    """
    rng = np.random.default_rng(seed)
    m, s = math.prod(rest), 2.0**power
    k, q, eps = _numerators(rng, channels, m)
    offsets = rng.choice([-offset, offset], (channels, 1))
    g = m * rng.integers(-1, 2, (channels, m)) if m % 4 else rng.integers(-8, 9, (channels, m))
    g = g.astype(DTYPES[dtype]).astype(np.float64)
    gamma = 2.0 ** rng.integers(-2, 3, (channels, 1)) * rng.choice([-1, 1], (channels, 1))
    beta = rng.integers(-3, 4, (channels, 1))
    sum_g, sum_gk = g.sum(axis=1, keepdims=True), (g * k).sum(axis=1, keepdims=True)
    dx = gamma / (q * s) * (g - sum_g / m - k * sum_gk / (q**2 * m))
    old_mean, old_var = rng.integers(-9, 10, channels) * s, rng.integers(2, 30, channels) * s**2

    def shaped(z: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(z.reshape(channels, *rest), 0, axis))

    x = shaped((offsets + k) * s).astype(DTYPES[dtype])
    if not np.array_equal(rows(x, axis), (offsets + k) * s):
        raise ValueError(
            f"polybn.conformance.lattice: offset and power must leave x exact; "
            f"got {offset} and {power} ({dtype} fixes it)"
        )
    with np.errstate(over="ignore"):
        variance = (k * k).sum(axis=1) // m * s**2
    case = case_of(
        x,
        (gamma[:, 0], beta[:, 0], old_mean, old_var),
        shaped(g).astype(x.dtype),
        axis=axis,
        eps=eps * s**2,
        momentum=0.75,
    )
    unbiased = variance * m / (m - 1) if m in ODD else None
    y, dx = shaped(gamma * (k / q) + beta), shaped(dx)
    return Lattice(case, y, offsets[:, 0] * s, variance, unbiased, dx, (sum_gk / q)[:, 0], sum_g[:, 0].astype(float))


def _numerators(rng: np.random.Generator, channels: int, m: int) -> tuple[Array, Array, int]:
    if m in ODD or (m % 5 == 0 and m % 4):
        pattern, root, eps = ODD[m if m in ODD else 5]
        whole = np.tile(pattern, (channels, m // len(pattern)))
        return rng.permuted(whole, axis=1), np.full((channels, 1), root), eps
    if m % 4 or not m:
        raise ValueError(f"polybn.conformance.lattice: m must be 9 or a multiple of 4 or 5; got {m} (rest fixes it)")
    patterns = np.asarray(PATTERNS if m <= WIDEST else [TIGHT])
    a, b, q = patterns[rng.integers(0, len(patterns), channels)].T[:, :, None]
    return rng.permuted(np.tile(np.concatenate([-a, -b, b, a], axis=1), (1, m // 4)), axis=1), q, 11


def in_inference(made: Lattice, seed: int = 0) -> Lattice:
    """Turn a lattice call into one in inference.

    Its running statistics are drawn from the seed and differ from the batch's; they are ``mean`` and ``variance`` of
    the result.
    """
    case, rng = made.case, np.random.default_rng(seed)
    # A square s^2 of a power of two leaves the mantissa of eps / s^2 in eps.
    eps = next(eps for eps in (11, 2, 10) if math.frexp(eps)[0] == math.frexp(case.eps)[0])
    s, channels = math.sqrt(case.eps / eps), len(made.mean)
    q = rng.choice([4.0, 8.0, 16.0, 32.0], channels)
    mean, variance = made.mean + s * rng.integers(1, 9, channels), s**2 * (q**2 - eps)
    x, g = rows(case.x, case.axis), rows(case.dy, case.axis)
    gamma, beta = (np.asarray(v, np.float64)[:, None] for v in (case.gamma, case.beta))
    xhat, r = (x - mean[:, None]) / (q * s)[:, None], 1 / (q * s)[:, None]

    def shaped(z: Array) -> Array:
        first = np.moveaxis(case.x, case.axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(z.reshape(first), 0, case.axis))

    wide = statistics_dtype(case.x)
    case = case._replace(training=False, running_mean=mean.astype(wide), running_var=variance.astype(wide))
    sums = (g * xhat).sum(axis=1), g.sum(axis=1)
    return Lattice(case, shaped(gamma * xhat + beta), mean, variance, None, shaped(gamma * r * g), *sums)


def many_values(m: int = 131_072, dtype: str = "float32") -> Lattice:
    """Make a call of three channels with more values than 16 bits, blocks or grids can count; all results are exact.

    ``m`` is a multiple of 4, at most 2^20 in float32.
    """
    made = lattice(m, dtype, 3, (m,), 1, offset=3)
    # With dy = k + 1, sum(dy) = m and sum(dy k) = 5 m, so both means are exact: dx = gamma / q (k - 5 k / q^2).
    k, (_, _, q) = (rows(made.case.x, 1) - made.mean[:, None]), TIGHT
    gamma = np.asarray(made.case.gamma, np.float64)
    dx = (gamma[:, None] / q * k * (1 - 5 / q**2)).T
    case = made.case._replace(dy=np.ascontiguousarray((k + 1).T).astype(made.case.x.dtype))
    return made._replace(case=case, dx=dx, dgamma=np.full(3, 5.0 * m / q), dbeta=np.full(3, float(m)))


def more_than_float32_counts(m: int = 2**24 + 4, value: float = 1.0) -> Lattice:
    """Make a float32 call of one constant channel with more values than float32 can count one by one.

    The answers are exact for any value, also for 0.1, where sums are rounded (S8). ``dy`` is 1, so that dbeta counts
    the values and dx is 0. Beta is far from 0, so that memory that was never written is not taken for y.
    """
    x, zero = np.full((m, 1), value, np.float32), np.zeros(1)
    case = case_of(x, ([2], [-1000], [7], [5]), np.ones_like(x), momentum=0.0)
    mean = x[0].astype(np.float64)
    return Lattice(case, np.full((m, 1), -1000.0), mean, zero, zero, np.zeros((m, 1)), zero, np.array([float(m)]))
