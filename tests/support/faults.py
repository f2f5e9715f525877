"""Bad calls: for each, the arguments that spoil a good call, the class of the error, and its message.

The faults, by the numbers in their names: F1 not an array. F2 rank. F3 axis. F4 shape. F5 dtype of x. F6 mixed
dtypes. F9 kind of eps. F10 value of eps. F11 eps below the smallest normal number. F12 momentum and running_variance.
F13 unbiased variance of one value. F15 missing running statistics. F16 training. F19 impossible running variance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.spec import BackendError, DomainError, DTypeError, Gradients, Moments, ShapeError

SHAPE = (7, 3, 5)
STATISTICS = ("running_mean", "running_var")
PARAMETERS = ("gamma", "beta", *STATISTICS)
ARRAYS = ("x", *PARAMETERS, "where")


class Fault(NamedTuple):
    """Arguments that spoil a good call, and the error that they must cause."""

    name: str
    error: type[Exception]
    arguments: Mapping[str, Any]
    words: str
    """The message after ``polybn.<function>: ``, where three dots match anything."""


def randoms(shape: tuple[int, ...], dtype: str = "f4", seed: int = 0) -> NDArray[Any]:
    """Draw values away from 0 and 1, because these would hide a missing update."""
    return np.asarray(np.random.default_rng([seed, *shape]).random(shape) + 1.5, dtype)


GOOD: Mapping[str, Any] = {
    "x": randoms(SHAPE), **{name: randoms((3,), seed=i) for i, name in enumerate(PARAMETERS)}, "training": True,
}  # fmt: skip
WHERE_ONE_IS_LEFT = np.zeros(SHAPE, bool)
WHERE_ONE_IS_LEFT[:, ::2] = True
WHERE_ONE_IS_LEFT[4, 1, 2] = True


def matches(words: str, message: str) -> bool:
    """Return whether a message fits a pattern in which three dots match anything."""
    return re.fullmatch(".*".join(map(re.escape, words.split("..."))), message, re.DOTALL) is not None


def alone(**arguments: Any) -> dict[str, Any]:
    """Return arguments without gamma, beta and running statistics, except those given."""
    return dict.fromkeys(PARAMETERS) | arguments


def kind(value: object) -> str:
    """Show a value as the messages do."""
    return f"{value!r} of type ..."


def name_of(value: object) -> str:
    """Shorten a value for the name of a test."""
    return repr(value)[:12]


_SINGLE = "eps must be 0 or lie in [1.18e-38, 8.51e+37]; got {} (...smallest normal float32, ...of the statistics, ...)"
_DOUBLE = (
    "eps must be 0 or lie in [2.23e-308, 4.49e+307]; got {} (...smallest normal float64, ...of the statistics, ...)"
)
_SINGLE_VALUE = "running_variance must be 'biased' where there is one value per channel; got 'unbiased' ({}; ...m = 1)"

EPS = [
    *(Fault(f"F9 eps {name_of(eps)}", DTypeError, {"eps": eps},
            f"eps must be a Python number; got {kind(eps)} (...added to the variance...)")
      for eps in (True, None, "1e-5", 1e-5j, [1e-5], np.array(1e-5), np.array([1e-5, 1e-5]))),
    *(Fault(f"F10 eps {name_of(eps)}", DomainError, {"eps": eps}, _SINGLE.format(repr(eps)))
      for eps in (-1e-5, -1, float("nan"), float("inf"), float("-inf"), 1e38, 10**400, np.float32(-1), np.float16(-1))),
    *(Fault(f"F11 eps {name_of(eps)}", DomainError, {"eps": eps}, _SINGLE.format(repr(eps)))
      for eps in (1e-38, Fraction(1, 10**60), Fraction(1, 10**400), np.float64(1e-39))),
]  # fmt: skip

IMPOSSIBLE_VARIANCE = [
    Fault(f"F19 running_var {values}", DomainError, {"running_var": np.array(values, "f4")},
          f"running_var must be finite and not negative in inference; got {got}...)")
    for values, got in (
        ((1, -1.5, 2), "-1.5 in channel 1 (1 bad channel; "),
        ((1, 0, -1e-45), "-1.4...e-45 in channel 2 (1 bad channel; "),
        ((np.nan, 1, -1), "nan in channel 0 (2 bad channels; "),
        ((0, np.inf, -np.inf), "inf in channel 1 (2 bad channels; "),
    )
]  # fmt: skip

BATCH_NORM = [
    *(Fault(f"F2 rank {len(shape)}", ShapeError, {"x": randoms(shape)}, "x must have rank 2 or more, (N, C, ...); "
            f"got rank {len(shape)}, shape {shape} (statistics are taken over every axis but the channel axis)")
      for shape in ((), (3,))),
    *(Fault(f"F3 axis {axis}", ShapeError, {"axis": axis},
            f"axis must lie in [-3, 3); got {axis} (x has shape (7, 3, 5))") for axis in (3, -4, 10**30)),
    *(Fault(f"F3 axis {axis!r}", DTypeError, {"axis": axis},
            f"axis must be one int; got {kind(axis)} (it names the channel axis)")
      for axis in (True, 1.0, (1, 2), (1, 1), [1], np.array([1]), None, "1")),
    *(Fault(f"F4 {name} {shape}", ShapeError, {name: randoms(shape)},
            f"{name} must have shape (3,); got {shape} (x has shape (7, 3, 5) with channel axis 1)")
      for name in PARAMETERS for shape in ((2,), (4,), (1, 3), (3, 1), (1,), ())),
    *(Fault(f"F4 {name} axis -1", ShapeError, alone(axis=-1, **{name: randoms((3,))}),
            f"{name} must have shape (5,); got (3,) (x has shape (7, 3, 5) with channel axis 2)")
      for name in PARAMETERS),
    *(Fault(f"F4 where {shape}", ShapeError, {"where": np.ones(shape, bool)},
            f"where must broadcast to the shape of x; got shape {shape} (x has shape (7, 3, 5))")
      for shape in ((3,), (7,), (7, 1), (7, 3, 5, 1), (1, 7, 3, 5), (0, 1, 1))),
    *(Fault(f"F5 x {dtype}", DTypeError, alone(x=np.ones(SHAPE, dtype)), "x must have one of the dtypes "
            f"float16, bfloat16, float32, float64; got {dtype} (...nothing is converted...)")
      for dtype in ("int32", "int8", "uint8")),
    *(Fault(f"F6 x {x} {name} {given}", DTypeError, alone(x=randoms(SHAPE, x), **{name: randoms((3,), given)}),
            f"{name} must have dtype {rule}; got {given} (x has dtype {x}; ...float32, float64 for float64 x)")
      for x, given, rule in (("float64", "float32", "float64"), ("float32", "float64", "float32"),
                             ("float32", "float16", "float32"), ("float16", "float16", "float32"))
      for name in PARAMETERS),
    *(Fault(f"F6 where {dtype}", DTypeError, {"where": np.ones(SHAPE, dtype)},
            f"where must have dtype bool; got {dtype} (True keeps, False deletes a value)")
      for dtype in ("uint8", "int32", "float32")),
    *EPS,
    Fault("F11 eps 1e-40 float16", DomainError, alone(x=randoms(SHAPE, "f2"), eps=1e-40), _SINGLE.format("1e-40")),
    Fault("F11 eps 5e-324 float64", DomainError, alone(x=randoms(SHAPE, "f8"), eps=5e-324), _DOUBLE.format("5e-324")),
    *(Fault(f"F12 momentum {momentum!r}", DomainError, {"momentum": momentum},
            f"momentum must lie in [0, 1]; got {momentum!r} (...weight of the OLD value; PyTorch...)")
      for momentum in (-0.1, 1.1, 2, float("nan"), Fraction(5, 4), np.float64(-1))),
    *(Fault(f"F12 momentum {momentum!r}", DTypeError, {"momentum": momentum},
            f"momentum must be a Python number; got {kind(momentum)} (...OLD...)")
      for momentum in (None, True, False, "0.9", 0.9j, [0.9], np.array(0.9))),
    *(Fault(f"F12 running_variance {name_of(value)}", DomainError, {"running_variance": value},
            f"running_variance must be 'biased' or 'unbiased'; got {value!r} (...m / (m - 1))")
      for value in (None, True, "sample", "Biased", ["biased"], np.array(["biased", "unbiased"]))),
    *(Fault(f"F13 {shape}", DomainError, {"x": randoms(shape), "running_variance": "unbiased"},
            _SINGLE_VALUE.format(f"x has shape {shape} with channel axis 1")) for shape in ((1, 3), (1, 3, 1))),
    Fault("F13 where", DomainError, {"where": WHERE_ONE_IS_LEFT, "running_variance": "unbiased"},
          _SINGLE_VALUE.format("where keeps one value in channel 1")),
    *(Fault(f"F15 no {name} training={training}", DomainError, {name: None, "training": training},
            f"running_mean and running_var must be given together; got None for {name} (...)")
      for name in STATISTICS for training in (True, False)),
    Fault("F15 neither", DomainError, alone(training=False), "running_mean and running_var must be given when "
          "training=False; got None for running_mean and running_var (inference normalizes with them...)"),
    *(Fault(f"F16 training {training!r}", DTypeError, {"training": training},
            f"training must be True or False; got {kind(training)} (batch statistics or running statistics...)")
      for training in (None, 0, 1, "train", np.array(True))),
    *(fault._replace(arguments={**fault.arguments, "training": False}) for fault in IMPOSSIBLE_VARIANCE),
]  # fmt: skip

PULLBACK = [
    Fault("F1 None", BackendError, {"dy": None}, "dy must be an array; got None (...)"),
    Fault("F1 list", BackendError, {"dy": [1.0]}, "dy must be a plain ... array; got list (...dy: list)"),
    Fault("F4", ShapeError, {"dy": randoms((1, 3, 5))},
          "dy must have shape (7, 3, 5); got (1, 3, 5) (the output's shape)"),
    Fault("F6", DTypeError, {"dy": randoms(SHAPE, "f2")},
          "dy must have dtype float32; got float16 (the output's dtype)"),
]  # fmt: skip

_NOTHING = Gradients(None, None, None)
SECOND_PULLBACK = [
    Fault("F1 None", DTypeError, {"cotangents": None},
          "cotangents must be a polybn.Gradients; got NoneType (its fields are x, gamma, beta, ...)"),
    *(Fault(f"{name} {field}", error, {"cotangents": _NOTHING._replace(**{field: value})},
            f"the cotangent of {field} must {words}")
      for name, error, field, value, words in (
          ("F1", BackendError, "x", [1.0], "be a plain ... array; got list (...)"),
          ("F4", ShapeError, "x", randoms((1, 3, 5)), "have shape (7, 3, 5); got (1, 3, 5) (...of x's shape)"),
          ("F4", ShapeError, "gamma", randoms((3, 1)), "have shape (3,); got (3, 1) (the gradient of gamma's shape)"),
          ("F6", DTypeError, "gamma", randoms((3,), "f2"), "have dtype float32; got float16 (...of gamma's dtype)"),
          ("F4", DomainError, "beta", randoms((3,)), "be None; got shape (3,) (...it was None...)"),
          ("F4", DomainError, "running_mean", randoms((3,)), "be None; got shape (3,) (...in training)"),
      )),
]  # fmt: skip

FOLD = [
    *(Fault(f"F1 {name}", BackendError, {name: None}, f"{name} must be an array; got None (...)")
      for name in STATISTICS),
    *(Fault(f"F4 running_mean {shape}", ShapeError, {"running_mean": randoms(shape)},
            f"running_mean must have shape (C,); got {shape} (one value per channel)") for shape in ((), (1, 3))),
    *(Fault(f"F5 running_mean {dtype}", DTypeError, {"running_mean": np.ones(3, dtype)},
            f"running_mean must have one of the dtypes float32, float64; got {dtype} (...half types only store x)")
      for dtype in ("float16", "int32")),
    *(fault for name in ("gamma", "beta", "running_var") for fault in (
        Fault(f"F4 {name}", ShapeError, {name: randoms((4,))},
              f"{name} must have shape (3,); got (4,) (running_mean's shape)"),
        Fault(f"F6 {name}", DTypeError, {name: randoms((3,), "f2")},
              f"{name} must have dtype float32; got float16 (running_mean's dtype)"))),
    *EPS,
    *IMPOSSIBLE_VARIANCE,
]  # fmt: skip


def part(channels: int = 3, dtype: str = "f4", **fields: Any) -> Moments:
    """Make up moments of five values per channel."""
    values = randoms((channels,), dtype)
    return Moments(np.full(channels, 5), values, values, values)._replace(**fields)


MERGE = [
    *(Fault(f"F1 {name} {type(value).__name__}", DTypeError, {name: value},
            f"{name} must be a polybn.Moments; got {type(value).__name__} (its fields are count, mean, m2, low)")
      for name in "ab" for value in (None, tuple(part()))),
    *(Fault(f"F1 {name}.{field}", BackendError, {name: part()._replace(**{field: None})},
            f"{name}.{field} must be an array; got None (...)") for name in "ab" for field in ("count", "mean", "m2")),
    *(Fault(name, error, {name[3]: value}, words) for name, error, value, words in (
        ("F4 b", ShapeError, part(2), "b.count must have shape (3,); got (2,) (a's shape)"),
        ("F4 a.m2", ShapeError, part(m2=randoms((2,))), "a.m2 must have shape (3,); got (2,) (a's shape)"),
        ("F4 b.low", ShapeError, part(low=randoms((2,))), "b.low must have shape (3,); got (2,) (a's shape)"),
        ("F4 a.mean", ShapeError, part(mean=randoms((3, 1))), "a.mean must have shape (C,); got (3, 1) (...)"),
        ("F5 a.mean", DTypeError, part(dtype="f2"), "a.mean must have one of the dtypes ...; got float16 (...)"),
        ("F5 a.count", DTypeError, part(count=randoms((3,))), "a.count must have an integer dtype; got float32 (...)"),
        ("F6 b.m2", DTypeError, part(m2=randoms((3,), "f2")), "b.m2 must have dtype float32; got float16 (a's dtype)"),
        ("F6 b.count", DTypeError, part(count=np.ones(3, "i1")), "b.count must have dtype int...; got int8 (a's ...)"),
    )),
]  # fmt: skip
