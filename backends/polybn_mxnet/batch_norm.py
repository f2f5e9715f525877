"""The specification over MXNet arrays: the forward call, ``moments``, ``merge_moments`` and ``fold``.

A call is computed by :mod:`polybn_mxnet.host` if the host can access the memory, else by
:mod:`polybn_mxnet.operators`. While MXNet's tape records, each call puts its derivative on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from polybn.spec import Affine, Arguments, Array, BatchNormResult, Moments
from polybn_mxnet import arrays, derivatives, host, operators, tape

_operators_only: ContextVar[bool] = ContextVar("polybn_mxnet_operators_only", default=False)


@contextlib.contextmanager
def operators_only() -> Iterator[None]:
    """Compute with MXNet's operators within this block, also on the CPU, as GPU contexts do."""
    token = _operators_only.set(True)
    try:
        yield
    finally:
        _operators_only.reset(token)


def forward(
    arguments: Arguments,
    *,
    differentiable: bool,  # noqa: ARG001  # residuals cost nothing more
) -> tuple[BatchNormResult, Any]:
    """Normalize (S1 to S12)."""
    x, olds, recorded = arguments.x, arguments[4:6], tape.is_recording()
    y, form = arrays.empty(x), form_for(x)
    held = form.hold(arguments) if recorded else arguments
    *news, residuals = form.forward(held, y)
    running = (None if old is None else arrays.send(new, old) for old, new in zip(olds, news, strict=True))
    if recorded:
        tape.record(partial(derivatives.pull, held, residuals), derivatives.inputs(arguments), [y])
    return BatchNormResult(y, *running), residuals


def form_for(array: Array) -> Any:
    """Return the module that computes with an array."""
    return operators if _operators_only.get() or not arrays.is_on_host(array) else host


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` in a form that merges (S15)."""
    x = arguments.x
    if np.dtype(x.dtype).kind in "iu":  # they are added up on the host, and carry no gradient
        held = arguments._replace(x=arrays.fetch(x), where=arrays.fetch(arguments.where))
        return Moments(*(arrays.send(z, x) for z in host.shared.moments(held)))
    form = form_for(x)
    found = form.moments(arguments)
    result = Moments(*(arrays.send(z, x) for z in found))
    if tape.is_recording():  # low is a rounding error, and carries no gradient
        pull = partial(derivatives.of_moments, form, form.hold(arguments), found)
        tape.record(pull, {"x": x}, result[1:3])
    return result


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the statistics of two parts (S15)."""
    one, other = (Moments(*map(arrays.fetch, part)) for part in (a, b))
    result = Moments(*(arrays.send(z, a.mean) for z in host.shared.merge_moments(one, other)))
    if tape.is_recording():
        inputs = {"a.mean": a.mean, "a.m2": a.m2, "b.mean": b.mean, "b.m2": b.m2}
        tape.record(partial(derivatives.of_merge_moments, one, other), inputs, result[1:3])
    return result


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    inputs = derivatives.inputs(arguments)
    gamma, beta, mean, var = map(arrays.fetch, arguments[2:6])
    held = arguments._replace(gamma=gamma, beta=beta, running_mean=mean, running_var=var)
    result = Affine(*(arrays.send(z, arguments.running_mean) for z in host.shared.fold(held)))
    if tape.is_recording():
        tape.record(partial(derivatives.of_fold, held), inputs, result)
    return result
