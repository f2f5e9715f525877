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
from polybn.lenet.errors import CheckpointError, DataIntegrityError, DivergenceError, RunInUseError
from polybn.spec import (
    Affine,
    BackendError,
    BatchNormResult,
    DomainError,
    DTypeError,
    Gradients,
    Moments,
    SecondGradients,
    ShapeError,
    SingleValueWarning,
)
from polybn.version import __version__

if TYPE_CHECKING:
    from polybn import conformance, dialects, inspection, model_files, spec
    from polybn.lenet import checkpoints, exports, fashion_mnist, networks, runs, training
    from polybn.lenet.runs import Run
    from polybn.lenet.training import train
    from polybn.statistics.accumulator import Statistics

# These need NumPy and are imported on first use. The modules that train LeNet live in polybn.lenet; the public ones can
# be reached from here, too.
_LENET = ("checkpoints", "contact_sheet", "exports", "fashion_mnist", "networks", "runs", "training")
_LAZY_MODULES = {name: f"polybn.{name}" for name in ("cli", "conformance", "dialects", "inspection", "model_files")} | {
    name: f"polybn.lenet.{name}" for name in _LENET
}
_LAZY_NAMES = {
    "Run": "polybn.lenet.runs",
    "Statistics": "polybn.statistics.accumulator",
    "train": "polybn.lenet.training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(_LAZY_MODULES[name])
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
    "RunInUseError",
    "SecondGradients",
    "ShapeError",
    "SingleValueWarning",
    "Statistics",
    "__version__",
    "backend",
    "backends",
    "batch_norm",
    "batch_norm_vjp",
    "checkpoints",
    "conformance",
    "dialects",
    "exports",
    "fashion_mnist",
    "fold",
    "inspection",
    "merge_moments",
    "model_files",
    "moments",
    "networks",
    "runs",
    "spec",
    "train",
    "training",
]
