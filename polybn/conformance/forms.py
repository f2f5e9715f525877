"""The algorithms for batch norm that have an error bound, called forms, and bounds on their statistics.

``u`` is the unit roundoff of the arithmetic, ``g(n) = n u / (1 - n u)`` bounds n roundings in a row, and ``h`` is the
longest chain of additions in a sum. Fused and wider operations only make errors smaller. Three errors tell
the forms apart: ``e_mean``, ``e_v`` (of the variance) and ``e_c`` (of ``x_i - mean`` as it is used). Exact quantities
have no hat; ``c_i = x_i - mean``; ``|.|`` under ``mean`` is elementwise.

**K**, kappa-free (S2), ``h = min(m - 1, 64 + ceil(log2 m))``: sums in a tree, or chains of at most 64 values whose
sums are added in a tree, or sums in a wider type; not one long chain.

m1      is any floating-point number with ``|m1 - mean| <= e1 = g(h+2) mean|x|``: h additions, a division, a
        rounding to the type of the statistics. It is known exactly from here on.
delta   The exact mean of ``D_i = x_i - m1`` is ``mean - m1``, of size e1 at most. Each ``D_i`` is computed with one
        rounding, so ``|delta^ - delta| <= e_delta = g(h+3) mean|D|`` and ``mean|D| <= mean|c| + e1``.
mean    ``m1 + delta^`` errs by ``e_delta`` and a rounding. Nowhere does kappa enter in first order.
c       ``d^_i - delta^`` errs by ``u |D_i| + e_delta`` and a rounding.
v       ``mean(d^ d^)``: terms of one sign, h + 5 roundings, around ``mean(D^2) = v + delta^2``; and
        ``delta^^2`` errs by ``2 e1 e_delta + e_delta^2`` and a rounding.

A constant channel needs no bound in this form: v is 0 and y is beta (S8).

**T** and **N**, two-pass: T with sums in a tree, ``h = ceil(log2 m) + 4``; N with sums in any order, ``h = m - 1``.

mean    ``e_mean = g(h+3) mean|x|``: h additions, a rounded 1/m, a product, a rounding.
v       ``mean((x - mean^)^2) = v + (mean^ - mean)^2`` exactly, of terms of one sign: h + 6 roundings. Where the
        excess is subtracted again, as ``mean(d)^2``, that mean errs by ``e_delta = g(h+3) (mean|c| + e_mean)``;
        so ``e_v = (e_mean + e_delta)^2 + g(h+6) (v + e_mean^2)``.

**F**, first order in kappa: Welford's recurrence and Chan's merging, ``h = m - 1``.

partial A mean M_k of k values errs by ``e = g(h+8) max|x|`` at most. Welford: k times the error grows from step to
        step by ``u (6 + k) max|x|``, six for the difference and the quotient; a merge adds 5 u max|x| per level.
v       Each square ``D^2 n_a n_b / n`` of two partial means errs by ``n_a n_b / n (4 e |D| + 4 e^2)``. By ``n_a n_b / n
        |D| <= sum_a|c| + sum_b|c|``, a level of a tree adds up to ``m mean|c|``; a chain, where each value's share
        falls as 1/k, to ``(2 + log m) m mean|c|``. With ``L = 2 + log2 m``, ``moved = L (4 e mean|c| + 4 e^2)`` and
        ``e_v = moved + g(h+8) (v + moved)``.

**O**, one-pass, ``mean(x^2) - mean^2``, ``h = m - 1``:
``e_v = g(h+6) (v + (|mean| + e_mean)^2) + 2 |mean| e_mean + e_mean^2``.

In T, N, F and O, ``e_c = e_mean + u (|c_i| + e_mean) + u (|x_i| + 2 (|mean| + e_mean))``: the last term allows the
folded output ``x * s + (beta - mean * s)``, whose own rounding error grows with kappa.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Form: TypeAlias = Literal["K", "T", "N", "F", "O"]
FORMS: tuple[Form, ...] = get_args(Form)

VACUOUS = 2.0**-4
"""A bound above this share of what it bounds certifies nothing."""


class VacuousBoundError(AssertionError):
    """A bound so wide that a wrong result would pass: not certified."""


class Format(NamedTuple):
    """The roundings of one dtype of x (S6)."""

    unit: float
    """The unit roundoff of the arithmetic."""
    tiny: float
    """The most that an underflow of the arithmetic loses."""
    stored: float
    """The unit roundoff of storing y and dx; 0 where that rounds nothing."""
    grain: float
    """The most that an underflow loses in storing y and dx."""
    kept: float = 0.0
    """The unit roundoff of storing statistics and gradients of parameters; 0 where that rounds nothing."""
    lost: float = 0.0
    """The most that reading x and dy loses, where subnormal numbers are flushed."""
    largest: float = float(np.finfo(np.float32).max)
    """The largest number of the arithmetic."""


# Unit roundoff and smallest normal number.
_DTYPES = {
    "float16": (2.0**-11, 2.0**-14),
    "bfloat16": (2.0**-8, 2.0**-126),
    "float32": (2.0**-24, 2.0**-126),
    "float64": (2.0**-53, 2.0**-1022),
}


def format_of(dtype: str, *, arithmetic: str | None = None, flushes: bool = False) -> Format:
    """Return the roundings for a dtype of x; the arithmetic is by default that of clause S6.

    With ``flushes``, subnormal numbers are flushed to zero, except those of float16: they are normal numbers of the
    arithmetic, and conversions keep them in every mode.

    Examples
    --------
    >>> format_of("float16").unit == 2**-24, format_of("float16").stored == 2**-11
    (True, True)
    """
    vectors = "float64" if dtype == "float64" else "float32"
    computed = arithmetic or vectors
    unit, normal = _DTYPES[computed]
    stored, smallest = _DTYPES[dtype]
    # Gradual underflow rounds to the nearest multiple of 2 u times the smallest normal number: half of that is lost.
    # For float64 that is below the smallest float64, in which the bounds are computed, so a larger number is taken.
    tiny = normal if flushes else max(unit * normal, 2.0**-1070)
    # x86's VCVTPH2PS and VCVTPS2PH ignore DAZ and FTZ, and Arm's FZ leaves conversions of float16 alone.
    drops = flushes and dtype != "float16"
    grain = smallest if drops else stored * smallest
    largest = float(np.finfo(computed).max)
    rounds = _DTYPES[vectors][0] if vectors != computed else 0.0
    return Format(
        unit,
        tiny,
        stored if dtype != computed else 0.0,
        grain if dtype != computed else 0.0,
        rounds,
        smallest if drops else 0.0,
        largest,
    )


FORMATS = {dtype: format_of(dtype) for dtype in _DTYPES}


class Channel(NamedTuple):
    """Exact magnitudes of one channel of a call, rounded to float64 and scaled by ``2^-exponent``."""

    x: Floats
    """The magnitudes ``|x_i|`` of the values that take part."""
    c: Floats
    """The distances ``|x_i - mean|``."""
    dy: Floats
    """The magnitudes ``|dy_i|``."""
    length: int
    """The number of values, deleted ones included."""
    mean: float
    variance: float
    """The biased variance."""
    eps: float
    square: float
    """The sum ``variance + eps``."""
    root: float
    """The inverse root ``1 / sqrt(square)``; 0 where the sum is 0 (S3)."""
    gamma: float
    beta: float
    stored_beta: float
    """Beta as the dtype of y holds it."""
    old_mean: float
    old_variance: float
    momentum: float
    unbiased: bool
    training: bool
    exponent: int = 0

    @property
    def m(self) -> int:
        """The number of values that take part."""
        return len(self.x)

    @property
    def constant(self) -> bool:
        """Whether clause S8 applies."""
        return self.training and not self.c.any()


class StatisticsErrors(NamedTuple):
    """Bounds on the errors of a channel's mean, variance and centered values."""

    mean: float
    variance: float
    c: Floats


def roundings(n: int, unit: float) -> float:
    """Return ``g(n)``; raise VacuousBoundError where it is too large to be of use."""
    if n * unit >= 0.5:
        raise VacuousBoundError(f"{n} roundings of {unit:.3g} leave no correct digit")
    return n * unit / (1 - n * unit)


def additions(form: Form, count: int, length: int) -> int:
    """Return ``h`` for ``count`` values in ``length`` places; the other places hold 0."""
    tree, longest = math.ceil(math.log2(max(length, 1))), max(count - 1, 0)
    return {"K": min(longest, 64 + tree), "T": min(longest, 4 + tree)}.get(form, longest)


def given(form: Form, ch: Channel, f: Format) -> StatisticsErrors:
    """Bound inference, where the statistics are exact: ``x - mean`` is rounded once, or folded into the scale."""
    folded = 0.0 if form == "K" else f.unit * (ch.x + 2 * abs(ch.mean))
    return StatisticsErrors(0.0, 0.0, f.unit * ch.c + folded + f.lost)


def measured(form: Form, ch: Channel, f: Format, h: int) -> StatisticsErrors:
    """Bound the batch's own statistics."""
    if form == "K":
        return _kappa_free(ch, f, h)
    if ch.exponent or ch.m * float(ch.x.max()) ** 2 > f.largest:
        raise VacuousBoundError(
            f"squares leave the range of the arithmetic: no bound of class {form} holds there (S10)"
        )
    u, mean_c, size = f.unit, float(ch.c.mean()), abs(ch.mean)
    e_mean = roundings(h + 3, u) * float(ch.x.mean()) + f.tiny + f.lost
    if form in ("T", "N"):
        e_delta = roundings(h + 3, u) * (mean_c + e_mean)
        e_v = (e_mean + e_delta) ** 2 + roundings(h + 6, u) * (ch.variance + e_mean**2)
    elif form == "F":
        e = roundings(h + 8, u) * float(ch.x.max()) + ch.m * f.tiny + f.lost  # each step may underflow
        e_mean, levels = e, 2 + math.log2(ch.m)
        moved = levels * (4 * e * mean_c + 4 * e**2)
        e_v = moved + roundings(h + 8, u) * (ch.variance + moved)
    else:
        e_v = roundings(h + 6, u) * (ch.variance + (size + e_mean) ** 2) + 2 * size * e_mean + e_mean**2
    e_v += 2 * f.lost * mean_c + f.lost**2 + f.tiny
    e_v += u * (ch.variance + e_v)
    e_c = e_mean + u * (ch.c + e_mean) + u * (ch.x + 2 * (size + e_mean)) + f.lost
    return StatisticsErrors(e_mean, e_v, e_c)


def _kappa_free(ch: Channel, f: Format, h: int) -> StatisticsErrors:
    u = f.unit
    e1 = roundings(h + 2, u) * float(ch.x.mean()) + f.tiny + f.lost
    delta = roundings(h + 3, u) * (float(ch.c.mean()) + e1) + f.tiny + f.lost
    e_mean = delta + u * (abs(ch.mean) + delta)
    if ch.constant:
        return StatisticsErrors(e_mean, 0.0, np.zeros_like(ch.c))
    correction = 2 * e1 * delta + delta**2 + u * (e1 + delta) ** 2 + f.tiny
    e_v = roundings(h + 5, u) * (ch.variance + e1**2) + correction
    e_v += 2 * f.lost * float(ch.c.mean()) + f.lost**2
    e_v += u * (ch.variance + e_v) + f.tiny
    e_c = u * (ch.c + e1) + delta + f.lost
    return StatisticsErrors(e_mean, e_v, e_c + u * (ch.c + e_c))
