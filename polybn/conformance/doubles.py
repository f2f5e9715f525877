"""Arithmetic with 106 bits, on arrays of unevaluated sums ``high + low`` of two float64.

The oracle's sums are exact integers. What is computed from them value by value needs a dozen more digits than any
dtype under test, and no more. Every operation here errs by less than ``2^-100`` of its result (Joldes, Muller and
Popescu, "Tight and rigorous error bounds for basic building blocks of double-word arithmetic", 2017), if magnitudes
lie between ``2^-450`` and ``2^450``; the caller must see to that.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPLITTER = 2.0**27 + 1


class Double(NamedTuple):
    """``high + low``, where ``high`` is the sum rounded to float64."""

    high: Floats
    low: Floats


def double(value: Fraction | float | Floats) -> Double:
    """Convert floats exactly, and a fraction to 106 bits."""
    if isinstance(value, Fraction):
        high = float(value)
        return Double(np.float64(high), np.float64(float(value - Fraction(high))))  # type: ignore[arg-type]
    high_part = np.asarray(value, np.float64)
    return Double(high_part, np.zeros_like(high_part))


def negative(a: Double) -> Double:
    """Change the sign."""
    return Double(-a.high, -a.low)


def add(a: Double, b: Double) -> Double:
    """Add, with an error relative to the result even where the operands cancel."""
    s, e = _sum(a.high, b.high)
    t, f = _sum(a.low, b.low)
    s, e = _ordered(s, e + t)
    return Double(*_ordered(s, e + f))


def multiply(a: Double, b: Double) -> Double:
    """Multiply."""
    p, e = _product(a.high, b.high)
    return Double(*_ordered(p, e + (a.high * b.low + a.low * b.high)))


def distance(got: Floats, exact: Double) -> Floats:
    """Return ``|got - exact|``, rounded; not finite where ``got`` is not."""
    with np.errstate(invalid="ignore"):
        difference: Floats = np.abs(add(double(got), negative(exact)).high)
    return difference


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _ordered(a: Any, b: Any) -> tuple[Any, Any]:
    s = a + b
    return s, b - (s - a)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    p = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _split(a: Any) -> tuple[Any, Any]:
    t = SPLITTER * a
    high = t - (t - a)
    return high, a - high
