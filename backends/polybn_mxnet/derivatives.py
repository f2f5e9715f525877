"""Clause S13 over MXNet arrays, and the derivatives of ``moments``, ``merge_moments`` and ``fold`` for the tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polybn.spec import Arguments, Array, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays, host, operators
from polybn_mxnet.arrays import Host

VECTORS = ("gamma", "beta", "running_mean", "running_var")


def pull(arguments: Arguments, residuals: Any, cotangents: Sequence[Array], into: Mapping[str, Array]) -> None:
    """Write the wanted gradients, by name, for a cotangent of ``y``."""
    form: Any = operators if isinstance(residuals, operators.Residuals) else host
    form.backward(arguments, residuals, cotangents[0], into)


def inputs(arguments: Arguments) -> dict[str, Array]:
    """Return the given arrays that carry a gradient (S13), by name."""
    named = zip(Gradients._fields, arguments[1:4] if arguments.training else arguments[1:6], strict=False)
    return {name: array for name, array in named if array is not None}


def backward(arguments: Arguments, residuals: Any, dy: Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    into = {name: arrays.empty(array) for name, array in inputs(arguments).items()}
    pull(arguments, residuals, [dy], into)
    return Gradients(*map(into.get, Gradients._fields))


def double_backward(
    arguments: Arguments,
    residuals: Any,  # noqa: ARG001  # those of the first derivative are of no use here
    dy: Array,
    cotangents: Gradients,
) -> SecondGradients:
    """Differentiate :func:`backward`, on the host."""
    found = host.double_backward(arguments, dy, cotangents)._asdict()
    given = {"dy": dy, **inputs(arguments)}
    return SecondGradients(
        *(arrays.rounded(found[name], given[name]) if name in given else None for name in SecondGradients._fields)
    )


def of_moments(
    form: Any, arguments: Arguments, found: Moments, cotangents: Sequence[Array], into: Mapping[str, Array]
) -> None:
    """Differentiate ``moments``: ``dmean / count + 2 * (x - mean) * dm2`` has the form of inference."""
    dmean, dm2 = map(arrays.fetch, cotangents)
    shift = dmean / np.maximum(found.count, 1).astype(dmean.dtype)
    vectors = dict(zip(VECTORS, (2 * dm2, shift, found.mean, np.ones_like(dmean)), strict=True))
    form.forward(arguments._replace(training=False, **vectors), into["x"])


def of_merge_moments(a: Moments, b: Moments, cotangents: Sequence[Array], into: Mapping[str, Array]) -> None:
    """Differentiate ``merge_moments`` (S15)."""
    dmean, dm2 = (arrays.fetch(z).astype(float) for z in cotangents)
    share = b.count / np.maximum(a.count + b.count, 1)
    low = sum(sign * z.low.astype(float) for sign, z in ((-1, a), (1, b)) if z.low is not None)
    distance = b.mean.astype(float) - a.mean + low
    along = (dmean + 2 * dm2 * distance * a.count) * share
    _write(into, {"a.mean": dmean - along, "b.mean": along, "a.m2": dm2, "b.m2": dm2})


def of_fold(arguments: Arguments, cotangents: Sequence[Array], into: Mapping[str, Array]) -> None:
    """Differentiate ``fold``."""
    dscale, dshift = (arrays.fetch(z).astype(float) for z in cotangents)
    mean, gamma = arguments.running_mean, 1.0 if arguments.gamma is None else arguments.gamma
    square = arguments.running_var.astype(float) + arguments.eps
    r = np.divide(1, np.sqrt(square), out=np.zeros_like(square), where=square != 0)
    slope = (dscale - mean * dshift) * r
    _write(into, dict(zip(VECTORS, (slope, dshift, -gamma * r * dshift, -gamma * slope * r * r / 2), strict=True)))


def _write(into: Mapping[str, Array], gradients: Mapping[str, Host]) -> None:
    for name, array in into.items():
        arrays.write(gradients[name], array)
