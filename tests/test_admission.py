"""A call that was seen before is not checked again: what is remembered must fit every later call of its signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import polybn
from polybn import admission
from polybn.spec import BackendError, DTypeError, ShapeError, SingleValueWarning

SHAPE, C = (7, 5, 3, 2), 5
Array = NDArray[Any]


def in_order(order: str) -> Callable[[Array], Array]:
    return lambda z: np.asarray(z, order=order)  # type: ignore[call-overload]


def with_gaps(z: Array) -> Array:
    wide = np.full([2 * size for size in z.shape], np.nan, z.dtype)
    part = wide[tuple(slice(None, None, 2) for _ in z.shape)]
    part[...] = z
    return part


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.ascontiguousarray,
    "Fortran": in_order("F"),
    "channels last": lambda z: np.moveaxis(np.ascontiguousarray(np.moveaxis(z, 1, -1)), -1, 1) if z.ndim > 1 else z,
    "gaps": with_gaps,
    "backwards": lambda z: np.ascontiguousarray(z[::-1])[::-1],
    "swapped bytes": lambda z: z.astype(z.dtype.newbyteorder()),
}
WITHOUT_SWAP = [name for name in LAYOUTS if name != "swapped bytes"]


def arrays(dtype: str) -> list[Array]:
    rng = np.random.default_rng(5)
    wide = "f8" if dtype == "f8" else "f4"
    x, dy = (rng.normal(40, 7, SHAPE).astype(dtype) for _ in range(2))
    vectors = [rng.normal(2, 0.5, C).astype(wide), rng.normal(size=C).astype(wide), rng.normal(40, 1, C).astype(wide)]
    return [x, dy, *vectors, rng.uniform(30, 60, C).astype(wide)]


def outcome(x: Array, dy: Array, *vectors: Array, training: bool, where: Array | None) -> list[Array]:
    result, pullback = polybn.batch_norm_vjp(x, *vectors, training=training, where=where)
    return [z for z in (*result, *pullback(dy), *pullback(dy)) if z is not None]


@settings(max_examples=100)
@given(st.data())
def test_layouts_may_alternate(data: st.DataObject) -> None:
    dtype, training = data.draw(st.sampled_from(["f2", "f4", "f8"])), data.draw(st.booleans())
    given = arrays(dtype)
    where = np.random.default_rng(3).random(SHAPE) > 0.3 if data.draw(st.booleans()) else None
    expected = outcome(*given, training=training, where=where)
    for _ in range(4):
        laid = [LAYOUTS[data.draw(st.sampled_from([*LAYOUTS]))](z) for z in given]
        mask = None if where is None else LAYOUTS[data.draw(st.sampled_from(WITHOUT_SWAP))](where)
        admission._kept.clear()
        fresh = outcome(*laid, training=training, where=mask)
        outcome(*given, training=training, where=where)
        for found in (outcome(*laid, training=training, where=mask), fresh):
            for one, other, right in zip(found, fresh, expected, strict=True):
                assert one.dtype == other.dtype
                assert one.strides == other.strides
                np.testing.assert_array_equal(one, other)
                # Sums in another order differ by some roundings: of the largest value, as cancelled ones are small.
                error = np.abs(one.astype("f8") - right.astype("f8")).max()
                assert error <= 16 * np.finfo(right.dtype).eps * np.abs(right.astype("f8")).max()


def test_out_may_have_any_layout() -> None:
    x, dy, *vectors = arrays("f4")
    result, pullback = polybn.batch_norm_vjp(x, *vectors, training=True)
    for name in WITHOUT_SWAP * 2:
        y, dx = LAYOUTS[name](np.zeros_like(x)), LAYOUTS[name](np.zeros_like(x))
        assert polybn.batch_norm(x, *vectors, training=True, out=y).y is y
        np.testing.assert_array_equal(y, result.y)
        assert pullback(dy, out=dx).x is dx
        np.testing.assert_array_equal(dx, pullback(dy).x)


def test_equal_options_of_other_types_are_checked_anew() -> None:
    x = arrays("f4")[0]
    polybn.batch_norm(x, training=True, momentum=1, eps=1.0)
    wrong: Any = 1
    for _ in range(2):
        with pytest.raises(DTypeError, match="training must be"):
            polybn.batch_norm(x, training=wrong, momentum=1, eps=1.0)


def test_other_kinds_of_arrays_are_checked_anew() -> None:
    x, dy, *vectors = arrays("f4")
    _, pullback = polybn.batch_norm_vjp(x, *vectors, training=True)
    pullback(dy)
    for wrong, error in (
        (np.ma.masked_array(dy), BackendError),
        (dy.astype("f8"), DTypeError),
        (dy[:-1], ShapeError),
        ("dy", BackendError),
        (np.random.default_rng(), BackendError),  # NumPy's, and no array
        (None, BackendError),
    ):
        for _ in range(2):
            with pytest.raises(error, match="dy must"):
                pullback(wrong)
    for odd in (np.ma.masked_array(x), np.random.default_rng(), np.float32(3)):
        for _ in range(2):
            with pytest.raises((BackendError, ShapeError), match="x must"):
                polybn.batch_norm(odd, *vectors, training=True)
    with pytest.raises(BackendError, match="gamma must be a plain NumPy array"):
        polybn.batch_norm(x, np.ma.masked_array(vectors[0]), *vectors[1:], training=True)


def test_options_without_a_hash_are_errors() -> None:
    x, wrong = arrays("f4")[0], np.full(3, 0.5)
    for name in ("momentum", "eps", "axis", "running_variance", "training"):
        options: dict[str, Any] = {"training": True} | {name: wrong}
        with pytest.raises((DTypeError, ValueError), match=f"polybn.batch_norm: {name} must"):
            polybn.batch_norm(x, **options)


def test_a_single_value_warns_each_time() -> None:
    for _ in range(3):
        with pytest.warns(SingleValueWarning) as caught:
            polybn.batch_norm(np.ones((1, 3)), training=True)
        assert caught[0].filename == __file__


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [np.arange(3.0 * n).reshape(n, 3) for n in range(2, 40)]
    expected = [polybn.batch_norm(x, training=True).y for x in batches]
    monkeypatch.setattr(admission, "LIMIT", 10)
    monkeypatch.setattr(admission, "_kept", {})
    for x, y in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(polybn.batch_norm(x, training=True).y, y)
        assert len(admission._kept) <= 10


def test_arrays_are_checked_before_keywords() -> None:
    wrong: dict[str, Any] = {"foo": 1}
    x = np.ma.masked_array(arrays("f4")[0])
    with pytest.raises(BackendError, match="x must be a plain NumPy array"):
        polybn.batch_norm(x, training=True, **wrong)


def test_what_was_checked_may_change_its_shape() -> None:
    """NumPy lets an array's shape and dtype be set in place; a pullback must not trust what it saw before."""
    x, dy = np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)
    _, pullback = polybn.batch_norm_vjp(x, training=True)
    pullback(dy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5
        x.shape = (2, 6)
    with pytest.raises(ShapeError, match=r"dy must have shape \(2, 6\)"):
        pullback(dy)
