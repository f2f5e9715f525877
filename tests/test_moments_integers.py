"""Clause S15 on integers: exact sums of any size, results rounded once; backends without them refuse equally."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn import arguments
from polybn.spec import DTypeError, Moments
from polybn_numpy import integers
from tests.conftest import TRAITS

Array = np.ndarray[Any, Any]
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def measured(backend: str, x: Array, axis: int = 1, where: Array | None = None) -> Moments:
    """Measure on a backend; skip if the library has no such dtype."""
    if not TRAITS[backend].integers:
        pytest.skip("its moments take no integers")
    module = polybn.backend(backend)
    mask = None if where is None else module.asarray(where)
    return Moments(*map(module.to_numpy, polybn.moments(lifted(backend, x), axis=axis, where=mask)))


def lifted(backend: str, x: Array) -> Any:
    """Copy to a backend's array; skip if the library has no such dtype."""
    try:
        return polybn.backend(backend).asarray(x)
    except Exception as error:  # libraries raise different exceptions
        pytest.skip(f"the library has no {x.dtype}: {error}")


def assert_exact(got: Moments, channels: list[list[int]]) -> None:
    for c, values in enumerate(channels):
        n = len(values)
        mean = Fraction(sum(values), max(n, 1))
        m2 = sum((v - mean) ** 2 for v in values)
        assert got.count[c] == n
        assert got.mean[c] == float(mean)
        assert got.m2[c] == float(m2)
        assert got.low is not None
        assert got.low[c] == float(mean - Fraction(float(mean)))


@pytest.mark.clause("S15")
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(((0, 3), (1, 2), (7, 3, 5), (2, 3, 5, 7))),
    axis=st.integers(0, 1),
    masked=st.booleans(),
)
def test_each_result_is_rounded_once(
    backend: str, seed: int, dtype: str, shape: tuple[int, ...], axis: int, masked: bool
) -> None:
    """Over the whole range of each type, moments are the rounded exact numbers, without deleted values."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    x[rng.random(shape) < 0.3] = rng.choice(np.array([info.min, info.max], dtype))
    where = rng.random(shape) < 0.6 if masked else None
    got = measured(backend, x, axis, where)
    rows, kept = (np.moveaxis(a, axis, 0) for a in (x, np.ones(shape, bool) if where is None else where))
    assert_exact(got, [row[keep].tolist() for row, keep in zip(rows, kept, strict=True)])


@pytest.mark.clause("S15")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [1, -1])
def test_more_than_one_sum_of_float64(backend: str, dtype: str, axis: int) -> None:
    """Three million largest numbers and a 0 are exact, with squares beyond 2^53, and beyond int64 for wide types."""
    largest, m = np.iinfo(dtype).max, 3 * 2**20
    x = np.full((m, 1) if axis == 1 else (1024, 3, 1024, 1), largest, dtype)
    x.flat[m // 2] = 0
    got = measured(backend, x, axis)
    mean = Fraction((m - 1) * largest, m)
    m2 = (m - 1) * (largest - mean) ** 2 + mean**2
    assert (got.count[0], got.mean[0], got.m2[0]) == (m, float(mean), float(m2))


LAYOUTS: dict[str, tuple[tuple[int, ...], int, Callable[[Array], Array]]] = {
    "channels last": ((70, 31, 17, 3), 3, lambda x: x),
    "seen from channels last": ((70, 31, 17, 3), 1, lambda x: np.moveaxis(x, 3, 1)),
    "long rows": ((3, 2, 40_001), 1, lambda x: x),
    "channels first": ((3, 70_001), 0, lambda x: x),
    "Fortran order": ((20_011, 7), 1, np.asfortranarray),
    "backwards, every other": ((20_011, 14), 1, lambda x: x[::-1, ::2]),
    "many channels": ((2, 70_000), 1, lambda x: x),
    "repeated": ((5, 1, 2, 300), 2, lambda x: np.broadcast_to(x, (5, 90, 2, 300))),
    "foreign byte order": ((20_011, 7), 1, lambda x: x.astype(x.dtype.newbyteorder())),
    "unaligned": ((20_011, 7), 1, lambda x: np.frombuffer(b"1" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)),
}


@pytest.mark.clause("S15")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_any_layout_of_many_values(dtype: str, layout: str, masked: bool) -> None:
    """Several slabs of each layout, with as many limbs as a type has, and the largest numbers among them."""
    shape, axis, turned = LAYOUTS[layout]
    rng, info = np.random.default_rng(len(layout)), np.iinfo(dtype)
    plain = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    plain[: len(plain) // 2] >>= 8 * plain.itemsize // 2  # slabs of small numbers, too
    plain.flat[:: max(plain.size // 50, 1)] = info.max
    x = turned(plain)
    where = rng.random(x.shape[-1:]) < 0.6 if masked else None
    got = polybn.moments(x, axis=axis, where=where)
    rows = np.moveaxis(x, axis, 0).astype(object).reshape(x.shape[axis], -1)
    kept = np.moveaxis(np.broadcast_to(True if where is None else where, x.shape), axis, 0).reshape(rows.shape)
    for c in range(0, len(rows), max(len(rows) // 5, 1)):
        values = rows[c][kept[c]]
        n, s, q = len(values), int(values.sum()), int((values * values).sum())
        assert got.count[c] == n
        if n:
            assert (got.mean[c], got.m2[c]) == (s / n, (q * n - s * s) / n)


@pytest.mark.clause("S15")
def test_more_slabs_than_int64_can_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums go over to Python's integers in time."""
    x = np.full((200_000, 2), 2**64 - 1, np.uint64)
    right = polybn.moments(x)
    monkeypatch.setattr(integers, "OFTEN", 2)
    assert np.array_equal(right, polybn.moments(x))
    assert right.mean.tolist() == [float(2**64 - 1)] * 2


@pytest.mark.clause("S15")
def test_parts_merge_as_their_whole(backend: str) -> None:
    """Images of bytes, near white with one odd pixel, in parts of unequal sizes."""
    x = np.full((61, 3, 7, 5), 254, np.uint8)
    x[3, 1, 2, 2] = 1
    whole, total = measured(backend, x), measured(backend, x[:2])
    for part in (x[2:3], x[3:47], x[47:]):
        total = polybn.merge_moments(total, measured(backend, part))
    assert np.array_equal(total.count, whole.count)
    assert np.array_equal(total.mean, whole.mean)
    np.testing.assert_allclose(total.m2, whole.m2, rtol=2**-50)
    np.testing.assert_allclose(total.low, whole.low, rtol=0, atol=2**-50 * whole.variance().max() ** 0.5)


@pytest.mark.clause("S14", "S15")
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64"])
def test_refused_in_words(backend: str, dtype: str) -> None:
    """Integers are refused by backends without them, and bool by all."""
    integers = TRAITS[backend].integers
    if integers and dtype in DTYPES:
        pytest.skip("its moments take integers")
    x = lifted(backend, np.ones((2, 3), dtype))
    known = arguments.MOMENTS_DTYPE if integers else arguments.STATISTICS_DTYPE
    words = f"polybn.moments: x must have one of the dtypes {', '.join(known)}; got {dtype}"
    with pytest.raises(DTypeError, match=rf"^{words}.* \(moments are defined on these, and nothing is converted"):
        polybn.moments(x)


@pytest.mark.clause("S14")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jax", r"polybn.moments(numpy.asarray(x)) is exact; x.astype('float32') stays on the device"),
        ("dask", r"x.astype('float64') stays lazy; polybn.Statistics adds up x.blocks[k].compute() exactly"),
        ("torch", r"polybn.moments(x.numpy(force=True)) is exact, on the host; x.double() stays on the device"),
    ],
)
def test_the_error_says_what_the_library_has_for_integers(name: str, words: str) -> None:
    """What it says is run, and gives the exact mean."""
    if (reason := polybn.backends()[name]) is not None:
        pytest.skip(f"{name}: {reason}")
    x = polybn.backend(name).asarray(np.array([[1, 250], [2, 255]], np.int32))
    with pytest.raises(DTypeError, match=rf": {re.escape(words)}\)$"):
        polybn.moments(x)
    for call in re.findall(r"x\.(?:astype|double|numpy|blocks)\S*|numpy\.asarray\(x\)", words):
        converted = eval(
            call.removesuffix(")") if call.count(")") > call.count("(") else call, {"x": x, "numpy": np, "k": 0}
        )
        found = polybn.moments(converted)
        assert np.asarray(found.mean).tolist() == [1.5, 252.5]


@pytest.mark.clause("S14")
def test_batch_norm_takes_no_integers(backend: str) -> None:
    x = polybn.backend(backend).asarray(np.ones((2, 3), np.int32))
    with pytest.raises(DTypeError, match=r"polybn\.batch_norm: x must have one of the dtypes .*float64; got int32"):
        polybn.batch_norm(x, training=True)
