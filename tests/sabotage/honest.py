"""Right ways to compute a batch norm, each with its own rounding. The kit must refuse none of them.

A variant replaces the given steps of the reference. A loss of accuracy shows in its grade, never in a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.sabotage.reference import Array, Normalized, Reference, column

Part = tuple[int, Array, Array]  # count, mean and m2 of a stretch of each row


class Honest(NamedTuple):
    """A variant, with the grade that float32 deserves."""

    id: str
    sentence: str
    grades: str
    """The classes of accuracy that are right for it; several if the data decides."""
    steps: dict[str, Any]

    def make(self) -> Reference:
        adapter: Reference = type(self.id, (Reference,), dict(self.steps))()
        return adapter


def wide(rows: Array) -> Array:
    return rows.astype(np.longdouble if rows.dtype == np.float64 else np.float64)


# Sums in other orders.


def sequential(self: Reference, rows: Array) -> Array:
    return np.add.accumulate(rows, axis=1)[:, -1:]


def reverse(self: Reference, rows: Array) -> Array:
    return sequential(self, rows[:, ::-1])


def shuffled(self: Reference, rows: Array) -> Array:
    return sequential(self, rows[:, np.random.default_rng(5).permutation(rows.shape[1])])


def tree(self: Reference, rows: Array) -> Array:
    while rows.shape[1] > 1:
        even = rows.shape[1] // 2 * 2
        rows = np.concatenate([rows[:, :even:2] + rows[:, 1:even:2], rows[:, even:]], axis=1)
    return rows


def lanes(self: Reference, rows: Array) -> Array:
    eight = [sequential(self, rows[:, i::8]) for i in range(min(8, rows.shape[1]))]
    return tree(self, np.concatenate(eight, axis=1))


def blocks(self: Reference, rows: Array, size: int) -> Array:
    sums = [sequential(self, rows[:, i : i + size]) for i in range(0, rows.shape[1], size)]
    return tree(self, np.concatenate(sums, axis=1))


def blocks_of_128(self: Reference, rows: Array) -> Array:
    return blocks(self, rows, 128)


def blocks_of_512(self: Reference, rows: Array) -> Array:
    return blocks(self, rows, 512)


def channels_last(self: Reference, rows: Array) -> Array:
    return np.ascontiguousarray(rows.T).sum(axis=0)[:, None]


def wide_total(self: Reference, rows: Array) -> Array:
    return np.sum(wide(rows), axis=1, keepdims=True).astype(rows.dtype)


def exact_total(self: Reference, rows: Array) -> Array:
    finite = np.isfinite(rows).all(axis=1)
    sums = [math.fsum(row.tolist()) if good else row.sum() for row, good in zip(rows, finite, strict=True)]
    return np.array(sums, rows.dtype)[:, None]


# Other statistics.


def two_pass(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
    m = self.count(rows)
    mean = self.total(rows) / m
    d = rows - mean
    return mean, d, self.total(d * d) / m


def corrected_two_pass(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
    m = self.count(rows)
    mean = self.total(rows) / m
    d = rows - mean
    return mean, d, np.maximum(self.total(d * d) - self.total(d) ** 2 / m, 0) / m


def one_pass(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
    m = self.count(rows)
    mean = self.total(rows) / m
    return mean, rows - mean, np.maximum(self.total(rows * rows) / m - mean * mean, 0)


def shifted_one_pass(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
    mean, centered, variance = one_pass(self, rows - rows[:, :1])
    return rows[:, :1] + mean, centered, variance


def stretches(rows: Array, length: int) -> list[Array]:
    """Cut rows into stretches: one array for all the whole ones, and one for the rest."""
    whole = rows.shape[1] // length * length
    parts = [rows[:, :whole].reshape(len(rows), -1, length), rows[:, None, whole:]]
    return [part for part in parts if part.size]


def merged(parts: list[Part]) -> Part:
    """Merge moments in pairs (S15), as Chan, Golub and LeVeque do."""
    while len(parts) > 1:
        pairs = [merge(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


def merge(a: Part, b: Part) -> Part:
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    n, distance = n_a + n_b, mean_b - mean_a
    real = mean_a.dtype.type
    return n, mean_a + distance * real(n_b / n), m2_a + m2_b + distance * distance * real(n_a * n_b / n)


def by_parts(measure: Callable[[Array], tuple[Array, Array]], length: int) -> Callable[..., Any]:
    """Combine the moments of parts; ``measure`` reduces the last axis to means and sums of squares."""

    def moments(self: Reference, rows: Array) -> tuple[Array, Array, Array]:
        parts: list[Part] = []
        for part in stretches(rows, length):
            mean, m2 = measure(part)
            parts += [(part.shape[2], mean[:, [i]], m2[:, [i]]) for i in range(part.shape[1])]
        n, mean, m2 = merged(parts)
        return mean, rows - mean, m2 / rows.dtype.type(n)

    return moments


def welford(part: Array) -> tuple[Array, Array]:
    mean, m2 = np.zeros_like(part[..., 0]), np.zeros_like(part[..., 0])
    for i in range(part.shape[2]):
        distance = part[..., i] - mean
        mean = mean + distance / part.dtype.type(i + 1)
        m2 = m2 + distance * (part[..., i] - mean)
    return mean, m2


def measured(part: Array) -> tuple[Array, Array]:
    mean = part.mean(axis=2, keepdims=True)
    return mean[..., 0], ((part - mean) ** 2).sum(axis=2)


# Other arithmetic.


def wide_affine(self: Reference, xhat: Array, gamma: Array, beta: Array) -> Array:
    return (wide(xhat) * gamma + beta).astype(xhat.dtype)


def wide_dx(self: Reference, g: Array, xhat: Array, mean_g: Array, mean_gx: Array, gamma: Array, root: Array) -> Array:
    return (gamma * root * (wide(g) - mean_g - wide(xhat) * mean_gx)).astype(xhat.dtype)


def wide_dgamma(self: Reference, g: Array, n: Normalized) -> Array:
    return np.sum(wide(g) * n.xhat, axis=1, keepdims=True).astype(g.dtype)


def folded_train(self: Reference, x: Array, gamma: Array, beta: Array, *running: Array, **options: Any) -> Any:
    long, *updated = Reference.train(self, x, gamma, beta, *running, **options)
    eps, axis = options["eps"], options["axis"]
    with np.errstate(all="ignore"):
        rows = self.load(x, axis)
        n = self.normalize(rows, eps) if rows.size else Normalized(*[column(np.zeros_like(gamma))] * 6)
        k = n.exponent.astype(int)
        scale = n.root * column(gamma)
        shift = column(beta) - np.ldexp(n.mean, -k) * scale
        y = np.ldexp(rows, -k) * scale + shift
        # Where the slope leaves the range, only the long way is right.
        fits = np.isfinite(y) & (np.abs(scale) > np.finfo(scale.dtype).smallest_normal) | (column(gamma) == 0)
        return self.store(np.where(fits, y, self.load(long, axis)), x, axis), *updated


def folded_infer(
    self: Reference, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, *, eps: float, axis: int
) -> Array:
    with np.errstate(all="ignore"):
        rows = self.load(x, axis)
        scale = self.inverse_root(variance, rows.dtype.type(eps)) * gamma
        shift = beta - mean * scale
        y = rows * column(scale) + column(shift)
        # Where the slope leaves the range, only the long way is right.
        fits = np.isfinite(shift) & (np.abs(scale) > np.finfo(scale.dtype).smallest_normal) & (scale != np.inf)
        fits = column(fits | (gamma == 0)) & (np.isfinite(y) | ~np.isfinite(rows))
        given = (x, gamma, beta, mean, variance)
        long = self.load(Reference.infer(self, *given, eps=eps, axis=axis), axis)
        return self.store(np.where(fits, y, long), x, axis)


def flush(rows: Array) -> Array:
    return np.where(np.abs(rows) < np.finfo(rows.dtype).smallest_normal, 0, rows).astype(rows.dtype)


def flushing_load(self: Reference, x: Array, axis: int) -> Array:
    return flush(Reference.load(self, x, axis))


def flushing_store(self: Reference, rows: Array, x: Array, axis: int) -> Array:
    return Reference.store(self, flush(rows), x, axis)


def declares(**conventions: Any) -> dict[str, Any]:
    return {"conventions": conventions}


HONEST = (
    Honest("reference", "The specification, line by line; NumPy's pairwise sums.", "SK", {}),
    Honest("naive-order", "Sums from the first value to the last.", "N", {"total": sequential}),
    Honest("reverse-order", "Sums from the last value to the first.", "N", {"total": reverse}),
    Honest("random-order", "Sums in a fixed random order.", "N", {"total": shuffled}),
    Honest("tree", "Sums of pairs, of pairs of pairs, and so on.", "SK", {"total": tree}),
    # Both drift on thousands of equal values, because every sum rounds in the same direction.
    Honest("eight-lanes", "Eight running sums, as a vector unit keeps them.", "N", {"total": lanes}),
    Honest("blocks-of-512", "Stretches of 512 one after the other, then pairwise.", "N", {"total": blocks_of_512}),
    Honest("blocks-of-128", "Stretches of 128 one after the other, then pairwise.", "SK", {"total": blocks_of_128}),
    Honest("channels-last", "Sums down the columns of a (values, channels) array.", "N", {"total": channels_last}),
    Honest("float64-sums", "Sums in twice the precision, rounded once.", "SK", {"total": wide_total}),
    Honest("exact-sums", "Sums by math.fsum: correctly rounded.", "SK", {"total": exact_total}),
    Honest("two-pass", "The textbook: the mean, then the mean square distance from it.", "T", {"moments": two_pass}),
    Honest("naive-two-pass", "The textbook with sums from first to last.", "N",
           {"moments": two_pass, "total": sequential}),
    Honest("corrected-two-pass", "The variance corrected for the mean's rounding; the centre not.", "T",
           {"moments": corrected_two_pass}),
    Honest("welford", "A running mean and a running sum of squares.", "F", {"moments": by_parts(welford, 1024)}),
    Honest("chan", "Moments of blocks of 512, merged in pairs.", "NF", {"moments": by_parts(measured, 512)}),
    Honest("declared-one-pass", "E[x^2] - E[x]^2, with the kappa declared up to which it is meant.", "O",
           {"moments": one_pass, **declares(max_kappa=8.0)}),
    Honest("shifted-one-pass", "One pass over distances from the first value.", "NF",
           {"moments": shifted_one_pass, **declares(max_kappa=8.0)}),
    Honest("folded", "y = x * scale + shift, in training and inference.", "T",
           {"moments": two_pass, "train": folded_train, "infer": folded_infer}),
    Honest("fused", "Products and sums in twice the precision, rounded once, as fused operations round.", "SK",
           {"affine": wide_affine, "dx": wide_dx, "dgamma": wide_dgamma}),
    Honest("flushing", "Subnormal numbers count as zero, and it says so.", "SK",
           {"load": flushing_load, "store": flushing_store, **declares(flushes=True)}),
    Honest("unbiased", "Keeps the unbiased variance, and says so.", "SK", declares(running_variance="unbiased")),
    Honest("new-momentum", "Momentum weighs the new value, and it says so.", "SK", declares(momentum="new")),
    Honest("single-value-error", "One value a channel is an error, and it says so.", "SK",
           declares(single_value="error")),
    Honest("pytorch-like", "The last three together, over the textbook's statistics.", "T",
           {"moments": two_pass,
            **declares(running_variance="unbiased", momentum="new", single_value="error")}),
)  # fmt: skip
