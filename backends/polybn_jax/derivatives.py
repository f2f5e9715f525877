"""Clause S13: the tangent of one call, from which JAX derives everything else."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polybn.arguments import check_arrays, check_cotangents, check_dy, check_record
from polybn.spec import Gradients, SecondGradients
from polybn_jax import kernels
from polybn_jax.kernels import AxisName, Statistics, averages, mask, standardized
from polybn_jax.reductions import spread, spread_both


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def normalize(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    s: Statistics,
    kept: jax.Array | None,
    counts: jax.Array | None,  # noqa: ARG001  # the tangent rule reads both
    axis_name: AxisName,  # noqa: ARG001
) -> jax.Array:
    """Normalize, scale and shift (S3); 0 in deleted places.

    ``s`` are statistics of the batch (``counts`` given), or running statistics. The tangent rule is that of the whole
    call: in training the tangent of ``x`` stands for that of ``s``, too.
    """
    y = standardized(x, s, kept)
    if gamma is not None:
        y = y * spread(gamma, y)
    if beta is not None:
        y = y + spread(beta, y)
    return mask(y, kept)


@normalize.defjvp
def _normalize_jvp(axis_name, primals, tangents):  # type: ignore[no-untyped-def]
    x, gamma, _, s, kept, counts = primals
    y = normalize(*primals, axis_name)
    return y, tangent(x, gamma, s, kept, counts, axis_name, *tangents[:4])


def tangent(  # type: ignore[no-untyped-def]
    x, gamma, s, kept, counts, axis_name, dx, dgamma, dbeta, ds: Statistics
) -> jax.Array:
    """Map tangents of the arguments to that of ``y``; its transpose is S13."""
    xhat = standardized(x, s, kept)
    scale = s.slope if gamma is None else s.slope * gamma
    a = mask(dx, kept) * spread(scale, xhat)
    zero = jnp.zeros_like(scale)
    shift, stretch = (zero if z is None else z for z in (dbeta, dgamma))
    if counts is not None:
        mean, product = averages(a, a * xhat, counts, axis_name)
        shift, stretch = shift - mean, stretch - product
    else:
        shift = shift - scale * ds.mean
        stretch = stretch - scale * (s.slope * ds.variance) / 2
    shift, stretch = spread_both(shift, stretch, a)
    dy = (a + shift) + xhat * stretch
    return mask(dy, kept)


class Pullback:
    """The derivative of one call of :func:`batch_norm_vjp`, as a function of ``dy``; call it as often as you like."""

    def __init__(
        self,
        x: jax.Array,
        gamma: jax.Array | None,
        beta: jax.Array | None,
        where: jax.Array | None,
        statistics: Statistics,
        eps: Any,
        *,
        axis: int,
        training: bool,
        axis_name: AxisName,
    ) -> None:
        self._call = (x, gamma, beta, where, statistics, eps)
        self._how = {"axis": axis, "training": training, "axis_name": axis_name}

    def __call__(self, dy: jax.Array, /) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments."""
        x, gamma, beta, where, statistics, _ = self._call
        check_arrays("batch_norm_vjp", "JAX", is_array, dy=dy)
        check_dy(dy, x)
        return _pull(dy, x, gamma, beta, where, statistics, **self._how)

    def vjp(self, dy: jax.Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them."""
        return self(dy), SecondPullback(self._call, dy, self._how)


class SecondPullback:
    """The derivative of a pullback: from cotangents of :class:`Gradients` to cotangents of its arguments."""

    def __init__(self, call: tuple[Any, ...], dy: jax.Array, how: dict[str, Any]) -> None:
        self._call, self._dy, self._how = call, dy, how

    def __call__(self, cotangents: Gradients, /) -> SecondGradients:
        """Map cotangents of the gradients (None stands for 0) to cotangents of ``dy`` and the arguments."""
        x, gamma, beta, where, s, eps = self._call
        check_record("batch_norm_vjp", "cotangents", cotangents, Gradients)
        given = cotangents._asdict()
        check_arrays("batch_norm_vjp", "JAX", is_array, **{f"the cotangent of {k}": v for k, v in given.items()})
        inference = None if self._how["training"] else s.mean
        expected = {"x": x, "gamma": gamma, "beta": beta, "running_mean": inference, "running_var": inference}
        check_cotangents(expected, given)
        whole = Gradients(
            *(None if of is None else jnp.zeros_like(of) if z is None else z
              for of, z in zip(expected.values(), cotangents, strict=True))
        )  # fmt: skip
        return _pull_again(whole, self._dy, x, gamma, beta, where, s, eps, **self._how)


@partial(jax.jit, static_argnames=("axis", "training", "axis_name"))
def _pull(  # type: ignore[no-untyped-def]
    dy, x, gamma, beta, where, s: Statistics, *, axis: int, training: bool, axis_name: AxisName
) -> Gradients:
    view = kernels.view(x, where, axis, axis_name)
    counts = view.counts if training else None
    given = (view.x, gamma, beta, s)
    _, transpose = jax.vjp(lambda *t: tangent(view.x, gamma, s, view.kept, counts, axis_name, *t), *given)
    dx, dgamma, dbeta, ds = transpose(dy.reshape(view.x.shape).astype(view.x.dtype))
    inference = (None, None) if training else (ds.mean, ds.variance)
    return Gradients(dx.reshape(x.shape).astype(x.dtype), dgamma, dbeta, *inference)


@partial(jax.jit, static_argnames=("axis", "training", "axis_name"))
def _pull_again(  # type: ignore[no-untyped-def]
    cotangents: Gradients,
    dy,
    x,
    gamma,
    beta,
    where,
    s: Statistics,
    eps,
    *,
    axis: int,
    training: bool,
    axis_name: AxisName,
) -> SecondGradients:
    def gradients(dy, x, gamma, mean, variance):  # type: ignore[no-untyped-def]
        if training:
            view = kernels.view(x, where, axis, axis_name)
            again = kernels.batch_statistics(view.x, view.kept, view.counts, eps, axis_name)
        else:
            again = kernels.running_statistics(mean, variance, eps)
        return _pull(dy, x, gamma, beta, where, again, axis=axis, training=training, axis_name=axis_name)

    # What is wide stays wide until the end: halves would be rounded at each place that contributes to them.
    wide = [z.astype(eps.dtype) for z in (dy, x, cotangents.x)]
    _, transpose = jax.vjp(gradients, *wide[:2], gamma, s.mean, s.variance)
    of_dy, of_x, of_gamma, *inference = transpose(cotangents._replace(x=wide[2]))
    of_dy, of_x = of_dy.astype(dy.dtype), of_x.astype(x.dtype)
    return SecondGradients(of_dy, of_x, of_gamma, *((None, None) if training else inference))


def is_array(value: object) -> bool:
    """Tell an array, or what stands for one under tracing."""
    return isinstance(value, jax.Array | jax.core.Tracer)
