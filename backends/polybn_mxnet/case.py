"""A call that passed the argument checks; what was found good once is not checked again."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from polybn.arguments import check_batch_norm, check_moments
from polybn_mxnet import memory
from polybn_mxnet.handles import Description

VECTORS = ("gamma", "beta", "running_mean", "running_var")


class Case(NamedTuple):
    """The terms of :class:`polybn.arguments.Problem`, and what x is: y and the gradients of both are the same."""

    axis: int
    channels: int
    count: int  # type: ignore[assignment]  # it hides tuple.count, which nobody asks of a case
    """Values per channel, ``m``."""
    dtype: str
    """Dtype of parameters and statistics."""
    x: Description


def of_batch_norm(
    function: str, *arrays: Description | None, training: Any, momentum: Any, eps: Any, axis: Any, running_variance: Any
) -> Case:
    """Check ``x, gamma, beta, running_mean, running_var, where`` and the options of a call."""
    options = training, momentum, eps, axis, running_variance
    # Numbers that are equal but for their type are other arguments, and not everything can be remembered.
    plain = {bool, float, int, str}.issuperset(map(type, options))
    return (_of_batch_norm if plain else _of_batch_norm.__wrapped__)(function, arrays, *options)


@lru_cache(maxsize=1024, typed=True)
def _of_batch_norm(
    function: str, arrays: tuple[Description | None, ...], training: Any, momentum: Any, eps: Any, axis: Any,
    running_variance: Any,
) -> Case:  # fmt: skip
    x: Any
    x, *vectors, where = arrays
    given = dict(zip(VECTORS, vectors, strict=True))
    problem = check_batch_norm(
        function, x, **given, training=training, momentum=momentum, eps=eps, axis=axis,
        running_variance=running_variance, where=where,
    )  # fmt: skip
    memory.check_contexts(function, x=x, **given, where=where)
    return Case(*problem, x)


def of_moments(function: str, x: Any, axis: Any, where: Description | None) -> Case:
    """Check an array and a mask."""
    problem = check_moments(function, x, axis=axis, where=where)
    memory.check_contexts(function, x=x, where=where)
    return Case(*problem, x)
