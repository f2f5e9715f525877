"""One call as JAX takes it: arrays and numbers are operands of a compiled program, all else is a part of its name."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from polybn.spec import Arguments
from polybn_jax.kernels import AxisName
from polybn_jax.processes import check_process


class Operands(NamedTuple):
    """The arrays of one call."""

    x: jax.Array
    gamma: jax.Array | None
    beta: jax.Array | None
    running_mean: jax.Array | None
    running_var: jax.Array | None
    where: jax.Array | None


class Numbers(NamedTuple):
    """The numbers of one call, in the type of the statistics: new values run the same program."""

    keep: Any
    """The weight of the old running value."""
    take: Any
    """The weight of the batch."""
    eps: Any


class Plan(NamedTuple):
    """What a compiled program is made for, beside shapes and dtypes."""

    training: bool
    axis: int
    unbiased: bool
    axis_name: AxisName


def operands_of(arguments: Arguments) -> Operands:
    """Return the arrays of a call, in a process that can compute with them."""
    check_process(arguments.function)
    return Operands(*arguments[1:7])


def numbers_of(arguments: Arguments) -> Numbers:
    """Return the numbers of a call."""
    numbers = arguments.momentum, 1 - arguments.momentum, arguments.eps
    return Numbers(*(number(value, arguments.dtype) for value in numbers))


def plan_of(arguments: Arguments) -> Plan:
    """Return the rest of a call."""
    return Plan(arguments.training, arguments.axis, arguments.unbiased, arguments.own.get("axis_name"))


def number(value: float, dtype: str) -> Any:
    """Round a Python number once, on the host."""
    return np.dtype(dtype).type(value)
