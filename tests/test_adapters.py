"""Adapters pass arrays on unchanged, and libraries do what their adapters declare, to the bit."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybn import dispatch
from polybn.conformance.adapter import Info
from polybn.conformance.adapters import ADAPTERS, resolve
from polybn.spec import ShapeError
from tests.support.adapter_lattice import Array, Problem, equal, fractions, gradients, laid_out, output, problems

LIBRARIES = {
    "pytorch": ("torch",),
    "pytorch-channels-last": ("torch",),
    "flax-linen": ("jax", "flax"),
    "flax-nnx": ("jax", "flax"),
    "jax-standardize": ("jax",),
    "keras-numpy": ("keras",),
    "keras-torch": ("keras", "torch"),
    "mxnet": ("mxnet",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnx-reference": ("onnx",),
}
NO_STATISTICS = ("jax-standardize",)
"""Functions without running statistics, whose adapters return the given ones."""


def why_not(name: str) -> str | None:
    """Return why an adapter is skipped here: its library is not installed, or Keras runs on another backend."""
    if name.startswith("polybn-"):
        return dispatch.why_not(name.split("-")[1])
    keras = os.environ.get("KERAS_BACKEND", "numpy")
    if name.startswith("keras-") and name != f"keras-{keras}":
        return f"Keras has one backend a process, here {keras}: KERAS_BACKEND={name.removeprefix('keras-')} runs this"
    missing = [library for library in LIBRARIES[name] if importlib.util.find_spec(library) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


made = functools.cache(resolve)


@pytest.fixture(scope="module", params=ADAPTERS)
def name(request: pytest.FixtureRequest) -> str:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


def call(method: Callable[..., Any], *arrays: Array, **options: Any) -> list[Array]:
    """Make a call, and check that its inputs are unchanged and that its outputs are arrays of their own."""
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.setflags(write=False)
    with warnings.catch_warnings():
        # NumPy's mean of no values warns. Whether the result may be NaN is for the library to decide.
        warnings.simplefilter("ignore")
        got = method(*arrays, **options)
    results = [got] if isinstance(got, np.ndarray) else list(got)
    for result in results:
        assert type(result) is np.ndarray
        assert not any(np.shares_memory(result, a) for a in arrays)
    for a, b in zip(arrays, before, strict=True):
        assert a.tobytes() == b.tobytes(), "an input was changed"
    return results


def test_train_gives_the_exact_output(name: str) -> None:
    adapter = made(name)

    @given(st.data())
    def check(data: st.DataObject) -> None:
        p = data.draw(problems(adapter.info()))
        x = laid_out(data.draw, p.x)
        y, mean, var = call(
            adapter.train, x, p.gamma, p.beta, p.running_mean, p.running_var, momentum=0.75, eps=p.eps, axis=p.axis
        )
        assert equal(y, output(p), p.x.dtype)
        assert mean.dtype == var.dtype == p.gamma.dtype
        assert mean.shape == var.shape == p.gamma.shape

    check()


def test_infer_gives_the_exact_output_from_running_statistics(name: str) -> None:
    adapter = made(name)
    assert adapter.info().infers

    @given(st.data())
    def check(data: st.DataObject) -> None:
        p = data.draw(problems(adapter.info()))
        statistics = (v.astype(p.gamma.dtype) for v in (p.mean, p.variance))
        # The statistics of zeros differ from the given ones, so that batch statistics would show.
        x, rows = (p.x, p.rows) if data.draw(st.booleans()) else (np.zeros_like(p.x), p.rows * 0)
        (y,) = call(adapter.infer, laid_out(data.draw, x), p.gamma, p.beta, *statistics, eps=p.eps, axis=p.axis)
        assert equal(y, output(p, rows), p.x.dtype)

    check()


def test_vjp_gives_the_exact_gradients(name: str) -> None:
    adapter = made(name)
    if not adapter.info().differentiates:
        pytest.skip(f"{name}: has no gradients, as declared")

    @given(st.data())
    def check(data: st.DataObject) -> None:
        p = data.draw(problems(adapter.info()))
        x, dy = laid_out(data.draw, p.x), laid_out(data.draw, p.dy)
        got = call(adapter.vjp, x, p.gamma, p.beta, dy, eps=p.eps, axis=p.axis)
        for result, exact, like in zip(got, gradients(p), (p.x, p.gamma, p.beta), strict=True):
            assert equal(result, exact, like.dtype)

    check()


def running_statistics(p: Problem, momentum: float) -> Iterator[tuple[str, str, Array, Array]]:
    """Yield each pair of conventions with the running statistics that it leads to."""
    m, rho = p.rows.shape[1], Fraction(momentum)
    for (sense, old), (kind, factor) in itertools.product(
        (("old", rho), ("new", 1 - rho)), (("biased", Fraction(1)), ("unbiased", Fraction(m, m - 1)))
    ):
        mean = old * fractions(p.running_mean) + (1 - old) * p.mean
        yield sense, kind, mean, old * fractions(p.running_var) + (1 - old) * factor * p.variance


def test_running_statistics_follow_the_declared_conventions_and_no_others(name: str) -> None:
    adapter = made(name)
    info = adapter.info()

    @given(st.data(), st.sampled_from((0.25, 0.75, 0.875)))
    def check(data: st.DataObject, momentum: float) -> None:
        p = data.draw(problems(info, pattern=(-3, 3)))
        arrays = (p.x, p.gamma, p.beta, p.running_mean, p.running_var)
        _, mean, var = call(adapter.train, *arrays, momentum=momentum, eps=p.eps, axis=p.axis)
        if name in NO_STATISTICS:
            assert np.array_equal(mean, p.running_mean)
            assert np.array_equal(var, p.running_var)
            return
        seen = [
            (sense, kind)
            for sense, kind, exact_mean, exact_var in running_statistics(p, momentum)
            if equal(mean, exact_mean, p.gamma.dtype) and equal(var, exact_var, p.gamma.dtype)
        ]
        assert seen == [(info.momentum, info.running_variance)]

    check()


def constant(info: Info, rank: int, size: int) -> tuple[Array, ...]:
    """Make x of ones, ``size`` of them in each of two channels, parameters, and running statistics."""
    f = np.float32
    x = np.ones((size, 2, *[1] * (rank - 2)), f)
    return x, np.array([2, -1], f), np.array([3, 5], f), np.array([8, 9], f), np.array([4, 8], f)


def attempt(function: Callable[[], list[Array]]) -> list[Array] | Exception:
    try:
        return function()
    except (AssertionError, AttributeError, TypeError, ShapeError):
        raise  # a fault of the adapter, or of this file
    except Exception as error:
        return error


def test_one_value_per_channel_does_what_is_declared(name: str) -> None:
    adapter = made(name)
    info = adapter.info()
    for rank in info.ranks:
        arrays = constant(info, rank, 1)
        got = attempt(lambda a=arrays: call(adapter.train, *a, momentum=0.75, eps=16.0, axis=1))  # type: ignore[misc]
        if isinstance(got, Exception):
            assert info.single_value == "error"
            continue
        assert info.single_value == "beta"
        assert np.array_equal(got[0].reshape(2), arrays[2])
        if name not in NO_STATISTICS:
            old = 0.75 if info.momentum == "old" else 0.25
            assert np.array_equal(got[1], old * arrays[3] + (1 - old))
            assert np.array_equal(got[2], old * arrays[4])


def test_no_values_do_what_is_declared(name: str) -> None:
    adapter = made(name)
    info = adapter.info()
    for rank in info.ranks:
        arrays = constant(info, rank, 0)
        got = attempt(lambda a=arrays: call(adapter.train, *a, momentum=0.75, eps=16.0, axis=1))  # type: ignore[misc]
        if isinstance(got, Exception):
            assert info.empty == "error"
            continue
        assert got[0].shape == arrays[0].shape
        kept = all(np.array_equal(new, old) for new, old in zip(got[1:], arrays[3:], strict=True))
        assert info.empty == ("kept" if kept else "changed")


def test_subnormal_numbers_are_flushed_where_declared_and_nowhere_else(name: str) -> None:
    adapter = made(name)
    info = adapter.info()
    for rank in info.ranks:
        x = (np.arange(1, 9).reshape(4, 2, *[1] * (rank - 2)) * 2.0**-149).astype(np.float32)
        one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
        (y,) = call(adapter.infer, x, one, zero, zero, one * 0.75, eps=0.25, axis=1)
        assert np.array_equal(y, np.zeros_like(x) if info.flushes else x)


def test_an_axis_that_the_library_lacks_is_refused(name: str) -> None:
    adapter = made(name)
    info = adapter.info()
    rank = max(info.ranks)
    x, c = np.zeros((2,) * rank, np.float32), np.ones(2, np.float32)
    options: dict[str, Any] = {"eps": 1.0, "axis": rank - 1}
    calls: list[Callable[[], list[Array]]] = [
        lambda: call(adapter.train, x, c, c, c, c, momentum=0.5, **options),
        lambda: call(adapter.infer, x, c, c, c, c, **options),
        *([lambda: call(adapter.vjp, x, c, c, x, **options)] if info.differentiates else []),
    ]
    for attempted in calls:
        if info.axes == "second" and rank > 2:
            with pytest.raises(ShapeError, match=f"axis must be 1 for .*; got {rank - 1} "):
                attempted()
        else:
            assert attempted()[0].shape == x.shape


def test_info_says_who_and_which(name: str) -> None:
    info = made(name).info()
    assert info.name
    assert any(c.isdigit() for c in info.version)
    assert set(info.dtypes) <= {"float16", "bfloat16", "float32", "float64"}
    assert "float32" in info.dtypes


@pytest.mark.parametrize("adapter_name", ["pytorch", "pytorch-channels-last"])
@pytest.mark.parametrize("shape", [(3, 5, 2, 7), (3, 5, 2, 7, 2)])
def test_pytorch_works_in_the_declared_memory_format(adapter_name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("torch", reason=f"{adapter_name}: not installed: torch")
    adapter, c = made(adapter_name), np.ones(5, np.float32)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for result in (
        adapter.train(x, c, c, c, c, momentum=0.5, eps=1.0, axis=1)[0],
        adapter.infer(x, c, c, c, c, eps=1.0, axis=1),
        adapter.vjp(x, c, c, x, eps=1.0, axis=1)[0],
    ):
        nearest = 1 if adapter_name.endswith("last") else len(shape) - 1
        assert result.strides[nearest] == x.itemsize
