"""Batch norm as modules with PyTorch's interface: its momentum, its unbiased running variance, its state, its errors.

Each module is a subclass of the one that it replaces, so that initialisation, ``state_dict`` and all that other code
uses of ``torch.nn.BatchNorm2d`` stay the same. Only the arithmetic changes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from polybn.admission import know
from polybn.arguments import Arrays, Options, check_batch_norm, describe_arrays
from polybn.dispatch import backend
from polybn.spec import Arguments, Description, DomainError
from polybn_torch import ops

Model = TypeVar("Model", bound=torch.nn.Module)


class _BatchNorm:
    """The forward call that the three modules share."""

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        """Normalize by the batch's statistics in training or without running statistics, else by the running ones."""
        if not torch.compiler.is_compiling():
            describe_arrays(type(self).__name__, backend("torch"), ("x",), (input,))
        self._check_input_dim(input)
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        arguments = self._arguments(input, self.training or self.running_mean is None)
        y, mean, var, *_ = ops.normalized(arguments)
        if tracks:
            with torch.no_grad():
                self.running_mean.copy_(mean)
                self.running_var.copy_(var)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        return y

    def _check_training(self: Any, x: torch.Tensor) -> None:
        """Refuse calls that PyTorch refuses and the specification allows."""
        word = f"polybn.{type(self).__name__}"
        if self.eps <= 0:
            raise DomainError(f"{word}: eps must be positive in training; got {self.eps!r} (1e-5 is the default)")
        if x.dim() > 1 and x.numel() == x.shape[1] > 0:
            raise DomainError(
                f"{word}: input must have more than 1 value per channel in training; got shape {tuple(x.shape)} "
                "(the variance of one value is 0, and its unbiased variance is not defined)"
            )

    def _arguments(self: Any, x: torch.Tensor, training: bool) -> Arguments:
        """Check a call as the public functions do, and return it as one record."""
        share, batches = self.momentum, self.num_batches_tracked
        if share is None:  # the mean over all batches
            counts = training and self.track_running_stats and batches is not None
            share = 1.0 / (float(batches) + 1.0) if counts else 0.0
        elif not 0 <= share <= 1:
            raise DomainError(
                f"polybn.{type(self).__name__}: momentum must lie in [0, 1], or be None; got {share!r} "
                "(the weight of the new value, as PyTorch has it)"
            )
        momentum = 1.0 - share
        used = self.running_mean is not None and (not training or self.track_running_stats)
        running: tuple[Any, ...] = (self.running_mean, self.running_var) if used else (None, None)
        if not training and torch.is_grad_enabled():  # a later training step overwrites them, before the derivative
            running = tuple(None if v is None else v.clone() for v in running)
        vectors = self.weight, self.bias, *running
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        # The whole model may have been cast to a half type, in which statistics and parameters must not compute (S6).
        vectors = tuple(v.to(wide) if v is not None and v.dtype in _HALVES else v for v in vectors)
        word = type(self).__name__
        if training:
            self._check_training(x)
        options = Options(training, momentum, self.eps, 1, "unbiased")
        described = Arrays(*(None if z is None else _describe(z) for z in (x, *vectors)))
        if torch.compiler.is_compiling():  # Dynamo cannot look into a cache
            known = check_batch_norm(word, described, options)
        else:
            known = know((described,), options, lambda: check_batch_norm(word, described, options))
        return Arguments._make((word, *Arrays(x, *vectors), *known, {}))


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d`, computed as in :mod:`polybn.spec`, for input of shape ``(N, C)`` or ``(N, C, L)``.

    Examples
    --------
    >>> import torch, polybn_torch
    >>> norm = polybn_torch.BatchNorm1d(1)
    >>> y = norm(torch.tensor([[1e4], [1e4 + 2]]))
    >>> [round(value, 4) for value in y.flatten().tolist()]
    [-1.0, 1.0]
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`, computed as in :mod:`polybn.spec`, for input of shape ``(N, C, H, W)``."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d`, computed as in :mod:`polybn.spec`, for input of shape ``(N, C, D, H, W)``."""


PAIRS: dict[type[Any], type[Any]] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
}
"""For each module of PyTorch, the one that replaces it."""


def convert(model: Model, *, back: bool = False) -> Model:
    """Replace the batch norms of a model by those of PolyBN, in place, or back; parameters and statistics stay.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or one batch norm. Subclasses of PyTorch's batch norms, such as ``SyncBatchNorm``, stay as they are.
    back : bool, default False
        Replace PolyBN's modules by PyTorch's own.

    Returns
    -------
    torch.nn.Module
        The same model.

    Examples
    --------
    >>> import torch, polybn_torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5), torch.nn.BatchNorm2d(3))
    >>> type(polybn_torch.convert(model)[1]).__module__
    'polybn_torch.nn'
    """
    pairs = {new: old for old, new in PAIRS.items()} if back else PAIRS
    for norm in model.modules():
        if type(norm) in pairs:
            norm.__class__ = pairs[type(norm)]  # the module stays the same one for whoever holds it, hooks for example
    return model


_HALVES = (torch.float16, torch.bfloat16)


def _describe(tensor: torch.Tensor) -> Description:
    return Description(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type)
