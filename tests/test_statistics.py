"""The accumulator: for any parts in any order, the statistics are those of all values together."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn import Statistics
from polybn.conformance import oracle
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError
from polybn.statistics.extremes import extremes

Array = np.ndarray[Any, Any]


def assert_right(found: Statistics, rows: list[Array], unit: float, parts: int) -> None:
    """Compare with exact arithmetic: mean and root of the variance to ``8 * parts`` roundings of the spread."""
    for c, row in enumerate(rows):
        exact = oracle.parts(oracle.row(row.tolist()))
        variance = float(exact.m2 / exact.m)
        assert found.count[c] == exact.m
        error = Fraction(found.mean[c]) + Fraction(found.moments.low[c]) - exact.mean
        assert abs(error) <= 8 * parts * unit * variance**0.5 + 4e-16 * unit * abs(float(exact.mean))
        assert abs(found.variance()[c] - variance) <= 8 * parts * unit * variance
        assert (found.min[c], found.max[c]) == (row.min(), row.max())


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(("float32", "float64")),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    far=st.sampled_from((0.0, 300.0, 1e6)),
)
def test_any_order_of_any_parts(backend: str, seed: int, dtype: str, sizes: list[int], far: float) -> None:
    """Parts of 1 to 7 rows, added or merged in any order, far from zero."""
    rng, module = np.random.default_rng(seed), polybn.backend(backend)
    x = (far + 3.7 * rng.normal(0, 1, (sum(sizes), 3, 5))).astype(dtype)
    whole, other = Statistics(), Statistics()
    parts = np.split(x, np.cumsum(sizes)[:-1])
    for k in rng.permutation(len(parts)):
        (whole if rng.random() < 0.5 else other).update(module.asarray(parts[k]))
    whole.merge(other)
    rows = list(np.moveaxis(x, 1, 0).reshape(3, -1))
    assert_right(whole, rows, 2.0**-24 if dtype == "float32" else 2.0**-53, 40)


@pytest.mark.clause("S12", "S15")
def test_what_where_leaves_out_does_not_count(backend: str) -> None:
    """NaN in a deleted place, a channel without values, and a negative axis."""
    x = np.array([[1.0, np.nan, 7.0], [5.0, np.nan, -8.0]], np.float32)
    where = np.array([[True, False, True], [True, False, False]])
    module, found = polybn.backend(backend), Statistics(axis=-1)
    found.update(module.asarray(x), where=module.asarray(where))
    assert found.count.tolist() == [2, 0, 1]
    assert found.mean[[0, 2]].tolist() == [3, 7]
    assert found.min.tolist() == [1, np.inf, 7]
    assert found.max.tolist() == [5, -np.inf, 7]
    assert found.variance().tolist() == [4, 0, 0]
    assert found.variance(unbiased=True).tolist() == [8, 0, 0]
    assert found.std(unbiased=True).tolist() == [8**0.5, 0, 0]


def test_libraries_mix() -> None:
    """Bytes, half types and float64 from several libraries give one result in float64."""
    pytest.importorskip("ml_dtypes")
    import ml_dtypes

    found = Statistics()
    parts = [np.full((2, 2), 250, np.uint8), np.full((1, 2), 2, ml_dtypes.bfloat16), np.full((3, 2), 1e6)]
    for part in parts:
        found.update(part)
    for name, reason in polybn.backends().items():
        if reason is None and name != "numpy":
            found.update(polybn.backend(name).asarray(np.full((1, 2), 9, np.float32)))
            parts.append(np.full((1, 2), 9, np.float32))
    values = np.concatenate([part.astype(float) for part in parts])
    assert found.count.tolist() == [len(values)] * 2
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.std(), values.std(axis=0), rtol=1e-15)
    assert (found.min.tolist(), found.max.tolist()) == ([2, 2], [1e6, 1e6])


def example() -> Statistics:
    found = Statistics(axis=-1)
    found.update(np.random.default_rng(1).integers(0, 256, (7, 5, 3), np.uint8))
    found.update(1e6 + np.random.default_rng(2).normal(0, 1e-3, (11, 5, 3)))
    return found


def same(a: Statistics, b: Statistics) -> bool:
    pairs = zip((*a.moments, a.min, a.max), (*b.moments, b.min, b.max), strict=True)
    return a.axis == b.axis and all(np.array_equal(p, q) for p, q in pairs)


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(((1, 1), (2000, 3), (341, 3), (7, 5, 11, 3), (5, 3, 700), (3000, 1), (0, 3))),
    axis=st.integers(-2, 1),
    dtype=st.sampled_from(("uint8", "int64", "float32")),
    turned=st.booleans(),
)
def test_extremes_of_any_layout(seed: int, shape: tuple[int, ...], axis: int, dtype: str, turned: bool) -> None:
    """They are NumPy's, wherever they lie and in whatever number of rows; NaN is kept."""
    x = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    if dtype == "float32" and x.size:
        x.flat[seed % x.size] = np.nan
    x = np.asfortranarray(x) if turned else x
    found = extremes(x, axis, None)
    others = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    wide = x.astype(float)
    right = wide.min(others, initial=np.inf), wide.max(others, initial=-np.inf)
    assert np.array_equal(found, np.array(right, float), equal_nan=True)


def test_saved_and_loaded_it_goes_on(tmp_path: Path) -> None:
    found, path = example(), tmp_path / "statistics of all"
    found.save(path)
    again = Statistics.load(path)
    assert same(found, again)
    for one in (found, again):
        one.update(np.full((2, 3), 5.0))
    assert same(found, again)
    assert same(found, pickle.loads(pickle.dumps(found)))
    assert same(found, copy.deepcopy(found))
    without = Statistics(extremes=False)
    without.update(np.ones((2, 3)))
    without.save(path)
    assert Statistics.load(path).count.tolist() == [2, 2, 2]
    with pytest.raises(DomainError, match="extremes must be True for smallest and largest values; got False"):
        Statistics.load(path).max  # noqa: B018


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "cut",
        "other",
        "pickle",
        "negative",
        "shape",
        "dtype",
        "missing",
        "npy",
        "scalar",
        "axis",
        "half",
    ],
)
def test_what_is_no_saved_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    example().save(path)
    arrays = dict(np.load(path))
    changed = {
        "negative": {"m2": -arrays["m2"]}, "shape": {"mean": arrays["mean"][:2]}, "dtype": {"low": arrays["count"]},
        "pickle": {"mean": np.array([{}], object)}, "other": {"gamma": arrays["mean"]},
        "scalar": {"count": np.array(3)}, "axis": {"axis": np.array([1, 1])}, "half": {"axis": np.array(1.5)},
    }  # fmt: skip
    if kind in changed:
        np.savez(path, **(arrays | changed[kind]))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, arrays["mean"])
    elif kind == "missing":
        np.savez(path, **{name: array for name, array in arrays.items() if name != "m2"})
    else:
        path.write_bytes({"empty": b"", "text": b"no file of statistics", "cut": path.read_bytes()[:-70]}[kind])
    with pytest.raises(DomainError, match=rf"^polybn\.Statistics\.load: path must name a file.*; got {path} \(.+\)$"):
        Statistics.load(path)
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"some text", "it is no .npz file"),
        (b"\x93NUMPY\x01\0", "it is one array, as .npy files have it"),
    ],
)
def test_a_file_that_is_none_of_statistics_is_called_what_it_is(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(data)
    with pytest.raises(DomainError, match=rf"save has written; got {path} \({words}\)$"):
        Statistics.load(path)
    np.savez(path, x=np.ones(3), y=np.ones(2))
    words = "its arrays are x, y; they must be axis, count, mean, m2, low"
    with pytest.raises(DomainError, match=rf"\({words}\)$"):
        Statistics.load(path)


def test_moments_have_a_deviation(backend: str) -> None:
    """The root of the variance, and 0 in a channel with too few values."""
    module = polybn.backend(backend)
    found = polybn.moments(module.asarray(np.array([[1, 5], [2, 5], [6, 5]], np.float32)))
    for unbiased, variance in ((False, 14 / 3), (True, 7)):
        got = module.to_numpy(found.std(unbiased=unbiased))
        np.testing.assert_allclose(got, [variance**0.5, 0], rtol=2**-21)
    assert module.to_numpy(polybn.moments(module.asarray(np.ones((1, 2), np.float32))).std()).tolist() == [0, 0]


def test_what_is_handed_out_cannot_change_it() -> None:
    found, other = example(), Statistics()
    other.merge(found)
    for array in (found.count, found.mean, found.min, found.max, found.moments.m2, other.mean):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
    found.update(np.full((2, 3), 5.0))
    assert other.mean.tolist() == example().mean.tolist()
    assert other.count.tolist() == example().count.tolist()


def test_refused_in_words_and_nothing_changes() -> None:
    found, before = example(), example()
    with pytest.raises(ShapeError, match=r"^polybn\.Statistics\.update: x must have 3 channels; got 4 \(.*first\)$"):
        found.update(np.ones((2, 4)))
    with pytest.raises(DTypeError, match=r"^polybn\.Statistics\.merge: other must be a polybn\.Statistics; got list"):
        found.merge([])  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"^polybn\.moments: x must have one of the dtypes .*; got bool"):
        found.update(np.ones((2, 3), bool))
    with pytest.raises(BackendError, match=r"^polybn\.Statistics\.update: x must be an array"):
        found.update([1.0])
    with pytest.raises(DTypeError, match=r"^polybn\.Statistics: axis must be"):
        Statistics(axis="last")  # type: ignore[arg-type]
    reads: list[Callable[[Statistics], object]] = [lambda s: s.mean, lambda s: s.min, lambda s: s.std()]
    reads.append(lambda s: s.save("nowhere"))
    for read in reads:
        with pytest.raises(DomainError, match="update must have taken in an array; got none"):
            read(Statistics())
    found.merge(Statistics())
    assert same(found, before)
    empty = Statistics(axis=-1)
    empty.merge(found)
    assert same(empty, before)
    assert repr(Statistics()) == "Statistics(axis=1)"
    assert "count=[90 90 90]" in repr(found)
