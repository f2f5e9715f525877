"""Clause S1 for CuPy: neither memory layout nor the division of work changes a bit. Emulated, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import Array, Case, Outcome, same
from polybn.conformance.strategies import cases, sample

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")

View = Callable[[Array], tuple[Array, Callable[[Any], Any]]]


def straight(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    return a, lambda d: d


def fortran(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    return np.ascontiguousarray(a.T), lambda d: d.T


def backwards(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    flipped = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flipped]), lambda d: d[flipped]


def every_second(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    wide = np.full([2 * n for n in a.shape], 77, a.dtype)
    index = tuple(slice(1, None, 2) for _ in a.shape)
    wide[index] = a
    return wide, lambda d: d[index]


def channels_last(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    if a.ndim < 3:
        return a, lambda d: d
    axes = (0, a.ndim - 1, *range(1, a.ndim - 1))
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)), lambda d: d.transpose(*axes)


def offset(a: Array) -> tuple[Array, Callable[[Any], Any]]:
    room = np.full(a.size + 3, 55, a.dtype)
    room[3:] = a.ravel()
    return room, lambda d: d[3:].reshape(a.shape)


LAYOUTS: tuple[View, ...] = (fortran, backwards, every_second, channels_last, offset)
ARGUMENTS = ("x", "gamma", "beta", "running_mean", "running_var", "dy", "where")


def device(a: Array | None, layout: View) -> Any:
    """Copy an array to the device in the given layout."""
    if a is None:
        return None
    host, view = layout(np.asarray(a))
    placed = view(cupy.array(host))
    assert placed.shape == a.shape
    assert np.array_equal(placed.get().view(np.uint8), np.ascontiguousarray(a).view(np.uint8))
    return placed


def call(case: Case, layout: View = straight, names: tuple[str, ...] = ARGUMENTS) -> Outcome:
    arrays = {n: device(getattr(case, n), layout if n in names else straight) for n in ARGUMENTS}
    dy, where = arrays.pop("dy"), arrays.pop("where")
    result, pullback = polybn.batch_norm_vjp(*arrays.values(), **case.options(), where=where)
    return Outcome._make(None if a is None else a.get() for a in (*result, *pullback(dy)))


@pytest.mark.clause("S1")
@given(case=cases(), layout=st.sampled_from(LAYOUTS), data=st.data())
def test_layouts(case: Case, layout: View, data: st.DataObject) -> None:
    """C and Fortran order, NCHW in NHWC memory, steps, negative strides, offsets: the same bits."""
    names = data.draw(st.sampled_from((*((n,) for n in ARGUMENTS), ARGUMENTS, ("x", "dy"))))
    if data.draw(st.booleans()):
        case = case._replace(where=np.random.default_rng(3).random(case.x.shape) < 0.9, running_variance="biased")
    assert same(call(case, layout, names), call(case))


@pytest.mark.clause("S1")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(13, 12, 40, 16), (131, 8, 33), (2049, 136), (3, 2, 100_003)])
def test_large_layouts(shape: tuple[int, ...], dtype: str, training: bool) -> None:
    """Groups of blocks, rounds, vectors and single values all give the same bits, for NCHW and NHWC memory."""
    case = sample(7, dtype, shape, kappa=3.0, training=training)
    base = call(case)
    for layout in (channels_last, fortran, offset):
        assert same(call(case, layout, ("x", "dy")), base), layout


@pytest.mark.clause("S1")
@pytest.mark.parametrize("training", [True, False])
def test_zero_strides(training: bool) -> None:
    """Broadcast views give the results of their copies."""
    case = sample(6, "float32", (7, 5, 3), training=training)
    x = np.ascontiguousarray(np.broadcast_to(case.x[:, :, :1], case.x.shape))

    def broadcast(a: Array) -> tuple[Array, Callable[[Any], Any]]:
        return np.ascontiguousarray(a[:, :, :1]), lambda d: cupy.broadcast_to(d, case.x.shape)

    case = case._replace(x=x, dy=x)
    assert same(call(case, broadcast, ("x", "dy")), call(case))


@pytest.mark.clause("S6")
def test_y_lies_as_x_does() -> None:
    """The output of an NHWC tensor has NHWC memory, too."""
    x = channels_last(np.ones((2, 3, 4, 5), np.float32))
    placed = x[1](cupy.array(x[0]))
    assert polybn.batch_norm(placed, training=True).y.strides == placed.strides
