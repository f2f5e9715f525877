"""Histograms of values in parts: bins are as wide as a power of two, so that no count must be split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 256


class Histogram:
    """The number of values of each channel in each bin.

    A bin holds ``k * width <= x < (k + 1) * width``. If values spread too far, bins are joined in pairs, so that
    counts are exact and no range must be known beforehand. NaN and infinity are not counted.
    """

    def __init__(self) -> None:
        self.exponent = -1074
        """The exponent of the width of a bin, a power of two."""
        self.first = 0
        """The number ``k`` of the first bin."""
        self.counts: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        """The counts, of shape ``(C, bins)``."""

    def update(self, x: NDArray[Any]) -> None:
        """Count the values of an array with the channels last."""
        rows = np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1).astype(np.float64)
        finite = [row[np.isfinite(row)] for row in rows]
        if not any(row.size for row in finite):
            return
        low, high = min(row.min(initial=np.inf) for row in finite), max(row.max(initial=-np.inf) for row in finite)
        size = math.frexp(max(-low, high))[1]
        least = max(0, size - 53) if x.dtype.kind in "iu" else size - 24
        part = Histogram()
        part.exponent = max(least, math.frexp((high / 2 - low / 2) / (MOST_BINS / 2))[1] if high > low else least)
        part.first, last = (math.floor(math.ldexp(end, -part.exponent)) for end in (low, high))
        bins = (np.floor(np.ldexp(row, -part.exponent)).astype(np.int64) - part.first for row in finite)
        part.counts = np.array([np.bincount(row, minlength=last - part.first + 1) for row in bins])
        self.merge(part)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        if not other.counts.size:
            return
        if not self.counts.size:
            self.exponent, self.first, self.counts = other.exponent, other.first, other.counts
            return
        exponent = max(self.exponent, other.exponent)
        while True:
            both = [one._coarser(exponent) for one in (self, other)]
            first = min(low for low, _ in both)
            bins = max(low + counts.shape[1] for low, counts in both) - first
            if bins <= 2 * MOST_BINS:
                break
            exponent += 1
        self.exponent, self.first = exponent, first
        self.counts = np.zeros((len(self.counts), bins), np.int64)
        for low, counts in both:
            self.counts[:, low - first : low - first + counts.shape[1]] += counts

    def edges(self) -> NDArray[np.float64]:
        """Return the ends of the bins, one more than there are bins."""
        return np.ldexp(np.arange(self.first, self.first + self.counts.shape[1] + 1, dtype=float), self.exponent)

    def _coarser(self, exponent: int) -> tuple[int, NDArray[np.int64]]:
        """Return the first bin and the counts in wider bins."""
        shift = exponent - self.exponent
        numbers = np.array([(self.first + k) >> shift for k in range(self.counts.shape[1])], object)
        first = int(numbers[0])
        counts = np.zeros((len(self.counts), int(numbers[-1]) - first + 1), np.int64)
        np.add.at(counts.T, (numbers - first).astype(int), self.counts.T)
        return first, counts
