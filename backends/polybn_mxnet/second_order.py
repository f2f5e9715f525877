"""Clause S13, second order: the derivative of a pullback, put together from the passes of the first.

Every array that comes out is ``z - p - xhat q`` for an array z and vectors p and q, which is what the passes'
``project`` computes; every vector is made of sums over arrays, or over arrays times xhat, which is their ``sums``. So
one text serves every form of the passes and every context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polybn.arguments import check_arrays, check_cotangents, check_record
from polybn.spec import Array, Gradients, SecondGradients
from polybn_mxnet import memory, tape
from polybn_mxnet.memory import Host

if TYPE_CHECKING:
    from polybn_mxnet.derivatives import Call


class Sums(NamedTuple):
    """What products add up to: g is dy, a the cotangent of dx, X is xhat. Shape ``(C,)``, float64."""

    g: Host
    gx: Host
    a: Host
    ax: Host
    ga: Host


class Vectors(NamedTuple):
    """Cotangents of dgamma, dbeta, drunning_mean and drunning_var. Shape ``(C,)``, float64."""

    b: Host
    c: Host
    e: Host
    f: Host


class Results(NamedTuple):
    """Cotangents of a pullback's arguments: arrays like x, and float64 vectors ``(C,)``."""

    dy: Array
    x: Array
    vectors: dict[str, Host]


class SecondPullback:
    """The derivative of a pullback: from cotangents of :class:`Gradients` to cotangents of its arguments.

    With the letters of :class:`Sums` and :class:`Vectors`, and ``P(z) = z - mean(z) - X mean(z X)``, training gives::

        of dy     = gamma r P(a) + b X + c
        of gamma  = r sum(a P(g))
        of x      = r P(h) - gamma r^2 X sum(a P(g)) / m,   h = b g - gamma r (mean(g X) a + mean(a X) g)

    and inference::

        of dy            = gamma r a + b X + c - gamma r e - gamma r^2 X f / 2
        of x             = r g (b - gamma r^2 f / 2)
        of gamma         = sum(g (r a - r e - r^2 X f / 2))
        of running_mean  = -sum(of x)
        of running_var   = -r^2 / 2 sum(g (gamma r a + b X - gamma r e - 3/2 gamma r^2 X f))
    """

    def __init__(self, call: Call, dy: Array) -> None:
        self._call = call
        with tape.paused():
            self._g = memory.widened(dy, call.case.dtype) if dy.size else None

    def __call__(self, cotangents: Gradients, /) -> SecondGradients:
        """Map cotangents of the gradients (None stands for 0) to cotangents of ``dy`` and the arguments.

        Parameters
        ----------
        cotangents : Gradients
            For each gradient None, or an MXNet array of its shape and dtype.

        Raises
        ------
        BackendError, DTypeError, ShapeError, DomainError
            If a cotangent does not fit the gradient that it belongs to.
        """
        self._check(cotangents)
        call = self._call
        with tape.paused(), np.errstate(all="ignore"):
            results = self._nothing() if self._g is None else self._differentiate(self._g, cotangents)
            vectors = {
                name: memory.send(value.astype(call.case.dtype), call.arrays[name])
                for name, value in results.vectors.items()
                if call.arrays[name] is not None
            }
            return SecondGradients(results.dy, results.x, vectors.pop("gamma", None), **vectors)

    def _check(self, cotangents: Gradients) -> None:
        check_record("batch_norm_vjp", "cotangents", cotangents, Gradients)
        given = cotangents._asdict()
        named = {f"the cotangent of {name}": value for name, value in given.items()}
        check_arrays("batch_norm_vjp", "MXNet", memory.is_array, **named)
        absent = ("running_mean", "running_var") if self._call.training else ()
        expected = {name: None if name in absent else array for name, array in self._call.arrays.items()}
        check_cotangents(*({k: memory.described(v) for k, v in z.items()} for z in (expected, given)))
        of_x, of_named = memory.described(self._call.arrays["x"]), {k: memory.described(v) for k, v in named.items()}
        memory.check_contexts("batch_norm_vjp", x=of_x, **of_named)

    def _nothing(self) -> Results:
        names = ("gamma",) if self._call.training else ("gamma", "running_mean", "running_var")
        x: Array = self._call.arrays["x"]
        zero = np.zeros(self._call.case.channels)
        of_dy, of_x = (memory.send(np.empty(x.shape, x.dtype), x) for _ in range(2))
        return Results(of_dy, of_x, dict.fromkeys(names, zero))

    def _differentiate(self, g: Array, cotangents: Gradients) -> Results:
        x: Array = self._call.arrays["x"]
        dtype = self._call.case.dtype
        a = memory.send(np.zeros(x.shape, dtype), g) if cotangents.x is None else memory.widened(cotangents.x, dtype)
        zero = np.zeros(self._call.case.channels)
        v = Vectors(*(zero if z is None else memory.vector(z).astype(np.float64) for z in cotangents[1:]))
        s = Sums(*self._sums(g), *self._sums(a), self._sums(g * a)[0])
        return (self._training if self._call.training else self._inference)(g, a, s, v)

    def _training(self, g: Array, a: Array, s: Sums, v: Vectors) -> Results:
        r, gamma = self._slopes()
        m, scale = np.maximum(self._call.counts, 1), gamma * r
        q_g, q_a = s.gx / m, s.ax / m
        a_dot_pg = s.ga - s.g / m * s.a - q_g * s.ax
        of_dy = self._combined(self._times(a, scale), scale * s.a / m - v.c, scale * q_a - v.b)
        h = self._times(g, r * (v.b - scale * q_a)) - self._times(a, r * scale * q_g)
        sum_h, sum_hx = self._sums(h)
        of_x = self._combined(h, sum_h / m, sum_hx / m + scale * r * a_dot_pg / m)
        return Results(of_dy, of_x, {"gamma": r * a_dot_pg})

    def _inference(self, g: Array, a: Array, s: Sums, v: Vectors) -> Results:
        r, gamma = self._slopes()
        scale, half = gamma * r, r * r * v.f / 2
        slope, zero = r * (v.b - gamma * half), np.zeros_like(r)
        of_dy = self._combined(self._times(a, scale), scale * v.e - v.c, gamma * half - v.b)
        of_x = self._combined(self._times(g, slope), zero, zero)
        per_gamma = r * (s.ga - v.e * s.g) - half * s.gx
        of_var = -r * r / 2 * (gamma * per_gamma + (v.b - 2 * gamma * half) * s.gx)
        return Results(of_dy, of_x, {"gamma": per_gamma, "running_mean": -slope * s.g, "running_var": of_var})

    def _slopes(self) -> tuple[Host, Host]:
        r = self._call.statistics.inverse_root().astype(np.float64)
        return r, np.ones_like(r) if self._call.gamma is None else self._call.gamma.astype(np.float64)

    def _sums(self, z: Array) -> tuple[Host, Host]:
        call = self._call
        return call.passes.sums(z, call.xhat, call.case, call.kept)

    def _combined(self, z: Array, p: Host, q: Host) -> Array:
        call, dtype = self._call, self._call.case.dtype
        one, out = np.ones(call.case.channels, dtype), memory.empty(call.arrays["x"])
        means = p.astype(dtype), q.astype(dtype)
        call.passes.project(z, call.xhat, call.case, means, (one, one), call.kept, out)
        return out

    def _times(self, z: Array, vector: Host) -> Array:
        case = self._call.case
        shape = [1] * z.ndim
        shape[case.axis] = case.channels
        return z * memory.send(vector.astype(case.dtype).reshape(shape), z)
