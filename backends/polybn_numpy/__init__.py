"""The NumPy backend: the specification's companion, in blocked NumPy on two threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn_numpy.batch_norm import batch_norm, batch_norm_vjp, fold, merge_moments, moments
from polybn_numpy.program import compile

name = "numpy"


def why_not() -> str | None:
    """Return None: a computation runs wherever NumPy imports. It is tried all the same.

    See :meth:`polybn.spec.Backend.why_not`.
    """
    y = batch_norm(np.array([[1.0], [3.0]]), training=True, eps=0).y
    return None if y.tolist() == [[-1.0], [1.0]] else f"batch_norm of [1, 3] gave {y.tolist()}"


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on; see :meth:`polybn.spec.Backend.describe`."""
    return {"numpy": np.__version__, "device": f"cpu ({platform.machine()})"}


def asarray(host: NDArray[Any], /) -> NDArray[Any]:
    """Copy a NumPy array; see :meth:`polybn.spec.Backend.asarray`."""
    return np.array(host)


def to_numpy(array: NDArray[Any], /) -> NDArray[Any]:
    """Copy a NumPy array; see :meth:`polybn.spec.Backend.to_numpy`."""
    return np.array(array)


__all__ = [
    "asarray",
    "batch_norm",
    "batch_norm_vjp",
    "compile",
    "describe",
    "fold",
    "merge_moments",
    "moments",
    "name",
    "to_numpy",
    "why_not",
]
