"""Clause S15: moments are right, and merging them is exact bookkeeping."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import polybn
from polybn.conformance import bounds, forms, oracle
from polybn.conformance.cases import DTYPES, Array, Case, equal, rows, statistics_dtype
from polybn.conformance.certify import within_one
from polybn.conformance.forms import Format
from polybn.conformance.lattice import lattice
from polybn.conformance.oracle import Parts
from polybn.conformance.strategies import sample
from polybn.spec import Moments
from tests.support import drawing
from tests.support.cases import errors
from tests.support.drawing import cases, narrowed


def measure(backend: str, x: Array, axis: int = 1, where: Array | None = None) -> Moments:
    b = polybn.backend(backend)
    return polybn.moments(b.asarray(x), axis=axis, where=None if where is None else b.asarray(where))


def host(backend: str, moments: Moments) -> Moments:
    return Moments(*(polybn.backend(backend).to_numpy(a) for a in moments))


def parts(moments: Moments) -> list[Parts]:
    """Read host moments as exact numbers."""
    rows_ = zip(*(a.tolist() for a in moments), strict=True)
    return [Parts(int(n), Fraction(mean), Fraction(m2)) for n, mean, m2 in rows_]


def mean_bound(values: Array, dtype: str) -> tuple[Parts, float, float]:
    """Return the exact moments of one channel's values, and bounds on mean and m2."""
    exact, f, m = oracle.parts(oracle.row(values.tolist())), forms.FORMATS[dtype], len(values)
    if m == 0 or exact.m2 == 0:
        return exact, 0.0, 0.0
    x = values[:, None].astype(DTYPES[dtype])
    (e,) = errors(Case(x, None, None, None, None, np.zeros_like(x), eps=0.0))
    m2 = m * e.variance
    return exact, e.mean, bounds.SAFETY * (m2 + forms.roundings(1, f.unit) * (float(exact.m2) + m2))


@pytest.mark.clause("S15")
@given(case=cases(training=True))
def test_moments(backend: str, case: Case) -> None:
    """Counts are exact integers, mean and m2 within the bounds of S2; shapes and dtypes are those of S6."""
    moments = host(backend, measure(backend, case.x, case.axis))
    wide, table = statistics_dtype(case.x), rows(case.x, case.axis)
    assert np.issubdtype(moments.count.dtype, np.integer)
    assert (moments.mean.dtype, moments.m2.dtype) == (wide, wide)
    assert moments.count.shape == moments.mean.shape == moments.m2.shape == (len(table),)
    for values, got in zip(table, parts(moments), strict=True):
        exact, mean, m2 = mean_bound(values, case.x.dtype.name)
        assert got.m == exact.m
        within_one("mean", float(got.mean), exact.mean, mean)
        within_one("m2", float(got.m2), exact.m2, m2)


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
    """With ``where``, each channel has its own count, 0 where nothing is left; NaN in deleted places is not read."""
    case = sample(seed, dtype, (7, 5, 3), kappa=5.0)
    where = np.random.default_rng(seed).random(case.x.shape) < 0.5
    where[:, 1] = False
    x = np.where(where, case.x, case.x.dtype.type(np.nan))
    moments = parts(host(backend, measure(backend, x, 1, where)))
    for values, keep, got in zip(rows(case.x, 1), rows(where, 1) > 0, moments, strict=True):
        exact, mean, m2 = mean_bound(values[keep], dtype)
        assert got.m == keep.sum()
        if exact.m2 == 0:
            assert got.m2 == 0
            assert got.mean == exact.mean or exact.m == 0
        else:
            within_one("mean", float(got.mean), exact.mean, mean)
            within_one("m2", float(got.m2), exact.m2, m2)


def cut(x: Array, sizes: list[int]) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1])


def merge_bounds(a: Parts, b: Parts, f: Format) -> tuple[float, float]:
    """Bound what one merge adds to the errors of its parts: the roundings of S15's two lines."""
    n = a.m + b.m
    distance, weight = abs(float(b.mean - a.mean)), a.m * b.m / n
    mean = forms.roundings(5, f.unit) * (abs(float(a.mean)) + distance * b.m / n) + f.tiny
    m2 = forms.roundings(8, f.unit) * (float(a.m2) + float(b.m2) + distance**2 * weight) + f.tiny
    return bounds.SAFETY * mean, bounds.SAFETY * m2


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    form=narrowed(
        st.tuples(st.sampled_from(tuple(DTYPES)), st.lists(st.integers(0, 9), min_size=2, max_size=2).filter(any)),
        [("float32", [2, 7]), ("float64", [7, 2]), ("float16", [0, 2]), ("bfloat16", [7, 0]), ("float32", [7, 7])],
    ),
    kappa=st.sampled_from((0.0, 1.0, 8.0)),
)
def test_one_merge(backend: str, seed: int, form: tuple[str, list[int]], kappa: float) -> None:
    """A merge is the exact merge of the moments that it was given, to the roundings of its two formulas."""
    dtype, sizes = form
    x = sample(seed, dtype, (sum(sizes), 3), kappa=kappa).x
    pieces = [measure(backend, z) for z in cut(x, sizes)]
    merged = host(backend, polybn.merge_moments(*pieces))
    triples = zip(*(parts(host(backend, z)) for z in pieces), parts(merged), strict=True)
    for a, b, got in triples:
        exact = oracle.merge(a, b)
        mean, m2 = merge_bounds(a, b, forms.FORMATS[dtype])
        assert got.m == exact.m == sum(sizes)
        within_one("mean", float(got.mean), exact.mean, mean)
        within_one("m2", float(got.m2), exact.m2, m2)


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(("float32", "float64")),
    sizes=narrowed(st.lists(st.integers(2, 9), min_size=3, max_size=3), [[2, 7, 3], [7, 3, 2], [3, 3, 7]]),
    kappa=st.sampled_from((0.0, 10.0, 1e3)),
)
def test_associative(backend: str, seed: int, dtype: str, sizes: list[int], kappa: float) -> None:
    """(a b) c, a (b c) and (c b) a agree with the moments of all values, to first order in u kappa."""
    x, f = sample(seed, dtype, (sum(sizes), 3), kappa=kappa).x, forms.FORMATS[dtype]
    pieces = cut(x, sizes)
    assume(all((np.ptp(z.astype(float), axis=0) > 0).all() for z in pieces))
    a, b, c = (measure(backend, z) for z in pieces)
    merge = polybn.merge_moments
    for got in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, b), a)):
        for channel, part in enumerate(parts(host(backend, got))):
            exact = oracle.parts(oracle.row(x[:, channel].tolist()))
            mean, m2 = tree_bound([z[:, channel] for z in pieces], exact, dtype, f)
            assert part.m == len(x)
            within_one("mean", float(part.mean), exact.mean, mean)
            within_one("m2", float(part.m2), exact.m2, m2)


def tree_bound(pieces: list[Array], exact: Parts, dtype: str, f: Format) -> tuple[float, float]:
    """Bound two merges: a mean errs by e at every node, so D by 2 e, and D^2 by 4 D e + 4 e^2."""
    found = [mean_bound(z, dtype) for z in pieces]
    largest = max(abs(float(p.mean)) for p, _, _ in found)
    spread = max(float(p.mean) for p, _, _ in found) - min(float(p.mean) for p, _, _ in found)
    leaf = max(mean for _, mean, _ in found)
    e = leaf + 2 * forms.roundings(5, f.unit) * (largest + 2 * spread + leaf) + 2 * f.tiny
    weight = exact.m / 4  # n_a n_b / n is a quarter of n at most, and there are two merges
    drift = 2 * weight * (4 * (spread + e) * e + 4 * e**2)
    total = float(exact.m2) + drift + sum(m2 for _, _, m2 in found)
    m2 = sum(m2 for _, _, m2 in found) + drift + forms.roundings(20, f.unit) * total
    return e, m2 * bounds.SAFETY


@pytest.mark.clause("S15")
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(tuple(DTYPES)), scale=st.sampled_from((1e-3, 1.7, 700.0)))
def test_empty_parts(backend: str, seed: int, dtype: str, scale: float) -> None:
    """An empty part, whole or by ``where``, changes no bit, on either side; two of them make an empty one."""
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
    """Parts of 4 i and 4 j values of one mean merge exactly; counts weigh them."""
    x = [lattice(seed + i, "float32", 3, (4 * n,), 1, offset=0).case.x + np.float32(5) for i, n in enumerate(sizes)]
    a, b = (measure(backend, z) for z in x)
    merged, one, two = (host(backend, z) for z in (polybn.merge_moments(a, b), a, b))
    assert np.array_equal(merged.count, np.full(3, 4 * sum(sizes)))
    assert np.array_equal(merged.mean, np.full(3, 5.0))
    assert np.array_equal(merged.m2, one.m2 + two.m2)


@pytest.mark.clause("S15")
def test_counts_are_exact(backend: str) -> None:
    """Counts beyond 2^24 are exact, measured and merged: 2^24 + 1 and 2^24 + 1 make 2^25 + 2."""
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
    """The mean of huge values is right and m2 infinity; that of tiny values is right and m2 the nearest number."""
    x = (scale * np.clip(np.random.default_rng(3).normal(0.5, 1, (61, 3)), -4, 4)).astype(DTYPES[dtype])
    moments, f = host(backend, measure(backend, x)), forms.FORMATS[dtype]
    for values, mean, m2 in zip(rows(x, 1), moments.mean, moments.m2, strict=True):
        exact = oracle.parts(oracle.row(values.tolist()))
        within_one("mean", float(mean), exact.mean, forms.roundings(60, f.unit) * float(np.abs(values / 61).sum()))
        assert m2 == (0.0 if scale < 1 else np.inf)


@pytest.mark.clause("S8", "S15")
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_constants(backend: str, dtype: str) -> None:
    """A constant channel has its value for a mean, m2 = 0, and merging two of them keeps both."""
    x = np.full((513, 2), 1234.567).astype(DTYPES[dtype])
    moments = measure(backend, x)
    for got in (moments, polybn.merge_moments(moments, moments)):
        assert np.array_equal(host(backend, got).mean, x[0].astype(float))
        assert not host(backend, got).m2.any()
