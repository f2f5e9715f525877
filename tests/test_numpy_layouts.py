"""Clause S1 for NumPy: the memory layout of any argument changes no bit, on random data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import Array, Case, same
from polybn.conformance.strategies import cases, sample
from tests.support.cases import Outcome


def fortran(a: Array) -> Array:
    return np.asfortranarray(a)


def reversed_storage(a: Array) -> Array:
    flipped = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flipped])[flipped]


def every_second(a: Array) -> Array:
    wide = np.full([2 * n for n in a.shape], 77, a.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def channels_last(a: Array) -> Array:
    return a if a.ndim < 2 else np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def offset(a: Array) -> Array:
    room = np.full(a.size + 3, 55, a.dtype)
    room[3:] = a.ravel()
    return room[3:].reshape(a.shape)


def unaligned(a: Array) -> Array:
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def swapped_axes(a: Array) -> Array:
    return np.ascontiguousarray(a.T).T


LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    fortran, reversed_storage, every_second, channels_last, offset, unaligned, swapped_axes,
)  # fmt: skip


def call(case: Case) -> Outcome:
    """Call NumPy's backend without copying the arrays, as ``tests.support.cases.run`` would."""
    result, pullback = polybn.batch_norm_vjp(*case.arrays().values(), **case.options(), where=case.where)
    return Outcome._make((*result, *pullback(case.dy)))


def laid_out(case: Case, layout: Callable[[Array], Array], names: tuple[str, ...]) -> Case:
    moved: dict[str, Any] = {n: layout(a) for n in names if (a := getattr(case, n)) is not None}
    return case._replace(**moved)


ARGUMENTS = ("x", "gamma", "beta", "running_mean", "running_var", "dy", "where")


@pytest.mark.clause("S1")
@given(case=cases(), layout=st.sampled_from(LAYOUTS), data=st.data())
def test_layouts(case: Case, layout: Callable[[Array], Array], data: st.DataObject) -> None:
    """C and Fortran order, NCHW in NHWC memory, steps, negative strides and offsets all give the same bits."""
    names = data.draw(st.sampled_from((*((n,) for n in ARGUMENTS), ARGUMENTS, ("x", "dy"))))
    if data.draw(st.booleans()):
        case = case._replace(where=np.random.default_rng(3).random(case.x.shape) < 0.9, running_variance="biased")
    assert same(call(laid_out(case, layout, names)), call(case))


@pytest.mark.clause("S1")
@given(case=cases(), data=st.data())
def test_axis_order(case: Case, data: st.DataObject) -> None:
    """Transposing x, dy and the axis transposes y and dx, to the bit."""
    axis = data.draw(st.integers(0, case.x.ndim - 1))
    base, got = call(case), call(case.moved(axis))
    y, dx = (np.moveaxis(a, case.axis, axis) for a in (base.y, base.dx))
    assert same(got, base._replace(y=y, dx=dx))


@pytest.mark.clause("S1")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
def test_zero_strides(dtype: str, training: bool) -> None:
    """Broadcast views give the results of copies: repeated rows in x and dy, one number as a vector."""
    case = sample(6, dtype, (7, 5, 3), training=training)
    x, dy = (np.broadcast_to(a[:, :, :1], case.x.shape) for a in (case.x, case.dy))
    vectors: dict[str, Any] = {n: np.broadcast_to(getattr(case, n)[:1], (5,)) for n in ARGUMENTS[1:5]}
    where = np.broadcast_to(np.array([True, False, True])[:, None, None], (3, 7, 5)).T.transpose(1, 0, 2)
    case = case._replace(x=x, dy=dy, where=where, **vectors)
    assert same(call(case), call(laid_out(case, np.array, ARGUMENTS)))


@pytest.mark.clause("S1", "S2")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_layouts(dtype: str, layout: Callable[[Array], Array]) -> None:
    """Layouts change no bit for several blocks of channels, and for rows of several summation chunks."""
    case = sample(7, dtype, (149, 11, 29, 31), kappa=1e3)
    assert case.x.size > 1 << 20
    assert same(call(laid_out(case, layout, ("x", "dy"))), call(case))
