"""Clause S14: a call is checked here, once, and travels on as one record.

The checks look at shapes, dtypes and Python values only and run no array code, so they mean the same on
every library and cost the same under tracing. Each failure names the argument, the rule, the
value, and what fixes the rule; the class says what kind of mistake it was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from polybn.options import (
    SMALLEST_NORMAL,
    check_axis,
    check_eps,
    check_flag,
    check_momentum,
    check_running_variance,
    type_name,
)
from polybn.spec import (
    Backend,
    BackendError,
    Description,
    DomainError,
    DTypeError,
    Gradients,
    Moments,
    ShapeError,
    traits_of,
)

STATISTICS_DTYPE = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
"""Clause S6: from the dtype of x to the dtype of parameters and statistics."""

_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
MOMENTS_DTYPE = STATISTICS_DTYPE | dict.fromkeys(_INTEGERS, "float64")
"""Clause S15: the same for ``moments`` on a backend that takes integers."""


class Arrays(NamedTuple):
    """The arrays of one call, or a description of each, by the names that users give them."""

    x: Any = None
    gamma: Any = None
    beta: Any = None
    running_mean: Any = None
    running_var: Any = None
    where: Any = None


class Options(NamedTuple):
    """The options of one call, as they were given."""

    training: Any = True
    momentum: Any = 0.9
    eps: Any = 0.0
    axis: Any = 1
    running_variance: Any = "biased"


class Known(NamedTuple):
    """What the shapes and the options of a call say about it; fields of :class:`polybn.spec.Arguments`, in order."""

    training: bool
    momentum: float
    eps: float
    unbiased: bool
    axis: int
    channels: int
    m: int
    dtype: str


@lru_cache(maxsize=None, typed=True)  # by type, too: some libraries warn when dtypes of two libraries are compared
def dtype_name(dtype: Any) -> str:
    """Name a dtype in the same words for every library: ``float32``, never ``<class 'numpy.float32'>``.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn import arguments
    >>> arguments.dtype_name(np.dtype(np.float32)), arguments.dtype_name(np.float16)
    ('float32', 'float16')
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def describe_arrays(
    function: str, backend: Backend, names: Collection[str], values: Collection[Any]
) -> list[Description | None]:
    """Describe each array of a call; refuse what is no plain array of the backend's library."""
    inspect, described = backend.inspect, list[Description | None]()
    for value in values:
        description = None if value is None else inspect(value)
        if description is None and value is not None:
            _fail_refused(function, backend, value, dict(zip(names, values, strict=True)))
        described.append(description)
    return described


def _fail_refused(function: str, backend: Backend, refused: Any, arrays: Mapping[str, Any]) -> NoReturn:
    name = next(name for name, value in arrays.items() if value is refused)
    given = ", ".join(f"{other}: {type_name(value)}" for other, value in arrays.items() if value is not None)
    traits = traits_of(backend)
    said = traits.hint(refused) if traits.hint else ""
    hint = f"{said}; " if said else ""
    raise BackendError(
        f"polybn.{function}: {name} must be a plain {traits.library or backend.name} array; got "
        f"{type_name(refused)} ({hint}nothing is converted or moved between libraries; the arguments are {given})"
    )


def check_record(function: str, name: str, value: object, record: type[Moments] | type[Gradients]) -> None:
    """Check that a result of PolyBN is given back as the named tuple that it was."""
    if not isinstance(value, record):
        raise DTypeError(
            f"polybn.{function}: {name} must be a polybn.{record.__name__}; got {type_name(value)} "
            f"(its fields are {', '.join(record._fields)})"
        )


def check_batch_norm(function: str, given: Arrays, options: Options, *, joined: bool = False) -> Known:
    """Check descriptions and options of ``batch_norm`` and ``batch_norm_vjp``.

    ``joined`` says that ``x`` is a part of a larger whole, so that one value per channel may be one of many.
    """
    x = check_moments(function, given, options.axis)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        value = getattr(given, name)
        if value is not None:
            _check_parameter(function, name, value, given.x, x)
    check_flag(function, "training", options.training, "batch statistics or running statistics: nothing is guessed")
    check_momentum(function, options.momentum)
    check_running_variance(function, options.running_variance)
    check_eps(function, options.eps, x.dtype)
    _check_running(function, given, options.training)
    unbiased = options.running_variance == "unbiased"
    if options.training and unbiased and x.m == 1 and not joined:
        fail_single_value(function, f"x has shape {given.x.shape} with channel axis {x.axis}")
    numbers = bool(options.training), float(options.momentum), float(options.eps)
    return Known(*numbers, unbiased, x.axis, x.channels, x.m, x.dtype)


def check_moments(function: str, given: Arrays, axis: Any, *, integers: bool = False, instead: str = "") -> Known:
    """Check ``x``, its channel axis, ``where``, and that all arrays are on one device.

    ``instead`` says what to do with integers, if they are not taken.
    """
    known = MOMENTS_DTYPE if integers else STATISTICS_DTYPE
    check_given(function, x=given.x)
    shape, dtype, _ = given.x
    if dtype not in known:
        what = "moments are" if function == "moments" else "batch norm is"
        raise DTypeError(
            f"polybn.{function}: x must have one of the dtypes {', '.join(known)}; got {dtype} "
            f"({what} defined on these, and nothing is converted: {_converted(dtype, instead)})"
        )
    if len(shape) < 2:
        raise ShapeError(
            f"polybn.{function}: x must have rank 2 or more, (N, C, ...); got rank {len(shape)}, shape {shape} "
            "(statistics are taken over every axis but the channel axis)"
        )
    index = check_axis(function, axis)
    if not -len(shape) <= index < len(shape):
        raise ShapeError(
            f"polybn.{function}: axis must lie in [{-len(shape)}, {len(shape)}); got {index} (x has shape {shape})"
        )
    index %= len(shape)
    if given.where is not None:
        _check_where(function, given.where, shape)
    check_devices(function, given._asdict())
    _check_known(function, shape)
    rest = shape[:index] + shape[index + 1 :]
    # Moments take no options but the axis; the other fields are what a call in training without any would have.
    return Known(True, 1.0, 0.0, False, index, shape[index], math.prod(rest), known[dtype])


def _converted(dtype: str, instead: str) -> str:
    """Say how an array becomes one that is taken."""
    return instead if instead and dtype.startswith(("int", "uint")) else "do so before the call"


def _check_known(function: str, shape: tuple[Any, ...]) -> None:
    """Refuse sizes that a lazy library does not know yet: it has None or NaN for them."""
    if any(size is None or (isinstance(size, float) and math.isnan(size)) for size in shape):
        raise ShapeError(
            f"polybn.{function}: x must have a shape that is known; got {shape} "
            "(let the library compute its sizes before the call, as compute_chunk_sizes() does in Dask)"
        )


def check_devices(function: str, given: Mapping[str, Description | None]) -> None:
    """Check that all arrays are on one device, where the library leaves that to the caller."""
    devices = {name: one.device for name, one in given.items() if one is not None and one.device is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name}: {device}" for name, device in devices.items())
        raise BackendError(
            f"polybn.{function}: all arrays must be on one device; got {listed} "
            "(nothing is moved between devices: do so before the call)"
        )


def check_fold(given: Arrays, eps: Any) -> Known:
    """Check the arguments of ``fold``; ``running_mean`` fixes shape and dtype of the others."""
    check_given("fold", running_mean=given.running_mean, running_var=given.running_var)
    shape, dtype = _check_vector("fold", "running_mean", given.running_mean)
    for name in ("gamma", "beta", "running_var"):
        value = getattr(given, name)
        if value is not None:
            _check_match("fold", name, value, Description(shape, dtype), "running_mean's")
    check_eps("fold", eps, dtype)
    check_devices("fold", given._asdict())
    return Known(False, 1.0, float(eps), False, 0, shape[0], 0, dtype)


def check_merge_moments(given: Mapping[str, Description | None]) -> Description:
    """Check the fields of both arguments of ``merge_moments``; ``a.mean``, which is returned, fixes shape and dtype."""
    given = {name: value for name, value in given.items() if value is not None or not name.endswith(".low")}
    check_given("merge_moments", **given)
    mean, count = given["a.mean"], given["a.count"]
    assert mean is not None  # for the type checker: check_given has checked both
    assert count is not None
    shape, dtype = _check_vector("merge_moments", "a.mean", mean)
    if not count.dtype.startswith(("int", "uint")):
        raise DTypeError(
            f"polybn.merge_moments: a.count must have an integer dtype; got {count.dtype} (it counts values)"
        )
    for name, value in given.items():
        expected = count.dtype if name.endswith("count") else dtype
        _check_match("merge_moments", name, value, Description(shape, expected), "a's")
    check_devices("merge_moments", given)
    return mean


def check_dy(dy: Description | None, x: Description) -> None:
    """Check a pullback's cotangent against ``x``, whose shape and dtype the output has."""
    if dy == x:
        return
    check_given("batch_norm_vjp", dy=dy)
    _check_match("batch_norm_vjp", "dy", dy, x, "the output's")
    check_devices("batch_norm_vjp", {"x": x, "dy": dy})


def check_cotangents(expected: Mapping[str, Description | None], given: Mapping[str, Description | None]) -> None:
    """Check second-order cotangents: None, or shape and dtype of the gradient that each belongs to."""
    for name, value in given.items():
        of = expected[name]
        if value is None:
            continue
        if of is None:
            raise DomainError(
                f"polybn.batch_norm_vjp: the cotangent of {name} must be None; got shape {value.shape} "
                f"(there is no gradient of {name}: it was None, or carries none in training)"
            )
        _check_match("batch_norm_vjp", f"the cotangent of {name}", value, of, f"the gradient of {name}'s")


def fail_variance(function: str, bad: int, first: int, value: float) -> NoReturn:
    """Refuse running variances in inference: ``bad`` channels, of which ``first`` has ``value``."""
    channels = "1 bad channel" if bad == 1 else f"{bad} bad channels"
    raise DomainError(
        f"polybn.{function}: running_var must be finite and not negative in inference; got {value!r} in channel "
        f"{first} ({channels}; NaN and infinity come from batches that hold them or overflow, less than 0 never)"
    )


def fail_single_value(function: str, because: str) -> NoReturn:
    """Refuse an unbiased variance of one value (S11); ``because`` says where there is one."""
    raise DomainError(
        f"polybn.{function}: running_variance must be 'biased' where there is one value per channel; got 'unbiased' "
        f"({because}; m / (m - 1) has no value at m = 1)"
    )


def check_given(function: str, **required: Description | None) -> None:
    """Check that no required argument is None."""
    for name, value in required.items():
        if value is None:
            raise BackendError(
                f"polybn.{function}: {name} must be an array; got None (only what defaults to None may be left out)"
            )


def _check_where(function: str, where: Description, shape: tuple[int, ...]) -> None:
    if where.dtype not in ("bool", "bool_"):
        raise DTypeError(
            f"polybn.{function}: where must have dtype bool; got {where.dtype} (True keeps, False deletes a value)"
        )
    aligned = shape[len(shape) - len(where.shape) :]
    if len(where.shape) > len(shape) or any(a not in (1, b) for a, b in zip(where.shape, aligned, strict=True)):
        raise ShapeError(
            f"polybn.{function}: where must broadcast to the shape of x; got shape {where.shape} (x has shape {shape})"
        )


def _check_parameter(function: str, name: str, value: Description, x: Description, known: Known) -> None:
    if value.shape != (known.channels,):
        raise ShapeError(
            f"polybn.{function}: {name} must have shape ({known.channels},); got {value.shape} "
            f"(x has shape {x.shape} with channel axis {known.axis})"
        )
    if value.dtype != known.dtype:
        raise DTypeError(
            f"polybn.{function}: {name} must have dtype {known.dtype}; got {value.dtype} "
            f"(x has dtype {x.dtype}; parameters and statistics are float32, float64 for float64 x)"
        )


def _check_running(function: str, given: Arrays, training: bool) -> None:
    missing = [name for name in ("running_mean", "running_var") if getattr(given, name) is None]
    if missing and (len(missing) == 1 or not training):
        rule = "must be given together" if len(missing) == 1 else "must be given when training=False"
        raise DomainError(
            f"polybn.{function}: running_mean and running_var {rule}; got None for {' and '.join(missing)} "
            "(inference normalizes with them, training updates both or neither)"
        )


def _check_vector(function: str, name: str, value: Description) -> tuple[tuple[int, ...], str]:
    """Check an array that holds one value per channel and fixes what the others must be; return its shape and dtype."""
    if len(value.shape) != 1:
        raise ShapeError(f"polybn.{function}: {name} must have shape (C,); got {value.shape} (one value per channel)")
    if value.dtype not in SMALLEST_NORMAL:
        raise DTypeError(
            f"polybn.{function}: {name} must have one of the dtypes {', '.join(SMALLEST_NORMAL)}; got {value.dtype} "
            "(the dtypes of statistics; half types only store x)"
        )
    return value.shape, value.dtype


def _check_match(function: str, name: str, value: Description | None, expected: Description, whose: str) -> None:
    assert value is not None
    if value.shape != expected.shape:
        raise ShapeError(
            f"polybn.{function}: {name} must have shape {expected.shape}; got {value.shape} ({whose} shape)"
        )
    if value.dtype != expected.dtype:
        raise DTypeError(
            f"polybn.{function}: {name} must have dtype {expected.dtype}; got {value.dtype} ({whose} dtype)"
        )
