"""Clause S15: moments are right, and so are merges of them."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance import bounds, forms, oracle
from polybn.conformance.cases import DTYPES, Array, Case, equal, rows, statistics_dtype
from polybn.conformance.forms import Format
from polybn.conformance.lattice import lattice
from polybn.conformance.oracle import Parts
from polybn.conformance.strategies import sample
from polybn.spec import Moments
from tests.support import drawing
from tests.support.cases import errors
from tests.support.drawing import cases, narrowed
from tests.support.within import within_one


def measure(backend: str, x: Array, axis: int = 1, where: Array | None = None) -> Moments:
    b = polybn.backend(backend)
    return polybn.moments(b.asarray(x), axis=axis, where=None if where is None else b.asarray(where))


def host(backend: str, moments: Moments) -> Moments:
    return Moments(*(None if a is None else polybn.backend(backend).to_numpy(a) for a in moments))


def parts(moments: Moments) -> list[Parts]:
    """Read host moments as exact numbers; a mean is what it was before it was rounded."""
    rows_ = zip(*(a.tolist() for a in moments), strict=True)
    return [Parts(int(n), Fraction(mean) + Fraction(low), Fraction(m2)) for n, mean, m2, low in rows_]


class Bounded(NamedTuple):
    """Exact moments, and how far those that were computed may lie from them."""

    exact: Parts
    mean: float
    """A bound on the error of ``mean + low``."""
    m2: float


def measured(values: Array, dtype: str) -> Bounded:
    """Bound the moments of one channel's values: the mean errs as ``m1 + delta`` does in S2, and by u^2 of itself."""
    exact, f, m = oracle.parts(oracle.row(values.tolist())), forms.FORMATS[dtype], len(values)
    if m == 0 or exact.m2 == 0:
        return Bounded(exact, 0.0, 0.0)
    x = values[:, None].astype(DTYPES[dtype])
    (e,) = errors(Case(x, None, None, None, None, np.zeros_like(x), eps=0.0))
    size, spread = (float(np.abs(values - centre).mean()) for centre in (0, float(exact.mean)))
    m1 = forms.roundings(e.h + 2, f.unit) * size + f.tiny
    mean = forms.roundings(e.h + 4, f.unit) * (spread + m1) + 2 * f.unit**2 * size + 2 * f.tiny
    m2 = m * e.variance
    m2 += forms.roundings(1, f.unit) * (float(exact.m2) + m2)
    return Bounded(exact, bounds.SAFETY * mean, bounds.SAFETY * m2)


def joined(a: Bounded, b: Bounded, f: Format) -> Bounded:
    """Bound the moments of two parts that were merged: the roundings of S15's lines, and the errors of the parts."""
    if not a.exact.m or not b.exact.m:
        return b if b.exact.m else a
    exact, u, n = oracle.merge(a.exact, b.exact), f.unit, a.exact.m + b.exact.m
    weight, share = a.exact.m * b.exact.m / n, min(a.exact.m, b.exact.m) / n
    distance = abs(float(b.exact.mean - a.exact.mean)) + a.mean + b.mean
    reach = abs(float(a.exact.mean)) + abs(float(b.exact.mean)) + distance
    local = forms.roundings(6, u) * distance + 8 * u**2 * reach + f.tiny
    off = a.mean + b.mean + local
    mean = (a.exact.m * a.mean + b.exact.m * b.mean) / n + share * local + 4 * u**2 * reach + f.tiny
    m2 = a.m2 + b.m2 + weight * (2 * distance * off + off**2)
    m2 += forms.roundings(10, u) * (float(exact.m2) + 2 * m2) + f.tiny
    return Bounded(exact, bounds.SAFETY * mean, bounds.SAFETY * m2)


def within(got: Parts, expected: Bounded) -> None:
    assert got.m == expected.exact.m
    for name, bound in (("mean", expected.mean), ("m2", expected.m2)):
        error = abs(getattr(got, name) - getattr(expected.exact, name))
        assert error <= bound, f"{name}: the error {float(error):.3g} exceeds the bound {bound:.3g}"


@pytest.mark.clause("S15")
@given(case=cases(training=True))
def test_moments(backend: str, case: Case) -> None:
    """Counts are exact integers, mean and m2 are within the bounds of S2, and shapes and dtypes follow S6."""
    moments = host(backend, measure(backend, case.x, case.axis))
    wide, table = statistics_dtype(case.x), rows(case.x, case.axis)
    assert np.issubdtype(moments.count.dtype, np.integer)
    assert (moments.mean.dtype, moments.m2.dtype, moments.low.dtype) == (wide, wide, wide)
    assert {a.shape for a in moments} == {(len(table),)}
    assert np.array_equal(moments.mean, moments.mean + moments.low)
    for values, got in zip(table, parts(moments), strict=True):
        within(got, measured(values, case.x.dtype.name))


@pytest.mark.clause("S15")
@given(seed=st.integers(0, 2**32), form=drawing.forms(tuple(DTYPES), (0, 1, 2)))
def test_moments_on_the_lattice(backend: str, seed: int, form: tuple[str, int]) -> None:
    """On the lattice count, mean and m2 are the exact numbers."""
    dtype, axis = form
    made = lattice(seed, dtype, 7, (4, 8), axis, offset=17)
    moments = host(backend, measure(backend, made.case.x, axis))
    assert np.array_equal(moments.count, np.full(7, 32))
    assert np.array_equal(moments.mean, made.mean)
    assert np.array_equal(moments.m2, 32 * made.variance)


@pytest.mark.clause("S12", "S15")
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(tuple(DTYPES)))
def test_moments_of_what_is_left(backend: str, seed: int, dtype: str) -> None:
    """With ``where``, each channel has its own count, possibly 0; NaN in deleted places is not read."""
    case = sample(seed, dtype, (7, 5, 3), kappa=5.0)
    where = np.random.default_rng(seed).random(case.x.shape) < 0.5
    where[:, 1] = False
    x = np.where(where, case.x, case.x.dtype.type(np.nan))
    moments = parts(host(backend, measure(backend, x, 1, where)))
    for values, keep, got in zip(rows(case.x, 1), rows(where, 1) > 0, moments, strict=True):
        expected = measured(values[keep], dtype)
        assert expected.exact.m == keep.sum()
        within(got._replace(mean=got.mean if keep.any() else Fraction(0)), expected)


def cut(x: Array, sizes: list[int]) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1])


KAPPAS = {"float16": 8.0, "bfloat16": 8.0, "float32": 1e6, "float64": 1e14}


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    form=narrowed(
        st.tuples(st.sampled_from(tuple(DTYPES)), st.lists(st.integers(0, 9), min_size=2, max_size=2).filter(any)),
        [("float32", [2, 7]), ("float64", [7, 2]), ("float16", [0, 2]), ("bfloat16", [7, 0]), ("float32", [7, 7])],
    ),
    far=st.booleans(),
)
def test_one_merge(backend: str, seed: int, form: tuple[str, list[int]], far: bool) -> None:
    """A merge is the exact merge of the moments that it was given, to the roundings of its two formulas."""
    dtype, sizes = form
    x = sample(seed, dtype, (sum(sizes), 3), kappa=KAPPAS[dtype] if far else 1.0).x
    pieces = [measure(backend, z) for z in cut(x, sizes)]
    merged = host(backend, polybn.merge_moments(*pieces))
    for a, b, got in zip(*(parts(host(backend, z)) for z in pieces), parts(merged), strict=True):
        within(got, joined(Bounded(a, 0, 0), Bounded(b, 0, 0), forms.FORMATS[dtype]))


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(("float32", "float64")),
    sizes=narrowed(
        st.lists(st.sampled_from((0, 1, 2, 3, 5, 17)), min_size=2, max_size=5).filter(any),
        [[2, 17, 3], [17, 1, 0, 2], [1, 1], [3, 2, 1, 17, 0], [0, 17]],
    ),
    far=st.booleans(),
)
def test_any_split_in_any_order(backend: str, seed: int, dtype: str, sizes: list[int], far: bool) -> None:
    """For any split and any order of merges the moments are those of all values, at any kappa."""
    x, f = sample(seed, dtype, (sum(sizes), 3), kappa=KAPPAS[dtype] if far else 1.0).x, forms.FORMATS[dtype]
    rng, pieces = np.random.default_rng(seed), cut(x, sizes)
    waiting = [(measure(backend, z), [measured(values, dtype) for values in z.T]) for z in pieces]
    while len(waiting) > 1:
        (a, of_a), (b, of_b) = (waiting.pop(rng.integers(len(waiting))) for _ in range(2))
        waiting.append((polybn.merge_moments(a, b), [joined(*pair, f) for pair in zip(of_a, of_b, strict=True)]))
    ((merged, expected),) = waiting
    for got, one, values in zip(parts(host(backend, merged)), expected, x.T, strict=True):
        assert one.exact == oracle.parts(oracle.row(values.tolist()))
        within(got, one)


@pytest.mark.clause("S15")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_hundred_parts_far_from_zero(backend: str, dtype: str) -> None:
    """Merging one value after another, at a million times their spread, loses at most one rounding per merge."""
    x = (1e6 + np.random.default_rng(7).normal(0, 1, (101, 1))).astype(dtype)
    total = measure(backend, x[:1])
    for row in x[1:]:
        total = polybn.merge_moments(total, measure(backend, row[None]))
    (got,), u = parts(host(backend, total)), forms.FORMATS[dtype].unit
    exact = oracle.parts(oracle.row(x[:, 0].tolist()))
    assert abs(float((got.mean - exact.mean) ** 2 * exact.m / exact.m2)) ** 0.5 <= 101 * u
    assert abs(float(got.m2 / exact.m2 - 1)) <= 101 * u


@pytest.mark.clause("S15")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_low_it_is_zero(backend: str, dtype: str) -> None:
    """A part without ``low`` merges like one whose ``low`` is 0."""
    x = (1e3 + np.random.default_rng(8).normal(0, 1, (13, 3))).astype(dtype)
    pieces = [measure(backend, z)._replace(low=None) for z in (x[:5], x[5:])]
    zeros = polybn.backend(backend).asarray(np.zeros(3, dtype))
    bare, full = (polybn.merge_moments(*(z._replace(low=low) for z in pieces)) for low in (None, zeros))
    assert all(equal(p, q) for p, q in zip(host(backend, bare), host(backend, full), strict=True))


@pytest.mark.clause("S15")
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(tuple(DTYPES)), scale=st.sampled_from((1e-3, 1.7, 700.0)))
def test_empty_parts(backend: str, seed: int, dtype: str, scale: float) -> None:
    """A part without values, or with all deleted by ``where``, changes no bit on either side; two such stay empty."""
    case = sample(seed, dtype, (7, 3), scale=scale)
    a, merge = measure(backend, case.x), polybn.merge_moments
    for nothing in (measure(backend, case.x[:0]), measure(backend, case.x, 1, np.zeros((), bool))):
        for merged in (merge(a, nothing), merge(nothing, a)):
            for got, base in zip(host(backend, merged), host(backend, a), strict=True):
                assert equal(got, base)
        assert not host(backend, merge(nothing, nothing)).count.any()


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    sizes=narrowed(st.lists(st.integers(1, 40), min_size=2, max_size=2), [[3, 37], [37, 1], [1, 3]]),
)
def test_uneven_parts_on_the_lattice(backend: str, seed: int, sizes: list[int]) -> None:
    """Parts of 4 i and 4 j values with equal means merge exactly, weighted by their counts."""
    x = [lattice(seed + i, "float32", 3, (4 * n,), 1, offset=0).case.x + np.float32(5) for i, n in enumerate(sizes)]
    a, b = (measure(backend, z) for z in x)
    merged, one, two = (host(backend, z) for z in (polybn.merge_moments(a, b), a, b))
    assert np.array_equal(merged.count, np.full(3, 4 * sum(sizes)))
    assert np.array_equal(merged.mean, np.full(3, 5.0))
    assert np.array_equal(merged.m2, one.m2 + two.m2)


@pytest.mark.clause("S15")
def test_counts_are_exact(backend: str) -> None:
    """Counts beyond 2^24 are exact, measured and merged: 2^24 + 1 plus 2^24 + 1 is 2^25 + 2."""
    m = 2**24 + 1
    x = np.zeros((m, 1), np.float16)
    x[0] = 1
    moments = measure(backend, x)
    assert host(backend, moments).count.tolist() == [m]
    merged = host(backend, polybn.merge_moments(moments, moments))
    assert merged.count.tolist() == [2 * m]
    # m2 = 1 - 1 / m for each.
    assert abs(float(merged.m2[0]) - 2 * (1 - 1 / m)) <= 2**-20


@pytest.mark.clause("S10", "S15")
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 1e25), ("float32", 4e37), ("float64", 1e200), ("float32", 1e-30)]
)
def test_moments_out_of_range(backend: str, dtype: str, scale: float) -> None:
    """Huge values have a right mean and an infinite m2; tiny values have a right mean and the nearest number as m2."""
    x = (scale * np.clip(np.random.default_rng(3).normal(0.5, 1, (61, 3)), -4, 4)).astype(DTYPES[dtype])
    moments, f = host(backend, measure(backend, x)), forms.FORMATS[dtype]
    for values, mean, m2 in zip(rows(x, 1), moments.mean, moments.m2, strict=True):
        exact = oracle.parts(oracle.row(values.tolist()))
        within_one("mean", float(mean), exact.mean, forms.roundings(60, f.unit) * float(np.abs(values / 61).sum()))
        assert m2 == (0.0 if scale < 1 else np.inf)


@pytest.mark.clause("S8", "S15")
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_constants(backend: str, dtype: str) -> None:
    """A constant channel has its value as the mean, and m2 = 0; merging two of them keeps both."""
    x = np.full((513, 2), 1234.567).astype(DTYPES[dtype])
    moments = measure(backend, x)
    for got in (moments, polybn.merge_moments(moments, moments)):
        assert np.array_equal(host(backend, got).mean, x[0].astype(float))
        assert not host(backend, got).m2.any()
