"""Batch normalization you can trust on any array.

One specification (:mod:`polybn.spec`), independent implementations over several array libraries, and
the tools to check any other. This module imports no array library: the type of your array picks the
backend, and only that backend is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polybn.dispatch import backend, backends
from polybn.functional import batch_norm, batch_norm_vjp, fold, merge_moments, moments
from polybn.layer import BatchNorm
from polybn.spec import (
    Affine,
    BackendError,
    BatchNormResult,
    CheckpointError,
    DataIntegrityError,
    DivergenceError,
    DomainError,
    DTypeError,
    Gradients,
    Moments,
    SecondGradients,
    ShapeError,
)

if TYPE_CHECKING:
    from polybn import checkpoints, conformance, fashion_mnist, networks, spec, training
    from polybn.training import Run, train

__version__ = "0.1.0"

# These need NumPy on the host; they are imported when they are first asked for.
_LAZY_MODULES = frozenset(
    {"checkpoints", "cli", "conformance", "contact_sheet", "fashion_mnist", "networks", "training"}
)
_LAZY_NAMES = {"train": "polybn.training", "Run": "polybn.training"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"polybn.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'polybn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})


__all__ = [
    "Affine",
    "BackendError",
    "BatchNorm",
    "BatchNormResult",
    "CheckpointError",
    "DTypeError",
    "DataIntegrityError",
    "DivergenceError",
    "DomainError",
    "Gradients",
    "Moments",
    "Run",
    "SecondGradients",
    "ShapeError",
    "backend",
    "backends",
    "batch_norm",
    "batch_norm_vjp",
    "checkpoints",
    "conformance",
    "fashion_mnist",
    "fold",
    "merge_moments",
    "moments",
    "networks",
    "spec",
    "train",
    "training",
]
