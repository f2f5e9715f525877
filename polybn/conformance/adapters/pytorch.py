"""PyTorch: ``torch.nn.functional.batch_norm`` on the CPU, on contiguous and on channels-last tensors."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.shared import load, refuse_other_axes

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array


class PyTorch:
    """The function behind ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``.

    With ``channels_last``, tensors have that memory format (``channels_last_3d`` for rank 5). Their shapes stay
    ``(N, C, ...)``; only the strides differ, and the library uses other loops for them.
    """

    def __init__(self, *, channels_last: bool = False) -> None:
        self._torch = load("torch", "torch")
        self._formats = {4: self._torch.channels_last, 5: self._torch.channels_last_3d} if channels_last else {}

    def info(self) -> Info:
        """Declare what PyTorch's documentation of BatchNorm says."""
        return Info(
            name="PyTorch, channels last" if self._formats else "PyTorch",
            version=f"{self._torch.__version__}, CPU",
            momentum="new",
            running_variance="unbiased",
            single_value="error",
            dtypes=("float16", "bfloat16", "float32", "float64"),
            axes="second",
            ranks=tuple(self._formats) or (2, 3, 4, 5),
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Normalize by batch statistics; the running ones are updated in place, in copies."""
        refuse_other_axes("PyTorch", x, axis)
        scale, shift, mean, var = map(self._tensor, vectors)
        y = self._torch.nn.functional.batch_norm(self._data(x), mean, var, scale, shift, True, momentum, eps)
        return self._host(y), self._host(mean), self._host(var)

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Normalize by running statistics."""
        refuse_other_axes("PyTorch", x, axis)
        scale, shift, mean, var = map(self._tensor, vectors)
        return self._host(
            self._torch.nn.functional.batch_norm(self._data(x), mean, var, scale, shift, training=False, eps=eps)
        )

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate by ``torch.autograd.grad``."""
        refuse_other_axes("PyTorch", x, axis)
        inputs = data, scale, shift = self._data(x), self._tensor(gamma), self._tensor(beta)
        for tensor in inputs:
            tensor.requires_grad_()
        y = self._torch.nn.functional.batch_norm(data, None, None, scale, shift, training=True, eps=eps)
        dx, dgamma, dbeta = self._torch.autograd.grad(y, inputs, self._data(dy))
        return self._host(dx), self._host(dgamma), self._host(dbeta)

    def _data(self, host: Array) -> Any:
        tensor = self._tensor(host)
        return tensor.contiguous(memory_format=self._formats[host.ndim]) if self._formats else tensor

    def _tensor(self, host: Array) -> Any:
        copy = np.array(host, order="C")
        if copy.dtype.name == "bfloat16":  # torch.from_numpy does not know it
            return self._torch.from_numpy(copy.view(np.int16)).view(self._torch.bfloat16)
        return self._torch.from_numpy(copy)

    def _host(self, tensor: Any) -> Array:
        if tensor.dtype == self._torch.bfloat16:
            bits: Array = tensor.detach().view(self._torch.int16).numpy()
            return bits.view(load("ml_dtypes", "ml_dtypes").bfloat16)
        array: Array = tensor.detach().numpy()
        return array


channels_last = functools.partial(PyTorch, channels_last=True)
