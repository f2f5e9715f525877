"""CPU tensors: the functions for NumPy arrays compute on their memory, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

import polybn_numpy
from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_numpy.call import Residuals

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

LINES = 5
"""The number of rows of the saved statistics."""

_operators_only = ContextVar("polybn_torch_operators_only", default=False)


@contextmanager
def operators_only() -> Iterator[None]:
    """Compute by PyTorch's operations within this block even on the CPU, as for other devices."""
    token = _operators_only.set(True)
    try:
        yield
    finally:
        _operators_only.reset(token)


def serves(x: torch.Tensor) -> bool:
    """Return whether the host can compute on the memory of a tensor."""
    return x.device.type == "cpu" and not _operators_only.get()


def saved_dtype(x: torch.Tensor) -> torch.dtype:  # noqa: ARG001
    """Return the dtype of saved statistics."""
    return torch.float64


def view(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy view of a CPU tensor."""
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def view_or_none(tensor: torch.Tensor | None) -> NDArray[Any] | None:
    """Return a NumPy view of a CPU tensor; None stays None."""
    return None if tensor is None else view(tensor)


def forward(arguments: Arguments) -> tuple[torch.Tensor, Any, Any, torch.Tensor, torch.Tensor | None]:
    """Return ``y``, the running statistics, and for the derivative the saved statistics and counts."""
    y = torch.empty_like(arguments.x)
    result, residuals = polybn_numpy.forward(seen(arguments)._replace(own={"out": view(y)}), differentiable=True)
    assert residuals is not None
    running = (None if new is None else torch.from_numpy(new) for new in (result.running_mean, result.running_var))
    counts = residuals.counts
    return y, *running, torch.from_numpy(residuals.saved), None if counts is None else torch.from_numpy(counts)


def backward(arguments: Arguments, saved: torch.Tensor, counts: torch.Tensor | None, dy: torch.Tensor) -> list[Any]:
    """Return the gradients of the five arguments (S13)."""
    dx = torch.empty_like(arguments.x)
    residuals = Residuals(view_or_none(counts), view(saved))
    found = polybn_numpy.backward(seen(arguments), residuals, view(dy), out=view(dx))
    return [dx, *(None if gradient is None else torch.from_numpy(gradient) for gradient in found[1:])]


def double_backward(
    arguments: Arguments, saved: torch.Tensor, counts: torch.Tensor | None, dy: torch.Tensor, cotangents: Gradients
) -> SecondGradients:
    """Differentiate :func:`backward`."""
    residuals = Residuals(view_or_none(counts), view(saved))
    seen_cotangents = Gradients(*map(view_or_none, cotangents))
    found = polybn_numpy.double_backward(seen(arguments), residuals, view(dy), seen_cotangents)
    return SecondGradients(*map(tensor, found))


def tensor(host: NDArray[Any] | None) -> torch.Tensor | None:
    """Return a tensor that shares the memory of an array; None stays None."""
    if host is None:
        return None
    if host.dtype == BFLOAT16:
        return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(host)


def seen(arguments: Arguments) -> Arguments:
    """Replace tensors by views of their memory."""
    x, gamma, beta, mean, var, where = map(view_or_none, arguments[1:7])
    return arguments._replace(x=x, gamma=gamma, beta=beta, running_mean=mean, running_var=var, where=where)
