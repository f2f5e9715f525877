"""Clause S14: each bad call raises the right error with the right message, and changes nothing.

F8 and F26 of the fault list, which concern the choice of a backend, are in test_dispatch.py. Calls that only look
like faults are in test_unusual.py.
"""

from __future__ import annotations

import inspect
import re
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.spec import Array, Backend, BackendError, DomainError, DTypeError, Moments, ShapeError
from tests.support import faults
from tests.support.faults import ARRAYS, GOOD, PARAMETERS, SHAPE, Fault

pytestmark = pytest.mark.clause("S14")

BUILTIN = {BackendError: TypeError, DTypeError: TypeError, DomainError: ValueError, ShapeError: ValueError}
STYLE = re.compile(r"polybn\.(?P<function>[\w.]+): (?P<words>.+ must .+; got .+ \(.+\))", re.DOTALL)
Function = Callable[..., Any]


def each(table: list[Fault]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", table, ids=[fault.name for fault in table])


def lift(backend: Backend, value: Any) -> Array:
    """Convert a host array to the backend's library, and return anything else unchanged."""
    return backend.asarray(value) if isinstance(value, np.ndarray) else value


def lift_arrays(backend: Backend, call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: lift(backend, value) if name in ARRAYS else value for name, value in call.items()}


def frozen(backend: Backend, call: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of all arrays of a call."""
    arrays = {name: value for name, value in call.items() if name in ARRAYS and value is not None}
    return {name: backend.to_numpy(value).tobytes() for name, value in arrays.items()}


def words_of(fault: Fault, speaker: str, function: Function, /, *args: Any, **call: Any) -> str:
    """Make a bad call, check its error and return the message without the name of the function."""
    with pytest.raises(fault.error) as info:
        function(*args, **call)
    assert type(info.value) is fault.error
    assert isinstance(info.value, BUILTIN[fault.error])
    match = STYLE.fullmatch(str(info.value))
    assert match, f"not 'polybn.<function>: <thing> must <rule>; got <value> (<what fixes the rule>)': {info.value}"
    assert match["function"] == speaker
    assert faults.matches(fault.words, match["words"]), f"{match['words']}\nis not\n{fault.words}"
    return match["words"]


@pytest.mark.clause("S7")
@each(faults.BATCH_NORM)
def test_a_bad_call_is_refused_in_the_same_words_everywhere_and_changes_nothing(backend: str, fault: Fault) -> None:
    module = polybn.backend(backend)
    call = lift_arrays(module, {**GOOD, **fault.arguments})
    before, words = frozen(module, call), set()
    for function in ("batch_norm", "batch_norm_vjp", "moments"):
        known = inspect.signature(getattr(polybn, function)).parameters
        if fault.arguments.keys() <= known.keys():
            taken = {name: value for name, value in call.items() if name in known}
            words.add(words_of(fault, function, getattr(polybn, function), **taken))
    assert len(words) == 1, words
    assert frozen(module, call) == before


@each([fault for fault in faults.BATCH_NORM if not {"x", "where"} & fault.arguments.keys()])
def test_a_bad_call_is_refused_before_any_work(fault: Fault) -> None:
    call = {**GOOD, "x": np.zeros((1 << 13, *SHAPE[1:]), "f4"), **fault.arguments}
    tracemalloc.start()
    try:
        with pytest.raises(fault.error):
            polybn.batch_norm_vjp(**call)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < call["x"].nbytes // 4  # no array as large as x, not even a mask


@pytest.mark.clause("S7")
@each([fault for fault in faults.BATCH_NORM if fault.arguments.get("momentum", 0) is not None])  # None averages
def test_a_layer_speaks_like_the_function_and_stays_as_it_was(backend: str, fault: Fault) -> None:
    module = polybn.backend(backend)
    call = lift_arrays(module, {**GOOD, **fault.arguments})
    layer = polybn.BatchNorm(3, backend=backend)
    for name in call.keys() - {"x", "where", "training"}:
        setattr(layer, name, call[name])
    before, bits = dict(vars(layer)), frozen(module, call)
    options = {"training": call["training"], "where": call.get("where")}
    words_of(fault, "batch_norm", layer, call["x"], **options)
    words_of(fault, "batch_norm_vjp", layer.vjp, call["x"], **options)
    assert vars(layer).keys() == before.keys()
    assert all(vars(layer)[name] is value for name, value in before.items())
    assert frozen(module, call) == bits


def test_f3_the_cause_of_a_bad_axis_is_kept() -> None:
    with pytest.raises(DTypeError) as info:
        polybn.moments(GOOD["x"], axis=np.array([1]))  # type: ignore[arg-type]
    assert type(info.value.__cause__) is TypeError
    assert "integer scalar" in str(info.value.__cause__)


# Not an array, or more than an array.


class Quantity(np.ndarray):
    """A subclass with a meaning of its own."""


STRANGERS: dict[str, Any] = {"list": [[1.0], [2.0]], "tuple": ((1.0,), (2.0,)), "str": "x", "float": 1.0, "bool": True}
SUBCLASSES: dict[str, tuple[Function, str]] = {
    "masked": (np.ma.MaskedArray, "numpy.ma....MaskedArray"),
    "matrix": (lambda array: array.reshape(len(array), -1).view(np.matrix), "numpy....matrix"),
    "recarray": (lambda array: array.view(np.recarray), "numpy....recarray"),
    "quantity": (lambda array: array.view(Quantity), "...Quantity"),
    "scalar": (lambda array: array.flat[0], "numpy..."),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", STRANGERS)
def test_f1_what_is_no_array_is_not_converted(backend: str, name: str, kind: str) -> None:
    module = polybn.backend(backend)
    call = lift_arrays(module, GOOD) | {name: STRANGERS[kind]}
    outside = f"{name} must be an array of an installed backend (...{backend}...); got {kind} (...nothing is converted)"
    for function in ("batch_norm", "batch_norm_vjp"):
        words_of(Fault("", BackendError, {}, outside), function, getattr(polybn, function), **call)


def test_f1_x_may_not_be_left_out(backend: str) -> None:
    module = polybn.backend(backend)
    missing = Fault("", BackendError, {}, "x must be an array; got None (...)")
    call = lift_arrays(module, GOOD) | {"x": None}
    words_of(missing, "batch_norm", polybn.batch_norm, **call)
    unserved = Fault("", BackendError, {}, "x must be an array of an installed backend (...); got NoneType (...)")
    words_of(unserved, "moments", polybn.moments, None)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", SUBCLASSES)
def test_f21_an_array_that_means_more_is_refused(name: str, kind: str) -> None:
    make, shown = SUBCLASSES[kind]
    call = {**GOOD, "where": np.ones(SHAPE, bool)}
    call[name] = make(call[name])
    words = f"{name} must be a plain NumPy array; got {shown} (nothing is converted ...{name}: {shown}...)"
    for function in ("batch_norm", "batch_norm_vjp"):
        words_of(Fault("", BackendError, {}, words), function, getattr(polybn, function), **call)


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3", "S3", "datetime64[s]", "longdouble", "V4", "bool"])
def test_f5_a_dtype_without_a_batch_norm(dtype: str) -> None:
    x = np.empty(SHAPE, dtype)
    words = f"x must have one of the dtypes float16, bfloat16, float32, float64{{}}; got {x.dtype.name} (...)"
    words_of(Fault("", DTypeError, {}, words.format("")), "batch_norm", polybn.batch_norm, x, training=True)
    words_of(Fault("", DTypeError, {}, words.format(", uint8, ..., int64")), "moments", polybn.moments, x)


# The pullback and its pullback.


@each(faults.PULLBACK)
def test_a_pullback_checks_its_cotangent(backend: str, fault: Fault) -> None:
    module = polybn.backend(backend)
    call = lift_arrays(module, GOOD)
    before = frozen(module, call)
    _, pullback = polybn.batch_norm_vjp(**call)
    dy = lift(module, fault.arguments["dy"])
    words_of(fault, "batch_norm_vjp", pullback, dy)
    words_of(fault, "batch_norm_vjp", pullback.vjp, dy)
    assert frozen(module, call) == before


@each(faults.SECOND_PULLBACK)
def test_the_second_pullback_checks_its_cotangents(fault: Fault) -> None:
    _, pullback = polybn.batch_norm_vjp(**{**GOOD, "beta": None})
    _, second = pullback.vjp(GOOD["x"])
    words_of(fault, "batch_norm_vjp", second, fault.arguments["cotangents"])


# Folding and merging.


@each(faults.FOLD)
def test_fold_refuses_in_the_same_words_everywhere(backend: str, fault: Fault) -> None:
    module = polybn.backend(backend)
    call = lift_arrays(module, {name: GOOD[name] for name in PARAMETERS} | dict(fault.arguments))
    before = frozen(module, call)
    words_of(fault, "fold", polybn.fold, **call)
    assert frozen(module, call) == before


def test_f1_fold_names_what_is_missing_where_nothing_selects_a_backend() -> None:
    words = "running_mean must be an array of an installed backend (...); got NoneType (...)"
    words_of(Fault("", BackendError, {}, words), "fold", polybn.fold, None, None, None, None)


@each(faults.MERGE)
def test_merge_refuses_in_the_same_words_everywhere(backend: str, fault: Fault) -> None:
    module = polybn.backend(backend)
    call = {"a": faults.part(), "b": faults.part(), **fault.arguments}
    for name, part in call.items():
        if isinstance(part, Moments):
            call[name] = Moments(*(lift(module, value) for value in part))
    words_of(fault, "merge_moments", polybn.merge_moments, **call)


def test_f1_merge_converts_no_field(backend: str) -> None:
    module = polybn.backend(backend)
    good = Moments(*(module.asarray(value) for value in faults.part()))
    call = {"a": good, "b": good._replace(mean=[1.0, 2.0, 3.0])}
    outside = "b.mean must be an array of an installed backend (...); got list (...)"
    words_of(Fault("", BackendError, {}, outside), "merge_moments", polybn.merge_moments, **call)


@pytest.mark.parametrize("builtin", BUILTIN.items(), ids=lambda pair: pair[0].__name__)
def test_each_class_is_a_builtin_too_and_public(builtin: tuple[type[Exception], type[Exception]]) -> None:
    error, parent = builtin
    assert error.__bases__ == (parent,)
    assert getattr(polybn, error.__name__) is error
