"""MXNet: ``mx.nd.BatchNorm`` on the CPU, with ``fix_gamma=False``.

The CPU operator changes its running statistics in the backward pass, not in the forward (clause S7 says the
opposite). ``train`` therefore runs a backward pass, too, as a training step does; without it, it would
return the statistics that it was given.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.shared import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polybn.conformance.adapter import Array


class MXNet:
    """The operator behind ``gluon.nn.BatchNorm``."""

    def __init__(self) -> None:
        with _removed_names():
            self._mx = load("mxnet", "--no-deps mxnet==1.9.1 requests graphviz setuptools")

    def info(self) -> Info:
        """Declare what the operator's documentation and source say."""
        return Info(
            name="MXNet, statistics after backward",
            version=f"{self._mx.__version__}, CPU",
            empty="error",
            dtypes=("float16", "float32", "float64"),
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Run a forward and a backward pass, and fetch the output and the statistics."""
        data, scale, shift, mean, var = map(self._array, (x, *vectors))
        with self._recorded(data, scale, shift):
            y = self._mx.nd.BatchNorm(
                data, scale, shift, mean, var, fix_gamma=False, momentum=momentum, eps=eps, axis=axis
            )
        y.backward()
        return y.asnumpy(), mean.asnumpy(), var.asnumpy()

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Call the operator outside ``autograd.record``."""
        arrays = map(self._array, (x, *vectors))
        y: Array = self._mx.nd.BatchNorm(*arrays, fix_gamma=False, eps=eps, axis=axis).asnumpy()
        return y

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``backward``."""
        inputs = data, scale, shift = tuple(map(self._array, (x, gamma, beta)))
        mean, var = self._mx.nd.zeros_like(scale), self._mx.nd.ones_like(scale)
        with self._recorded(*inputs):
            y = self._mx.nd.BatchNorm(data, scale, shift, mean, var, fix_gamma=False, eps=eps, axis=axis)
        y.backward(self._array(dy))
        return data.grad.asnumpy(), scale.grad.asnumpy(), shift.grad.asnumpy()

    def _array(self, host: Array) -> Any:
        return self._mx.nd.array(host, dtype=host.dtype.name)

    @contextlib.contextmanager
    def _recorded(self, *inputs: Any) -> Iterator[None]:
        for array in inputs:
            array.attach_grad()
        with self._mx.autograd.record():
            yield


def _never(*_: object, **__: object) -> None:
    raise NotImplementedError("removed from NumPy")


# MXNet 1.9.1 fetches these from NumPy while it is imported, though NumPy no longer has them; batch norm calls none.
REMOVED = {
    **{"bool": np.bool_, "int": int, "float_": np.float64, "PZERO": 0.0, "NZERO": -0.0, "NINF": -np.inf},
    **dict.fromkeys(("PINF", "Inf", "Infinity", "infty"), np.inf),
    **dict.fromkeys(("NaN", "NAN"), np.nan),
    **{"product": np.prod, "cumproduct": np.cumprod, "alltrue": np.all, "sometrue": np.any, "in1d": np.isin},
    **{"row_stack": np.vstack, "round_": np.round},
    **dict.fromkeys(("msort", "trapz", "mirr", "npv", "pmt", "ppmt", "pv", "rate"), _never),
}


@contextlib.contextmanager
def _removed_names() -> Iterator[None]:
    """Give NumPy its removed names back while MXNet is imported."""
    lent = {name: value for name, value in REMOVED.items() if name not in vars(np)}
    for name, value in lent.items():
        setattr(np, name, value)
    try:
        yield
    finally:
        for name in lent:
            delattr(np, name)
