"""Faults in sums: wrong axes, wrong numbers of values, counters and vectors that are too small."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sabotage.honest import two_pass
from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Reference

R = Reference
Moments = tuple[Array, Array, Array]


def misread(wrong: Any) -> dict[str, Any]:
    """Cut memory into rows as if the channel axis came first, where ``wrong(x, axis)`` holds."""

    def load(self: Reference, x: Array, axis: int) -> Array:
        if wrong(x, axis):
            return (
                R.load(self, np.ascontiguousarray(x).reshape(x.shape[axis], -1), 0) if x.size else R.load(self, x, axis)
            )
        return R.load(self, x, axis)

    return {"load": load}


def of_groups(rows: Array, grouped: Array, axis: int) -> Moments:
    """Measure along another axis of the values of the rows; the statistics get the shape of the rows."""
    mean = grouped.mean(axis=axis, keepdims=True)
    d = grouped - mean
    statistics = (mean, d, (d * d).mean(axis=axis, keepdims=True))
    mean, d, variance = (np.broadcast_to(a, grouped.shape).reshape(rows.shape) for a in statistics)
    return mean, d, variance


def knows_samples(**steps: Any) -> dict[str, Any]:
    """Give steps N, which rows do not show, as ``self.samples``."""

    def load(self: Any, x: Array, axis: int) -> Array:
        self.samples = x.shape[0] if axis % x.ndim else 1
        return R.load(self, x, axis)

    return {"load": load, **steps}


def over_space(self: Any, rows: Array) -> Moments:
    return of_groups(rows, rows.reshape(len(rows), self.samples, -1), 2)


def over_batch(self: Any, rows: Array) -> Moments:
    return of_groups(rows, rows.reshape(len(rows), self.samples, -1), 1)


def neighbours_variance(self: Reference, rows: Array) -> Moments:
    mean, d, variance = R.moments(self, rows)
    return mean, d, np.roll(variance, 1, axis=0)


def adds_first(count: Any) -> dict[str, Any]:
    """Add up only the first ``count(m)`` values."""
    return {"total": lambda self, rows: R.total(self, rows[:, : count(rows.shape[1])])}


def counts(count: Any, **steps: Any) -> dict[str, Any]:
    """Use another number as m."""
    return {"count": lambda self, rows: rows.dtype.type(count(rows.shape[1])), **steps}


def without_repeats(self: Reference, rows: Array) -> Moments:
    ranked = np.sort(rows, axis=1)
    new = np.concatenate([np.ones_like(ranked[:, :1], bool), ranked[:, 1:] != ranked[:, :-1]], axis=1)
    n = new.sum(axis=1, keepdims=True).astype(rows.dtype)
    mean = np.sum(ranked * new, axis=1, keepdims=True) / n
    return mean, rows - mean, np.sum((ranked - mean) ** 2 * new, axis=1, keepdims=True) / n


def tail_takes_first(width: int) -> dict[str, Any]:
    """Give the channels after the last full vector the variance of the first channel."""

    def moments(self: Reference, rows: Array) -> Moments:
        mean, d, variance = R.moments(self, rows)
        tail = len(rows) // width * width
        if tail:
            variance[tail:] = variance[:1]
        return mean, d, variance

    return {"moments": moments}


def no_channels_beyond_65535(self: Reference, xhat: Array, gamma: Array, beta: Array) -> Array:
    y = R.affine(self, xhat, gamma, beta)
    y[65_535:] = 0
    return y


def half_counter(self: Any, rows: Array) -> Any:
    return rows.dtype.type(np.float16(rows.shape[1]) if self.narrow else rows.shape[1])


def sees_dtype(self: Any, x: Array, axis: int) -> Array:
    self.narrow = x.dtype.itemsize == 2
    return R.load(self, x, axis)


REDUCTION = (
    *(mutant(f"axis-misread-rank-{rank}", f"With rank {rank}, rows are cut from memory in the wrong order.", "axes",
             upstream, **misread(lambda x, axis, rank=rank: x.ndim == rank))
      for rank, upstream in ((2, ""), (3, ""), (4, "keras#10684"), (5, "keras#10382"))),
    mutant("axis-misread-negative", "A negative axis is taken for the first.", "axes", "",
           **misread(lambda x, axis: axis < 0)),
    mutant("axis-misread-last", "The last axis is taken for the first.", "axes", "",
           **misread(lambda x, axis: axis % x.ndim == x.ndim - 1)),
    mutant("rank-2-raises", "A matrix is refused.", "axes", "chainer#6216", crashes=True,
           load=lambda self, x, axis: R.load(self, x if x.ndim > 2 else np.moveaxis(x, 2, 1), axis)),
    mutant("over-space", "Statistics are taken sample by sample, as in instance normalization.", "reduction", "",
           **knows_samples(moments=over_space)),
    mutant("over-batch", "Statistics are taken place by place.", "reduction", "", **knows_samples(moments=over_batch)),
    mutant("over-everything", "Statistics are shared by all channels.", "reduction", "",
           moments=lambda self, rows: of_groups(rows, rows.reshape(1, -1), 1)),
    mutant("neighbours-variance", "Each channel is divided by its neighbour's deviation.", "reduction", "",
           moments=neighbours_variance),
    mutant("m-is-n", "Sums are divided by N alone.", "counts", "",
           **knows_samples(count=lambda self, rows: rows.dtype.type(self.samples))),
    mutant("m-plus-one", "Sums are divided by m + 1.", "counts", "", **counts(lambda m: m + 1)),
    mutant("last-value-left-out", "A loop ends one value early.", "counts", "", **adds_first(lambda m: max(m - 1, 1))),
    mutant("value-tail-left-out", "What is left beyond a multiple of 8 values is not added.", "tails", "",
           **adds_first(lambda m: m // 8 * 8 or m)),
    mutant("repeats-left-out", "Equal values count once.", "counts", "", moments=without_repeats),
    mutant("channel-tail-64", "Channels beyond a multiple of 64 take the first one's variance.", "tails",
           "apex#1768", **tail_takes_first(64)),
    mutant("channel-tail-4", "Channels beyond a multiple of 4 take the first one's variance.", "tails", "",
           **tail_takes_first(4)),
    mutant("channels-to-65535", "Channels beyond a grid of 65,535 are not written.", "counters", "",
           affine=no_channels_beyond_65535),
    mutant("values-to-65535", "Values beyond a grid of 65,535 are not added.", "counters", "",
           **adds_first(lambda m: min(m, 65_535))),
    mutant("values-to-131071", "Values beyond a grid of 131,071 are not added.", "counters",
           "pytorch#16998, cunn#298", **adds_first(lambda m: min(m, 131_071))),
    mutant("counter-of-16-bits", "m is counted in 16 bits.", "counters", "", **counts(lambda m: m % 2**16 or m)),
    mutant("counter-of-24-bits", "m is counted in 24 bits.", "counters", "numpy#22956",
           **counts(lambda m: m % 2**24 or m, moments=two_pass)),
    mutant("half-counter", "For half types m is counted in float16, which ends at 65,504.", "counters",
           "tensorflow#34062", load=sees_dtype, count=half_counter),
)  # fmt: skip
