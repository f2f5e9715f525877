"""Unusual arguments that are not faults: empty, read-only, shared or byte-swapped arrays.

The numbers fill the gaps in tests/support/faults.py: F7 float64 in a library that may lack it. F14 empty
arrays. F17 read-only arrays. F18 one array in several places. F20 NaN and infinity in x. F21 memory maps. F22 byte
order. F24 more than 2^31 values.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
from polybn import arguments, options
from polybn.arguments import Arrays, Options
from polybn.spec import Description, DomainError, DTypeError, Gradients, Moments
from tests.support.faults import ARRAYS, GOOD, PARAMETERS, SHAPE, STATISTICS, randoms

Results = list[NDArray[Any] | None]


def everything(call: Mapping[str, Any]) -> Results:
    """Run all functions of PolyBN on one NumPy call; return all their arrays."""
    forward = polybn.batch_norm(**call)
    result, pullback = polybn.batch_norm_vjp(**call)
    gradients, second = pullback.vjp(call["x"])
    moments = polybn.moments(call["x"])
    folded = polybn.fold(**{name: call[name] for name in PARAMETERS})
    merged = polybn.merge_moments(moments, moments)
    return [*forward, *result, *gradients, *second(gradients), *moments, *folded, *merged]


def same(left: Results, right: Results) -> bool:
    """Compare values without regard to byte order; None equals only None."""
    pairs = list(zip(left, right, strict=True))
    return all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)


def swap(array: NDArray[Any]) -> NDArray[Any]:
    """Return the values in the other byte order."""
    return array.astype(array.dtype.newbyteorder("S"))


@pytest.mark.clause("S6", "S14")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_f7_asarray_keeps_the_dtype_or_says_that_it_cannot(backend: str, dtype: str) -> None:
    module = polybn.backend(backend)
    host = randoms(SHAPE, dtype)
    try:
        array = module.asarray(host)
    except DTypeError:
        if dtype == "float32":
            raise
        return
    assert arguments.dtype_name(array.dtype) == dtype
    back = module.to_numpy(array)
    assert back.dtype == host.dtype
    assert np.array_equal(back, host)


@pytest.mark.clause("S11")
@pytest.mark.parametrize("shape", [(0, 3), (7, 0), (0, 0), (7, 3, 0), (0, 3, 5)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variance", ["biased", "unbiased"])
def test_f14_nothing_in_nothing_out(backend: str, shape: tuple[int, ...], training: bool, variance: Any) -> None:
    module = polybn.backend(backend)
    host = {name: randoms((shape[1],), seed=i) for i, name in enumerate(PARAMETERS)}
    x = module.asarray(randoms(shape))
    given = {name: module.asarray(value) for name, value in host.items()}
    result, pullback = polybn.batch_norm_vjp(x, **given, training=training, running_variance=variance)
    gradients, moments = pullback(x), polybn.moments(x)
    assert tuple(result.y.shape) == tuple(gradients.x.shape) == shape
    for name, value in zip(STATISTICS, result[1:], strict=True):
        assert module.to_numpy(value).tobytes() == host[name].tobytes()
    zeros = [gradients.gamma, gradients.beta, *moments]
    zeros += [] if training else [gradients.running_mean, gradients.running_var]
    for value in zeros:
        assert tuple(value.shape) == (shape[1],)
        assert not module.to_numpy(value).any()


@pytest.mark.clause("S7")
@pytest.mark.parametrize("training", [True, False])
def test_f17_read_only_arrays_are_served(training: bool) -> None:
    call = {**GOOD, "training": training, "where": np.random.default_rng(1).random(SHAPE) < 0.7}
    locked = {name: value.copy() if name in ARRAYS else value for name, value in call.items()}
    for name in ARRAYS:
        locked[name].flags.writeable = False
    results = everything(locked)
    assert same(results, everything(call))
    assert all(result.flags.writeable for result in results if result is not None)


@pytest.mark.clause("S7")
@pytest.mark.parametrize("training", [True, False])
def test_f18_one_array_may_stand_in_several_places(training: bool) -> None:
    memory = randoms((3, 3))
    one = memory[0]
    shared = {"x": memory, **dict.fromkeys(PARAMETERS, one), "training": training}
    apart = {name: value.copy() if name in ARRAYS else value for name, value in shared.items()}
    results = everything(shared)
    assert same(results, everything(apart))
    assert not any(np.shares_memory(result, memory) for result in results if result is not None)


@pytest.mark.clause("S9")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_f20_nan_and_infinity_are_no_errors(backend: str, value: float) -> None:
    module = polybn.backend(backend)
    x = randoms(SHAPE)
    x[3, 1, 2] = value
    result, pullback = polybn.batch_norm_vjp(module.asarray(x), training=True)
    for array in (result.y, pullback(module.asarray(randoms(SHAPE))).x):
        nan = np.isnan(module.to_numpy(array)).all(axis=(0, 2))
        finite = np.isfinite(module.to_numpy(array)).all(axis=(0, 2))
        assert nan.tolist() == [False, True, False]
        assert finite.tolist() == [True, False, True]


@pytest.mark.clause("S7")
@pytest.mark.parametrize("training", [True, False])
def test_f21_memory_maps_are_served_and_not_written(tmp_path: Path, training: bool) -> None:
    call = {**GOOD, "training": training}
    mapped = dict(call)
    for name in ("x", *PARAMETERS):
        mapped[name] = np.memmap(tmp_path / name, call[name].dtype, "w+", shape=call[name].shape)
        mapped[name][:] = call[name]
    results = everything(mapped)
    assert same(results, everything(call))
    assert not any(np.shares_memory(a, mapped[name]) for a in results if a is not None for name in ("x", *PARAMETERS))
    for name in ("x", *PARAMETERS):
        mapped[name].flush()
        assert (tmp_path / name).read_bytes() == call[name].tobytes()


@pytest.mark.clause("S6")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", ["C", "F", "reversed"])
def test_f22_byte_order_changes_no_value(dtype: str, training: bool, layout: str) -> None:
    parameters = {name: randoms((3,), "f8" if dtype == "f8" else "f4", seed) for seed, name in enumerate(PARAMETERS)}
    x = np.array(randoms(SHAPE, dtype), order="F" if layout == "F" else "C")
    native: dict[str, Any] = {"x": x[::-1] if layout == "reversed" else x, **parameters, "training": training}
    swapped = {name: swap(value) if name in ARRAYS else value for name, value in native.items()}
    assert not swapped["x"].dtype.isnative
    results = everything(swapped)
    assert same(results, everything(native))
    assert results[0] is not None
    assert results[0].dtype == swapped["x"].dtype


def test_f22_cotangents_and_moments_of_either_byte_order_agree() -> None:
    _, pullback = polybn.batch_norm_vjp(**GOOD)
    gradients, second = pullback.vjp(GOOD["x"])
    moments = polybn.moments(GOOD["x"])
    swapped = Gradients(*(None if array is None else swap(array) for array in gradients))
    assert same(list(second(swapped)), list(second(gradients)))
    merged = polybn.merge_moments(Moments(*map(swap, moments)), moments)
    assert same(list(merged), list(polybn.merge_moments(moments, moments)))


@pytest.mark.clause("S3", "S4", "S14")
@pytest.mark.parametrize("number", [np.float16(0.3), np.float32(0.3), np.float64(0.3), Fraction(1, 3), np.int8(1), 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_real_number_is_a_number(number: Any, dtype: str) -> None:
    options.check_eps("fold", number, dtype)
    call: dict[str, Any] = {name: randoms(value.shape, dtype) for name, value in GOOD.items() if name in ARRAYS}
    given = polybn.batch_norm(**call, training=True, eps=number, momentum=number)
    plain = polybn.batch_norm(**call, training=True, eps=float(number), momentum=float(number))
    assert same(list(given), list(plain))


@pytest.mark.clause("S1", "S14")
def test_f24_counts_do_not_overflow() -> None:
    huge = Arrays(Description((1 << 20, 3, 1 << 20, 1 << 30), "float32"))
    assert arguments.check_moments("moments", huge, 1).m == 1 << 70
    one = Arrays(Description((1, 1 << 40), "float32"))
    with pytest.raises(DomainError, match="one value per channel"):
        arguments.check_batch_norm("batch_norm", one, Options(running_variance="unbiased"))
