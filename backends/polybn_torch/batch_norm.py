"""The specification on tensors. Autograd can differentiate each function, and the call of batch norm twice."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch

import polybn_array_api.batch_norm as composed
import polybn_numpy
from polybn.spec import Affine, Arguments, BatchNormResult, Gradients, Moments, SecondGradients
from polybn_torch import host, ops


def forward(
    arguments: Arguments,
    *,
    differentiable: bool,  # noqa: ARG001  # the statistics are at hand in any case
) -> tuple[BatchNormResult, tuple[torch.Tensor, torch.Tensor | None]]:
    """Normalize (S1 to S12)."""
    found = ops.normalized(arguments)
    return unpacked(arguments, found), (found[3], found[4] if found[4].numel() else None)


def unpacked(arguments: Arguments, found: Any) -> BatchNormResult:
    """Return the results of the operator as a named tuple."""
    y, mean, var = found[:3]
    return BatchNormResult(y, None, None) if arguments.running_mean is None else BatchNormResult(y, mean, var)


def backward(arguments: Arguments, residuals: Any, dy: torch.Tensor) -> Gradients:
    """Map a cotangent of ``y`` to cotangents of the arguments (S13)."""
    saved, counts = residuals
    found = ops.differentiated(arguments, saved, counts, dy)
    wanted = (True, arguments.gamma is not None, arguments.beta is not None, *[not arguments.training] * 2)
    return Gradients(*(gradient if want else None for gradient, want in zip(found, wanted, strict=True)))


def double_backward(arguments: Arguments, residuals: Any, dy: torch.Tensor, cotangents: Gradients) -> SecondGradients:
    """Differentiate :func:`backward`."""
    found = torch.ops.polybn.differentiate_twice(
        *arguments[1:7], *residuals, dy, *cotangents, **ops.options_of(arguments)
    )
    wanted = (True, True, arguments.gamma is not None, *[not arguments.training] * 2)
    return SecondGradients(*(gradient if want else None for gradient, want in zip(found, wanted, strict=True)))


def moments(arguments: Arguments) -> Moments:
    """Measure ``x`` (S15)."""
    x = arguments.x
    if not host.serves(x) or (torch.is_grad_enabled() and x.requires_grad) or ops.transformed(x):
        return composed.moments(xp, arguments)
    return Moments(*map(torch.from_numpy, polybn_numpy.moments(host.seen(arguments))))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine two parts (S15)."""
    return composed.merge_moments(xp, a, b)


def fold(arguments: Arguments) -> Affine:
    """Turn inference into ``scale * x + shift``."""
    return composed.fold(xp, arguments)
