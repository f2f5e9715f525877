"""The checks of a call's options: Python numbers and words, no arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from polybn.spec import DomainError, DTypeError

EPS = "one number for all channels, added to the variance inside the root"
SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}


def type_name(value: object) -> str:
    """Return the full name of a value's type, without ``builtins``.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from polybn import options
    >>> options.type_name([]), options.type_name(Fraction(1))
    ('list', 'fractions.Fraction')
    """
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def check_untraced(function: str, hint: Callable[[Any], str] | None, given: Mapping[str, Any]) -> None:
    """Check that no option is a value of which the arrays' library says what makes it plain, such as a traced one."""
    for name, value in given.items():
        said = hint(value) if hint else ""
        if said:
            raise DTypeError(f"polybn.{function}: {name} must be a Python value; got {type_name(value)} ({said})")


def check_flag(function: str, name: str, value: Any, meaning: str) -> None:
    """Check that an option is a truth value of Python or NumPy."""
    # NumPy's bool is recognized by its name, because NumPy need not be imported.
    if not isinstance(value, bool) and type_name(value) not in ("numpy.bool", "numpy.bool_"):
        raise DTypeError(
            f"polybn.{function}: {name} must be True or False; got {value!r} of type {type_name(value)} ({meaning})"
        )


def check_number(function: str, name: str, value: Any, meaning: str) -> None:
    """Check that an option is one number."""
    if isinstance(value, bool) or not is_number(value):
        raise DTypeError(
            f"polybn.{function}: {name} must be a Python number; got {value!r} of type {type_name(value)} ({meaning})"
        )


def check_momentum(function: str, momentum: Any) -> None:
    """Check the weight of the old running value."""
    check_number(function, "momentum", momentum, "the weight of the OLD running value")
    if not 0 <= momentum <= 1:
        raise DomainError(
            f"polybn.{function}: momentum must lie in [0, 1]; got {momentum!r} "
            "(it is the weight of the OLD value; PyTorch's momentum is 1 minus this one)"
        )


def check_running_variance(function: str, running_variance: Any) -> None:
    """Check the word for the variance that the running variance takes in."""
    if not isinstance(running_variance, str) or running_variance not in ("biased", "unbiased"):
        raise DomainError(
            f"polybn.{function}: running_variance must be 'biased' or 'unbiased'; got {running_variance!r} "
            "(what running_var takes in: v, or v * m / (m - 1))"
        )


def check_eps(function: str, eps: Any, dtype: str) -> None:
    """Check that ``eps`` is a number that the arithmetic in ``dtype`` can hold."""
    check_number(function, "eps", eps, EPS)
    smallest, number = SMALLEST_NORMAL[dtype], _as_float(eps)
    if not (eps == 0 or smallest <= number <= 1 / smallest):  # NaN fails, too
        raise DomainError(
            f"polybn.{function}: eps must be 0 or lie in [{smallest:.3g}, {1 / smallest:.3g}]; got {eps!r} "
            f"(from the smallest normal {dtype}, the dtype of the statistics, to its reciprocal)"
        )


def is_number(value: object) -> bool:
    """Return whether a value is a real number, such as a float16 or a Fraction, and not an array or a tracer."""
    return isinstance(value, Real)


def _as_float(number: Any) -> float:
    # A comparison with a NumPy scalar would round the bounds to its type.
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_axis(function: str, axis: Any) -> int:
    """Return the channel axis as an int."""
    try:
        if not isinstance(axis, bool):
            return operator.index(axis)
        cause = None
    except TypeError as error:
        cause = error
    raise DTypeError(
        f"polybn.{function}: axis must be one int; got {axis!r} of type {type_name(axis)} (it names the channel axis)"
    ) from cause


def check_own(function: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    """Check keywords that the public signature does not have against those that the backend of the arrays declares."""
    for word in given:
        if word not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise DTypeError(
                f"polybn.{function}: a keyword must be one of the signature, or one that the arrays' library has "
                f"({listed}); got {word!r} (see help(polybn.{function}))"
            )
