"""Clause S13 over MXNet arrays, and the derivatives of what is made of vectors; each as a call, and for the tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polybn.spec import Arguments, Array, Gradients, Moments, SecondGradients
from polybn_mxnet import arrays, host, operators, tape
from polybn_mxnet.arrays import Host

VECTORS = ("gamma", "beta", "running_mean", "running_var")
SECOND = ("gamma", "running_mean", "running_var")


class Pull(NamedTuple):
    """The derivative of one call of ``batch_norm``, as :data:`polybn_mxnet.tape.Pull` says."""

    arguments: Arguments
    residuals: Any

    def __call__(self, cotangents: Sequence[Array], dx: Array) -> Mapping[str, Host | None]:
        """Write ``dx``; return the gradients of the vectors, on the host."""
        (dy,) = cotangents
        form = operators if isinstance(self.residuals, operators.Residuals) else host
        with tape.paused(), np.errstate(all="ignore"):
            gradients: Gradients = form.backward(self.arguments, self.residuals, dy, dx)
        return gradients._asdict()


def inputs(arguments: Arguments) -> dict[str, Array]:
    """Name the arrays that were given and carry a gradient (S13)."""
    named = zip(("x", *VECTORS), arguments[1:6], strict=True)
    absent = ("running_mean", "running_var") if arguments.training else ()
    return {name: array for name, array in named if array is not None and name not in absent}


def backward(arguments: Arguments, residuals: Any, dy: Array) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    what, given = arrays.describe(dy), inputs(arguments)
    dx = arrays.new(what, type(arguments.x))
    vectors = Pull(arguments, residuals)([dy], dx)
    return Gradients(dx, *(_sent(vectors[name], arguments.dtype, given.get(name), what.device) for name in VECTORS))


def double_backward(arguments: Arguments, residuals: Any, dy: Array, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`."""
    form = operators if isinstance(residuals, operators.Residuals) else host
    x, given = arguments.x, inputs(arguments)
    with tape.paused(), np.errstate(all="ignore"):
        found = form.double_backward(arguments, residuals, dy, cotangents)
        like_x = (arrays.rounded(z, x) if isinstance(z, np.ndarray) else z for z in found[:2])
        device = arrays.describe(x).device
        named = found._asdict()
        vectors = (_sent(named[name], arguments.dtype, given.get(name), device) for name in SECOND)
        return SecondGradients(*like_x, *vectors)


def of_moments(
    form: Any, arguments: Arguments, found: Moments, cotangents: Sequence[Array], dx: Array
) -> Mapping[str, Host]:
    """Differentiate ``moments``: ``dmean / count + 2 * (x - mean) * dm2`` has the form of inference."""
    dmean, dm2 = map(arrays.fetch, cotangents)
    shift = dmean / np.maximum(found.count, 1).astype(dmean.dtype)
    vectors = dict(zip(VECTORS, (2 * dm2, shift, found.mean, np.ones_like(dmean)), strict=True))
    with tape.paused(), np.errstate(all="ignore"):
        form.forward(arguments._replace(training=False, **vectors), dx)
    return {}


def of_merge_moments(a: Moments, b: Moments, cotangents: Sequence[Array], _: Array) -> Mapping[str, Host]:
    """Differentiate ``merge_moments`` (S15)."""
    dmean, dm2 = (arrays.fetch(z).astype(float) for z in cotangents)
    share = b.count / np.maximum(a.count + b.count, 1)
    along = (dmean + 2 * dm2 * (b.mean.astype(float) - a.mean) * a.count) * share
    gradients = {"a.mean": dmean - along, "b.mean": along, "a.m2": dm2, "b.m2": dm2}
    return {name: gradient.astype(a.mean.dtype) for name, gradient in gradients.items()}


def of_fold(arguments: Arguments, cotangents: Sequence[Array], _: Array) -> Mapping[str, Host]:
    """Differentiate ``fold``."""
    dscale, dshift = (arrays.fetch(z).astype(float) for z in cotangents)
    mean, gamma = arguments.running_mean, 1.0 if arguments.gamma is None else arguments.gamma
    square = arguments.running_var.astype(float) + arguments.eps
    r = np.divide(1, np.sqrt(square), out=np.zeros_like(square), where=square != 0)
    slope = (dscale - mean * dshift) * r
    gradients = slope, dshift, -gamma * r * dshift, -gamma * slope * r * r / 2
    return {name: gradient.astype(mean.dtype) for name, gradient in zip(VECTORS, gradients, strict=True)}


def _sent(vector: Host | None, dtype: str, given: Array | None, device: Any) -> Array | None:
    """Bring a gradient to the kind of array that was given; None where none was."""
    return None if vector is None or given is None else arrays.place(vector.astype(dtype), device, type(given))
