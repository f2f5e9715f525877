"""The example of a third party's backend, installed and found by its entry point: ``make lane-torch``."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pytest

import polybn
from polybn import conformance

try:
    version("polybn-xarray")
except PackageNotFoundError:
    pytest.skip("docs/examples/polybn_xarray is not installed: make lane-torch", allow_module_level=True)

xarray = pytest.importorskip("xarray")

test_conformance = conformance.parametrize(
    lambda: conformance.resolve("polybn-xarray"), profile=os.environ.get("POLYBN_PROFILE", "dev")
)


def labelled(values: Any) -> Any:
    bands = {"band": ["red", "green", "blue"]}
    return xarray.DataArray(values, dims=("time", "band", "place"), coords=bands, attrs={"unit": "K"})


def images(seed: int = 3) -> Any:
    return np.random.default_rng(seed).normal(50, 3, (7, 3, 5)).astype(np.float32)


def test_it_is_found_by_its_entry_point_and_arrays_choose_it() -> None:
    assert polybn.backends()["xarray"] is None
    host = images()
    y = polybn.batch_norm(labelled(host), training=True).y
    assert type(y) is xarray.DataArray
    assert (y.dims, y.attrs, y.band.values.tolist()) == (
        ("time", "band", "place"), {"unit": "K"}, ["red", "green", "blue"],
    )  # fmt: skip
    assert np.array_equal(y.values, polybn.batch_norm(host, training=True).y)


def test_layouts_of_one_shape_may_alternate() -> None:
    host, gamma = images(), np.array([2, 3, 5], np.float32)
    wide, long = np.full((14, 6, 10), 1e3, np.float32), np.full(6, 1e3, np.float32)
    wide[::2, ::2, ::2], long[::2] = host, gamma
    kept = np.random.default_rng(7).random((7, 3, 5)) > 0.3
    expected = polybn.batch_norm(host, gamma, training=True, where=kept).y
    for x in (host, wide[::2, ::2, ::2], host.astype(">f4"), np.asfortranarray(host)):
        for scale in (gamma, long[::2], gamma.astype(">f4")):
            for where in (kept, np.asfortranarray(kept)):
                y = polybn.batch_norm(
                    *map(xarray.DataArray, (x, scale)), training=True, where=xarray.DataArray(where)
                ).y
                assert np.array_equal(y.values, expected)


def test_grades_are_those_of_what_is_inside() -> None:
    wanted = [f"grade-{dtype}" for dtype in ("float16", "float32", "float64")]
    report = conformance.check(conformance.resolve("polybn-xarray"), only=wanted)
    assert [grade.letter for grade in report.grades] == ["K", "S", "S"]


def test_statistics_carry_the_labels_of_their_channels() -> None:
    host = images()
    whole = polybn.moments(labelled(host))
    assert whole.mean.sel(band="green") == polybn.moments(host).mean[1]
    assert whole.variance().dims == ("band",)
    parts = [polybn.moments(labelled(part)) for part in (host[:2], host[2:])]
    merged = polybn.merge_moments(*parts)
    assert merged.mean.band.values.tolist() == ["red", "green", "blue"]
    assert np.array_equal(merged.m2.values, polybn.merge_moments(*map(polybn.moments, (host[:2], host[2:]))).m2)


def test_gradients_of_both_orders_and_fold() -> None:
    host, dy = images(), images(4)
    vectors = [np.random.default_rng(5).uniform(0.5, 2, 3).astype(np.float32) for _ in range(4)]
    named = [xarray.DataArray(vector, dims=("band",)) for vector in vectors]
    for training in (True, False):
        _, pullback = polybn.batch_norm_vjp(labelled(host), *named, training=training)
        _, expected = polybn.batch_norm_vjp(host, *vectors, training=training)
        first, second = pullback.vjp(labelled(dy))
        right, twice = expected.vjp(dy)
        for got, other in zip((*first, *second(first)), (*right, *twice(right)), strict=True):
            assert (got is None) == (other is None)
            assert got is None or np.array_equal(got.values, other)
    assert np.array_equal(polybn.fold(*named).shift.values, polybn.fold(*vectors).shift)


def test_other_libraries_inside_serve_as_they_do_alone() -> None:
    dask = pytest.importorskip("dask.array")
    host = images()
    y = polybn.batch_norm(labelled(dask.from_array(host, chunks=(2, 3, 5))), training=True).y
    assert type(y.data) is dask.Array  # nothing was computed yet
    assert np.abs(y.values - polybn.batch_norm(host, training=True).y).max() < 1e-6


def test_errors_are_those_of_every_backend() -> None:
    x = labelled(images())
    with pytest.raises(polybn.ShapeError, match=r"^polybn.batch_norm: gamma must have shape \(3,\); got \(2,\)"):
        polybn.batch_norm(x, xarray.DataArray(np.ones(2, np.float32)), training=True)
    with pytest.raises(polybn.BackendError, match="all arrays must belong to one backend; got x: xarray, gamma: numpy"):
        polybn.batch_norm(x, np.ones(3, np.float32), training=True)
    with pytest.raises(polybn.BackendError, match="must train networks"):
        polybn.train(polybn.networks.lenet(), "xarray", data=polybn.fashion_mnist.load("sample"), epochs=1)
