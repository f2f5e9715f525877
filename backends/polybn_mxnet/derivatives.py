"""Clause S13 over MXNet arrays: the pullback of one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polybn.arguments import Problem, check_arrays, check_dy
from polybn.spec import Array, Gradients
from polybn_mxnet import memory
from polybn_mxnet.memory import Host
from polybn_mxnet.passes import Passes
from polybn_mxnet.statistics import Statistics


class Kind(NamedTuple):
    """What there is to know of an argument once its values are no longer needed."""

    shape: tuple[int, ...]
    dtype: Any
    like: Array


class Call(NamedTuple):
    """One forward call: what it was given, and the values that its derivative needs, which are its own."""

    arrays: dict[str, Array | None]
    passes: Passes
    problem: Problem
    training: bool
    kept: Any
    counts: Host
    statistics: Statistics
    gamma: Host | None
    xhat: Any

    def differentiate(self, dy: Array) -> tuple[Array, dict[str, Host]]:
        """Return dx, and the gradients of what there is one of per channel (S13)."""
        problem, passes, kept = self.problem, self.passes, self.kept
        if self.xhat is None:
            zero = np.zeros(problem.channels, problem.dtype)
            return memory.send(np.zeros(dy.shape, dy.dtype), dy), dict.fromkeys(
                ("gamma", "beta", "running_mean", "running_var"), zero
            )
        with np.errstate(all="ignore"):
            sum_g, sum_gx = (z.astype(problem.dtype) for z in (passes.sums(dy, self.xhat, problem, kept)))
            r = self.statistics.inverse_root()
            slopes = (r,) if self.gamma is None else (r, self.gamma)
            means = None
            if self.training:
                m = np.maximum(self.counts, 1)
                means = ((sum_g / m).astype(problem.dtype), (sum_gx / m).astype(problem.dtype))
            dx = passes.project(dy, self.xhat, problem, means, slopes, kept)
            slope = r if self.gamma is None else self.gamma * r
            return dx, {
                "gamma": sum_gx,
                "beta": sum_g,
                "running_mean": -slope * sum_g,
                "running_var": -slope * r * sum_gx / 2,
            }


class Pullback:
    """The derivative of one call of :func:`batch_norm_vjp`, as a function of ``dy``; call it as often as you like."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, dy: Array, /) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments."""
        call = self._call
        check_arrays("batch_norm_vjp", "MXNet", memory.is_array, dy=dy)
        check_dy(memory.described(dy), memory.described(call.arrays["x"]))
        memory.check_contexts("batch_norm_vjp", x=call.arrays["x"], dy=dy)
        dx, rest = call.differentiate(dy)
        vectors = {}
        for name, value in rest.items():
            like = call.arrays[name]
            wanted = like is not None and not (call.training and name.startswith("running"))
            vectors[name] = memory.send(value, like) if wanted else None
        return Gradients(memory.as_kind(dx, call.arrays["x"]), **vectors)
