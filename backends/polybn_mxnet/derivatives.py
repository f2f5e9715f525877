"""Clause S13 over MXNet arrays: the pullback of one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polybn.arguments import Problem, check_arrays, check_dy
from polybn.spec import Array, Gradients
from polybn_mxnet import memory
from polybn_mxnet.memory import Host
from polybn_mxnet.passes import Passes
from polybn_mxnet.second_order import SecondPullback
from polybn_mxnet.statistics import Statistics

PARAMETERS = ("gamma", "beta", "running_mean", "running_var")


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

    def differentiate(self, dy: Array, dx: Array | None) -> dict[str, Host]:
        """Write dx, where it is wanted, and return the gradients of what there is one of per channel (S13)."""
        problem, passes, kept = self.problem, self.passes, self.kept
        if self.xhat is None:  # there are no values
            return dict.fromkeys(PARAMETERS, np.zeros(problem.channels, problem.dtype))
        with np.errstate(all="ignore"):
            wide = passes.sums(dy, self.xhat, problem, kept)
            sum_g, sum_gx = (z.astype(problem.dtype) for z in wide)
            r = self.statistics.inverse_root()
            gamma = np.ones_like(r) if self.gamma is None else self.gamma
            if dx is not None:
                m = np.maximum(self.counts, 1)
                mean_g, mean_gx = ((z / m).astype(problem.dtype) for z in wide)
                means = (mean_g, mean_gx) if self.training else None
                passes.project(dy, self.xhat, problem, means, (r, gamma), kept, dx)
            slope = gamma * r
            return dict(zip(PARAMETERS, (sum_gx, sum_g, -slope * sum_g, -slope * r * sum_gx / 2), strict=True))

    def carries_gradient(self, name: str) -> bool:
        """Tell whether an argument was given and the output depends on it (S13)."""
        return self.arrays[name] is not None and not (self.training and name.startswith("running"))


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
        x: Array = call.arrays["x"]
        dx = memory.empty(x) if x.size else memory.send(np.empty(x.shape, x.dtype), x)
        vectors = call.differentiate(dy, dx)
        return Gradients(
            dx, *(memory.send(vectors[k], call.arrays[k]) if call.carries_gradient(k) else None for k in PARAMETERS)
        )

    def vjp(self, dy: Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them."""
        return self(dy), SecondPullback(self._call, dy)
