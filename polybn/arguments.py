"""Clause S14: the argument checks that all backends share.

They look at shapes, dtypes and Python values only and run no array code, so they mean the same on
every library and cost the same under tracing. Each failure names the argument, the rule, the
value, and what fixes the rule; the class says what kind of mistake it was.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, NoReturn

from polybn.spec import Array, BackendError, DomainError, DTypeError, Gradients, Moments, ShapeError

STATISTICS_DTYPE = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
"""Clause S6: from the dtype of x to the dtype of parameters and statistics."""

SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}


class Problem(NamedTuple):
    """A call that passed the checks, in the terms of the specification."""

    axis: int
    """Channel axis, counted from the front."""
    channels: int
    count: int  # type: ignore[assignment]  # it hides tuple.count, which nobody asks of a problem
    """Values per channel, ``m``."""
    dtype: str
    """Dtype of parameters and statistics."""


def dtype_name(dtype: Any) -> str:
    """Name a dtype in the same words for every library: ``float32``, never ``<class 'numpy.float32'>``.

    Parameters
    ----------
    dtype : Any
        What an array of the library calls its dtype.

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from polybn import arguments
    >>> arguments.dtype_name(np.dtype(np.float32)), arguments.dtype_name(np.float16)
    ('float32', 'float16')
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def type_name(value: object) -> str:
    """Return the full name of a value's type, without ``builtins``.

    Parameters
    ----------
    value : object

    Returns
    -------
    str

    Examples
    --------
    >>> from fractions import Fraction
    >>> from polybn import arguments
    >>> arguments.type_name([]), arguments.type_name(Fraction(1))
    ('list', 'fractions.Fraction')
    """
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def check_arrays(function: str, library: str, accepts: Callable[[Any], bool], **arrays: Any) -> None:
    """Check that each argument that is not None is an array of the backend's own library.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    library : str
        Its name, for the message.
    accepts : callable
        Tells whether a value is a plain array of the library.
    **arrays : array, any shape, optional
        The arguments by name.

    Raises
    ------
    BackendError
        If one is anything else.
    """
    for name, value in arrays.items():
        if value is None or accepts(value):
            continue
        others = ", ".join(f"{other}: {type_name(a)}" for other, a in arrays.items() if a is not None)
        raise BackendError(
            f"polybn.{function}: {name} must be a plain {library} array; got {type_name(value)} "
            f"(nothing is converted or moved between libraries; the arguments are {others})"
        )


def check_record(function: str, name: str, value: object, record: type[Moments] | type[Gradients]) -> None:
    """Check that a result of PolyBN comes back in the named tuple that it left in.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    name : str
        Of the argument.
    value : object
        The argument.
    record : type
        :class:`polybn.Moments` or :class:`polybn.Gradients`.

    Raises
    ------
    DTypeError
        If it is anything else.
    """
    if not isinstance(value, record):
        raise DTypeError(
            f"polybn.{function}: {name} must be a polybn.{record.__name__}; got {type_name(value)} "
            f"(its fields are {', '.join(record._fields)})"
        )


def check_batch_norm(
    function: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: Any,
    momentum: Any,
    eps: Any,
    axis: Any,
    running_variance: Any,
    where: Array | None,
) -> Problem:
    """Check the arguments of ``batch_norm`` and ``batch_norm_vjp``.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    x, gamma, beta, running_mean, running_var, training, momentum, eps, axis, running_variance, where
        As in :func:`polybn.batch_norm`, shapes included; none is left out.

    Returns
    -------
    Problem

    Raises
    ------
    ShapeError, DTypeError, DomainError
        As clause S14 says.
    """
    problem = check_moments(function, x, axis=axis, where=where)
    parameters = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    for name, value in parameters.items():
        if value is not None:
            _check_parameter(function, name, value, x, problem)
    _check_options(function, training, momentum, running_variance)
    check_eps(function, eps, problem.dtype)
    missing = [name for name in ("running_mean", "running_var") if parameters[name] is None]
    if missing and (len(missing) == 1 or not training):
        rule = "must be given together" if len(missing) == 1 else "must be given when training=False"
        raise DomainError(
            f"polybn.{function}: running_mean and running_var {rule}; got None for {' and '.join(missing)} "
            "(inference normalizes with them, training updates both or neither)"
        )
    if training and running_variance == "unbiased" and problem.count == 1:
        fail_single_value(function, f"x has shape {tuple(x.shape)} with channel axis {problem.axis}")
    return problem


def check_moments(function: str, x: Array, *, axis: Any, where: Array | None) -> Problem:
    """Check ``x``, its channel axis and ``where``.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    x, axis, where
        As in :func:`polybn.batch_norm`.

    Returns
    -------
    Problem

    Raises
    ------
    BackendError, ShapeError, DTypeError
        As clause S14 says.
    """
    _check_given(function, x=x)
    name, shape = dtype_name(x.dtype), tuple(x.shape)
    if name not in STATISTICS_DTYPE:
        raise DTypeError(
            f"polybn.{function}: x must have one of the dtypes {', '.join(STATISTICS_DTYPE)}; got {name} "
            "(batch norm is defined on these, and nothing is converted: do so before the call)"
        )
    if len(shape) < 2:
        raise ShapeError(
            f"polybn.{function}: x must have rank 2 or more, (N, C, ...); got rank {len(shape)}, shape {shape} "
            "(statistics are taken over every axis but the channel axis)"
        )
    index = _check_index(function, axis)
    if not -len(shape) <= index < len(shape):
        raise ShapeError(
            f"polybn.{function}: axis must lie in [{-len(shape)}, {len(shape)}); got {index} (x has shape {shape})"
        )
    index %= len(shape)
    if where is not None:
        _check_where(function, where, shape)
    rest = shape[:index] + shape[index + 1 :]
    return Problem(index, shape[index], math.prod(rest), STATISTICS_DTYPE[name])


def check_eps(function: str, eps: Any, dtype: str) -> None:
    """Check that ``eps`` is a number that the arithmetic can hold.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    eps : Any
        The argument.
    dtype : str
        Of the statistics: float32 or float64.

    Raises
    ------
    DTypeError
        If it is no Python number.
    DomainError
        If it is negative, subnormal, not finite or too large.
    """
    if isinstance(eps, bool) or not _is_number(eps):
        raise DTypeError(
            f"polybn.{function}: eps must be a Python number; got {eps!r} of type {type_name(eps)} "
            "(one number for all channels, added to the variance inside the root)"
        )
    smallest, number = SMALLEST_NORMAL[dtype], _as_float(eps)
    if not (eps == 0 or smallest <= number <= 1 / smallest):  # NaN fails, too
        raise DomainError(
            f"polybn.{function}: eps must be 0 or lie in [{smallest:.3g}, {1 / smallest:.3g}]; got {eps!r} "
            f"(from the smallest normal {dtype}, the dtype of the statistics, to its reciprocal)"
        )


def check_fold(
    gamma: Array | None, beta: Array | None, running_mean: Array | None, running_var: Array | None, *, eps: Any
) -> None:
    """Check the arguments of ``fold``; ``running_mean`` fixes shape and dtype of the others.

    Parameters
    ----------
    gamma, beta, running_mean, running_var, eps
        As in :func:`polybn.fold`.

    Raises
    ------
    BackendError, ShapeError, DTypeError, DomainError
        As clause S14 says.
    """
    _check_given("fold", running_mean=running_mean, running_var=running_var)
    shape, dtype = _check_vector("fold", "running_mean", running_mean)
    for name, value in {"gamma": gamma, "beta": beta, "running_var": running_var}.items():
        if value is not None:
            _check_match("fold", name, value, shape, dtype, "running_mean's")
    check_eps("fold", eps, dtype)


def check_merge_moments(library: str, accepts: Callable[[Any], bool], a: Any, b: Any) -> None:
    """Check the arguments of ``merge_moments``; ``a.mean`` fixes the number of channels and the dtype.

    Parameters
    ----------
    library : str
        As in :func:`check_arrays`.
    accepts : callable
        As in :func:`check_arrays`.
    a, b : Any
        The arguments.

    Raises
    ------
    BackendError, ShapeError, DTypeError
        As clause S14 says.
    """
    for name, part in (("a", a), ("b", b)):
        check_record("merge_moments", name, part, Moments)
    fields = {f"a.{name}": value for name, value in a._asdict().items()}
    fields |= {f"b.{name}": value for name, value in b._asdict().items()}
    _check_given("merge_moments", **fields)
    check_arrays("merge_moments", library, accepts, **fields)
    shape, dtype = _check_vector("merge_moments", "a.mean", a.mean)
    counts = dtype_name(a.count.dtype)
    if not counts.startswith(("int", "uint")):
        raise DTypeError(f"polybn.merge_moments: a.count must have an integer dtype; got {counts} (it counts values)")
    for name, value in fields.items():
        of_count = name.endswith("count")
        _check_match("merge_moments", name, value, shape, counts if of_count else dtype, "a's")


def check_dy(dy: Array, x: Array) -> None:
    """Check a pullback's cotangent against the output that it belongs to.

    Parameters
    ----------
    dy : array, shape of x
    x : array, shape (N, C, ...)
        What the forward call was given.

    Raises
    ------
    BackendError, ShapeError, DTypeError
        As clause S14 says.
    """
    _check_given("batch_norm_vjp", dy=dy)
    _check_match("batch_norm_vjp", "dy", dy, tuple(x.shape), dtype_name(x.dtype), "the output's")


def check_cotangents(expected: dict[str, Array | None], given: dict[str, Array | None]) -> None:
    """Check second-order cotangents: None, or shape and dtype of the gradient that each belongs to.

    Parameters
    ----------
    expected : dict of str to array or None
        The gradients by name, each of the shape that it has.
    given : dict of str to array or None
        Their cotangents, each of the same shape.

    Raises
    ------
    DomainError
        If there is a cotangent of a gradient that there is not.
    ShapeError, DTypeError
        If one does not match.
    """
    for name, value in given.items():
        of = expected[name]
        if value is None:
            continue
        if of is None:
            raise DomainError(
                f"polybn.batch_norm_vjp: the cotangent of {name} must be None; got shape {tuple(value.shape)} "
                f"(there is no gradient of {name}: it was None, or carries none in training)"
            )
        thing, whose = f"the cotangent of {name}", f"the gradient of {name}'s"
        _check_match("batch_norm_vjp", thing, value, tuple(of.shape), dtype_name(of.dtype), whose)


def check_negative_variance(function: str, bad: int, first: int, value: float) -> None:
    """Check that inference was given running variances that are finite and not negative.

    Parameters
    ----------
    function : str
    bad : int
        How many channels are bad; the backend counts them where values can be seen.
    first : int
        The first bad channel.
    value : float
        Its running variance.

    Raises
    ------
    DomainError
        If there is a bad channel.
    """
    if bad:
        channels = "1 bad channel" if bad == 1 else f"{bad} bad channels"
        raise DomainError(
            f"polybn.{function}: running_var must be finite and not negative in inference; got {value!r} in channel "
            f"{first} ({channels}; NaN and infinity come from batches that hold them or overflow, less than 0 never)"
        )


def fail_single_value(function: str, because: str) -> NoReturn:
    """Refuse an unbiased variance of one value (S11).

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    because : str
        Where there is one value; it goes into the message.

    Raises
    ------
    DomainError
        Always.
    """
    raise DomainError(
        f"polybn.{function}: running_variance must be 'biased' where there is one value per channel; got 'unbiased' "
        f"({because}; m / (m - 1) has no value at m = 1)"
    )


def _check_given(function: str, **required: Array | None) -> None:
    for name, value in required.items():
        if value is None:
            raise BackendError(
                f"polybn.{function}: {name} must be an array; got None (only what defaults to None may be left out)"
            )


def _is_number(value: object) -> bool:
    # A float16 or a Fraction is a Real, too; an array is none, and neither is a tracer.
    return isinstance(value, Real)


def _as_float(number: Any) -> float:
    # A comparison with a NumPy scalar would round the bounds to its type.
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _check_index(function: str, axis: Any) -> int:
    try:
        if not isinstance(axis, bool):
            return operator.index(axis)
        cause = None
    except TypeError as error:
        cause = error
    raise DTypeError(
        f"polybn.{function}: axis must be one int; got {axis!r} of type {type_name(axis)} (it names the channel axis)"
    ) from cause


def _check_where(function: str, where: Array, shape: tuple[int, ...]) -> None:
    name, given = dtype_name(where.dtype), tuple(where.shape)
    if name not in ("bool", "bool_"):
        raise DTypeError(
            f"polybn.{function}: where must have dtype bool; got {name} (True keeps, False deletes a value)"
        )
    aligned = shape[len(shape) - len(given) :]
    if len(given) > len(shape) or any(a not in (1, b) for a, b in zip(given, aligned, strict=True)):
        raise ShapeError(
            f"polybn.{function}: where must broadcast to the shape of x; got shape {given} (x has shape {shape})"
        )


def _check_parameter(function: str, name: str, value: Array, x: Array, problem: Problem) -> None:
    if tuple(value.shape) != (problem.channels,):
        raise ShapeError(
            f"polybn.{function}: {name} must have shape ({problem.channels},); got {tuple(value.shape)} "
            f"(x has shape {tuple(x.shape)} with channel axis {problem.axis})"
        )
    if dtype_name(value.dtype) != problem.dtype:
        raise DTypeError(
            f"polybn.{function}: {name} must have dtype {problem.dtype}; got {dtype_name(value.dtype)} "
            f"(x has dtype {dtype_name(x.dtype)}; parameters and statistics are float32, float64 for float64 x)"
        )


def _check_options(function: str, training: Any, momentum: Any, running_variance: Any) -> None:
    if not isinstance(training, bool):
        raise DTypeError(
            f"polybn.{function}: training must be True or False; got {training!r} of type {type_name(training)} "
            "(batch statistics or running statistics: nothing is guessed)"
        )
    if not _is_number(momentum):
        raise DTypeError(
            f"polybn.{function}: momentum must be a Python number; got {momentum!r} of type {type_name(momentum)} "
            "(the weight of the OLD running value)"
        )
    if isinstance(momentum, bool) or not 0 <= momentum <= 1:
        raise DomainError(
            f"polybn.{function}: momentum must lie in [0, 1]; got {momentum!r} "
            "(it is the weight of the OLD value; PyTorch's momentum is 1 minus this one)"
        )
    if not isinstance(running_variance, str) or running_variance not in ("biased", "unbiased"):
        raise DomainError(
            f"polybn.{function}: running_variance must be 'biased' or 'unbiased'; got {running_variance!r} "
            "(what running_var takes in: v, or v * m / (m - 1))"
        )


def _check_vector(function: str, name: str, value: Array) -> tuple[tuple[int, ...], str]:
    """Check an array that holds one value per channel and fixes what the others must be; return its shape and dtype."""
    shape, dtype = tuple(value.shape), dtype_name(value.dtype)
    if len(shape) != 1:
        raise ShapeError(f"polybn.{function}: {name} must have shape (C,); got {shape} (one value per channel)")
    if dtype not in SMALLEST_NORMAL:
        raise DTypeError(
            f"polybn.{function}: {name} must have one of the dtypes {', '.join(SMALLEST_NORMAL)}; got {dtype} "
            "(the dtypes of statistics; half types only store x)"
        )
    return shape, dtype


def _check_match(function: str, name: str, value: Array, shape: tuple[int, ...], dtype: str, whose: str) -> None:
    if tuple(value.shape) != shape:
        raise ShapeError(f"polybn.{function}: {name} must have shape {shape}; got {tuple(value.shape)} ({whose} shape)")
    given = dtype_name(value.dtype)
    if given != dtype:
        raise DTypeError(f"polybn.{function}: {name} must have dtype {dtype}; got {given} ({whose} dtype)")
