"""The arguments that make PolyBN compute like a dialect, or the reason why there are none."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from polybn.dialects.record import ABOVE_0, Record
from polybn.dialects.said import check_options, to_old
from polybn.spec import DomainError


def why_not(dialect: Record) -> str | None:
    """Return why no arguments make PolyBN compute like a dialect, or None."""
    if dialect.normalizes_by == "running":
        return "it normalizes training by the running statistics, which batch norm here never does"
    if dialect.average == "debiased from 1":
        return "its variance is divided as if it had begun at 0, and it begins at 1"
    if dialect.stored == "inverse root":
        return "it averages 1 / sqrt(variance + eps), not the variance"
    if dialect.running_variance == "unspecified":
        return "it does not say which variance it keeps"
    return None


def arguments(
    dialect: Record, options: dict[str, Any], step: int | None, function: str = "dialects.arguments"
) -> dict[str, Any]:
    """Return the keywords of :func:`polybn.batch_norm` for a dialect and its ``options``."""
    reason = why_not(dialect)
    if reason is not None:
        raise DomainError(
            f"polybn.{function}: dialect must be one that arguments can say; got {dialect.name} ({reason})"
        )
    given = check_options(options, dialect, function)
    momentum = given.momentum
    if momentum is None:
        if dialect.momentum is None:
            raise DomainError(
                f"polybn.{function}: momentum must be given; got none ({dialect.name} has no default for its "
                f"{dialect.momentum_word})"
            )
        momentum = to_old(dialect, dialect.momentum)
    return {
        "momentum": debiased(momentum, _checked(step, dialect, function)) if dialect.debiased else momentum,
        "eps": _eps(dialect, dialect.eps if given.eps is None else given.eps, function),
        "axis": _axis(dialect, dialect.axis if given.axis is None else given.axis, function),
        "running_variance": dialect.running_variance,
    }


def debiased(momentum: float, step: int) -> float:
    """Return the weight of the old value at a step, counted from 1, for an average without its initial value.

    ``h = rho h + (1 - rho) v``, started at ``h = 0`` and divided by ``1 - rho^step``, is an average whose own
    weight of the old value grows from 0 to rho.
    """
    if momentum == 1:
        return (step - 1) / step
    return momentum * (1 - momentum ** (step - 1)) / (1 - momentum**step)


def _checked(step: Any, dialect: Record, function: str) -> int:
    if isinstance(step, bool) or not isinstance(step, Integral) or step < 1:
        raise DomainError(
            f"polybn.{function}: step must be an int of 1 or more; got {step!r} (in {dialect.name} the weight of the "
            "old value grows from step to step)"
        )
    return int(step)


def _eps(dialect: Record, eps: float, function: str) -> float:
    if eps < dialect.least_eps:
        least = "above 0" if dialect.least_eps == ABOVE_0 else f"at least {dialect.least_eps:g}"
        raise DomainError(f"polybn.{function}: eps must be {least}; got {eps!r} ({dialect.name} takes no less)")
    return eps


def _axis(dialect: Record, axis: int, function: str) -> int:
    if axis != dialect.axis and not dialect.any_axis:
        raise DomainError(
            f"polybn.{function}: axis must be {dialect.axis}; got {axis!r} ({dialect.name} has no other channel axis)"
        )
    return axis
