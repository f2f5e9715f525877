"""Tensors of other devices: PyTorch's operations, in the form for every library of the standard."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch

from polybn.arguments import Arrays
from polybn.spec import Arguments, Gradients, SecondGradients
from polybn_array_api import batch_norm, derivatives
from polybn_array_api.arithmetic import Statistics
from polybn_array_api.layout import layout_of

LINES = len(Statistics._fields)
"""The number of rows of the saved statistics."""


def saved_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of saved statistics."""
    return layout_of(xp, _ANY._replace(x=x), x).wide


def forward(arguments: Arguments) -> tuple[torch.Tensor, Any, Any, torch.Tensor, None]:
    """Return ``y``, the running statistics, and the statistics as rows of one tensor."""
    result, s = batch_norm.forward(xp, arguments)
    x = arguments.x
    if s is None:
        return *result, x.new_empty((LINES, 0)), None
    layout = layout_of(xp, arguments, x)
    lines = [torch.ones_like(s.r) if z is None else z.expand_as(s.r) for z in s]
    saved = torch.stack(lines).reshape(len(lines), -1)
    y = torch.empty_like(x).copy_(result.y)  # in the memory layout of x
    return y, result.running_mean, result.running_var, saved.to(layout.wide), None


def backward(arguments: Arguments, saved: torch.Tensor, counts: None, dy: torch.Tensor) -> list[Any]:  # noqa: ARG001
    """Return the gradients of the five arguments (S13)."""
    dx, *rest = derivatives.backward(xp, arguments, _statistics(arguments, saved), dy)
    return [torch.empty_like(arguments.x).copy_(dx), *rest]


def double_backward(
    arguments: Arguments,
    saved: torch.Tensor,
    counts: None,  # noqa: ARG001
    dy: torch.Tensor,
    cotangents: Gradients,
) -> SecondGradients:
    """Differentiate :func:`backward`."""
    return derivatives.double_backward(xp, arguments, _statistics(arguments, saved), dy, cotangents)


_ANY = Arguments("", *Arrays(), True, 1.0, 0.0, False, 0, 0, 0, "float32")
"""The arguments of a call without tensors."""


def _statistics(arguments: Arguments, saved: torch.Tensor) -> Statistics | None:
    if not saved.numel():
        return None
    s = Statistics(*saved[:, :, None])
    return s._replace(scale=None, unit=None) if layout_of(xp, arguments, arguments.x).narrow else s
