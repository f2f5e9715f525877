"""Batch normalization you can trust on any array.

One specification (:mod:`polybn.spec`), independent implementations over several array libraries, and
the tools to check any other. This module imports no array library: the type of your array picks the
backend, and only that backend is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polybn import conformance, dialects, inspection, model_files, spec
    from polybn.dispatch import backend, backends
    from polybn.functional import batch_norm, batch_norm_vjp, fold, merge_moments, moments
    from polybn.layer import BatchNorm
    from polybn.lenet import checkpoints, exports, fashion_mnist, networks, runs, training
    from polybn.lenet.errors import CheckpointError, DataIntegrityError, DivergenceError, RunInUseError
    from polybn.lenet.runs import Run
    from polybn.lenet.training import train
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
    from polybn.statistics.accumulator import Statistics
    from polybn.version import __version__

# All names are imported on first use: some need NumPy, and the command polybn passes here before it sees to Ctrl-C.
# The modules that train LeNet live in polybn.lenet; the public ones can be reached from here, too.
_MODULES = {
    "polybn": "arguments cli conformance dialects dispatch functional inspection layer lenet model_files options "
    "pullback spec version",
    "polybn.lenet": "checkpoints contact_sheet exports fashion_mnist networks runs training",
}
_NAMES = {
    "polybn.dispatch": "backend backends",
    "polybn.functional": "batch_norm batch_norm_vjp fold merge_moments moments",
    "polybn.layer": "BatchNorm",
    "polybn.lenet.errors": "CheckpointError DataIntegrityError DivergenceError RunInUseError",
    "polybn.lenet.runs": "Run",
    "polybn.lenet.training": "train",
    "polybn.spec": "Affine BackendError BatchNormResult DTypeError DomainError Gradients Moments SecondGradients "
    "ShapeError SingleValueWarning",
    "polybn.statistics.accumulator": "Statistics",
    "polybn.version": "__version__",
}
_HOMES = {name: home for lazy in (_MODULES, _NAMES) for home, names in lazy.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polybn' has no attribute {name!r}")
    home = _HOMES[name]
    value = importlib.import_module(f"{home}.{name}" if home in _MODULES else home)
    if home not in _MODULES:
        value = getattr(value, name)
    globals()[name] = value  # later uses cost nothing more
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


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
