"""Clause S13 over MXNet arrays: the pullback of one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polybn.arguments import check_arrays, check_dy
from polybn.spec import Array, Gradients
from polybn_mxnet import handles, memory
from polybn_mxnet.case import VECTORS, Case
from polybn_mxnet.memory import Host
from polybn_mxnet.passes import Passes
from polybn_mxnet.second_order import SecondPullback
from polybn_mxnet.statistics import Statistics


class Call(NamedTuple):
    """One forward call: what it was given, and the values that its derivative needs, which are its own."""

    arrays: dict[str, Array | None]
    passes: Passes
    case: Case
    training: bool
    kept: Any
    counts: Host
    statistics: Statistics
    gamma: Host | None
    xhat: Any

    def differentiate(self, dy: Array, dx: Array | None) -> dict[str, Host]:
        """Write dx, where it is wanted, and return the gradients of what there is one of per channel (S13)."""
        case = self.case
        if self.xhat is None:  # there are no values
            return dict.fromkeys(VECTORS, np.zeros(case.channels, case.dtype))
        with np.errstate(all="ignore"):
            r = self.statistics.inverse_root()
            slopes = r, np.ones_like(r) if self.gamma is None else self.gamma
            sum_g, sum_gx = self.passes.pull(
                dy, self.xhat, case, self.counts, self.training, slopes, self.kept, dx
            )  # fmt: skip
            if self.training:
                return {"gamma": sum_gx, "beta": sum_g}
            slope = slopes[0] * slopes[1]
            return dict(zip(VECTORS, (sum_gx, sum_g, -slope * sum_g, -slope * r * sum_gx / 2), strict=True))

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
        if dy is None:
            check_dy(dy, call.case.x)
        of_x, of_dy = call.case.x, handles.describe(dy)
        if of_dy != of_x:
            check_dy(of_dy, of_x)
            memory.check_contexts("batch_norm_vjp", x=of_x, dy=of_dy)
        dx = memory.new(of_x, type(call.arrays["x"]))
        vectors = call.differentiate(dy, dx)
        return Gradients(
            dx,
            *(
                memory.place(vectors[k], of_x.context, type(call.arrays[k])) if call.carries_gradient(k) else None
                for k in VECTORS
            ),
        )

    def vjp(self, dy: Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them."""
        return self(dy), SecondPullback(self._call, dy)
