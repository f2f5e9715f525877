"""The operator ``polybn_batch_norm``, which symbols may hold: what a hybridized block runs.

A function that is recorded by ``autograd`` cannot be part of a symbol; an ``mxnet.operator.CustomOp`` can. MXNet calls
it in a thread of its own when the inputs are there, and waits for nothing else meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn.spec import Array
from polybn_mxnet import memory, tape
from polybn_mxnet.batch_norm import compute
from polybn_mxnet.case import Case, of_batch_norm
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.statistics import Settings

OPERATOR = "polybn_batch_norm"
_REQUESTS = {"null": tape.NULL, "write": tape.WRITE, "inplace": tape.WRITE, "add": tape.ADD}


class Operator(mx.operator.CustomOp):
    """One place in a running graph. MXNet makes another where a forward pass starts before the last one's backward."""

    def __init__(self, scale: bool, center: bool, frozen: bool, axis: int, options: dict[str, Any]) -> None:
        super().__init__()
        self._scale, self._center, self._frozen, self._axis, self._options = scale, center, frozen, axis, options
        self._cases: dict[bool, Case] = {}

    def forward(
        self, is_train: bool, req: list[str], in_data: list[Array], out_data: list[Array], aux: list[Array]
    ) -> None:
        """Write ``y``, and in training the running statistics."""
        x, gamma, beta = in_data
        arrays = {
            "x": x, "gamma": gamma if self._scale else None, "beta": beta if self._center else None,
            "running_mean": aux[0], "running_var": aux[1],
        }  # fmt: skip
        training = bool(is_train) and not self._frozen
        case = self._checked(arrays, training)
        y = out_data[0] if _REQUESTS[req[0]] == tape.WRITE else memory.empty(x)
        self._call, *running = compute(OPERATOR, arrays, case, y, training, Settings(**self._options))
        if y is not out_data[0]:
            self.assign(out_data[0], req[0], y)
        for host, array in zip(running, aux, strict=True):
            if training and host is not None:
                memory.put(host, array)

    def backward(
        self, req: list[str], out_grad: list[Array], in_data: list[Array], out_data: list[Array],
        in_grad: list[Array], aux: list[Array],
    ) -> None:  # fmt: skip
        """Write the gradients (S13); what is not used has gradient 0."""
        wanted = {}
        for name, array, request in zip(("x", "gamma", "beta"), in_grad, req, strict=True):
            if not self._call.carries_gradient(name):
                self.assign(array, request, 0)
            elif request != "null":
                wanted[name] = array, _REQUESTS[request]
        tape.differentiate(self._call, out_grad[0], wanted)

    def _checked(self, arrays: dict[str, Array | None], training: bool) -> Case:
        # Shapes and dtypes are those that MXNet made the operator for: they are checked once.
        if training not in self._cases:
            self._cases[training] = of_batch_norm(
                "gluon.BatchNorm", *map(memory.described, arrays.values()), None,
                training=training, axis=self._axis, **self._options,
            )  # fmt: skip
        return self._cases[training]


class Properties(mx.operator.CustomOpProp):
    """What MXNet must know of the operator before it runs. Options arrive as strings, those of a loaded symbol, too."""

    def __init__(
        self, scale: str, center: str, frozen: str, axis: str, momentum: str, eps: str, running_variance: str
    ) -> None:
        super().__init__(need_top_grad=True)
        self._flags, self._axis = [flag == "True" for flag in (scale, center, frozen)], int(axis)
        self._options = {"momentum": float(momentum), "eps": float(eps), "running_variance": running_variance}

    def list_arguments(self) -> list[str]:
        """Name the inputs."""
        return ["data", "gamma", "beta"]

    def list_auxiliary_states(self) -> list[str]:
        """Name what a forward pass changes."""
        return ["running_mean", "running_var"]

    def infer_shape(self, in_shape: list[list[int]]) -> tuple[list[list[int]], ...]:
        """Give every vector the length of the channel axis."""
        channels = [in_shape[0][self._axis]]
        return [in_shape[0], channels, channels], [in_shape[0]], [channels, channels]

    def infer_type(self, in_type: list[Any]) -> tuple[list[Any], ...]:
        """Give ``y`` the type of ``x``, and the vectors that of the statistics (S6)."""
        vector = np.float64 if in_type[0] == np.float64 else np.float32
        return [in_type[0], vector, vector], [in_type[0]], [vector, vector]

    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> Operator:
        """Make the operator for inputs of these shapes and types."""
        scale, center, frozen = self._flags
        return Operator(scale, center, frozen, self._axis, self._options)


mx.operator.register(OPERATOR)(Properties)
