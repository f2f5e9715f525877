"""The CuPy backend: CUDA kernels that read and write each value once, compiled by NVRTC where they run."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from polybn_cupy.batch_norm import batch_norm, batch_norm_vjp, fold, merge_moments, moments
from polybn_cupy.program import compile

name = "cupy"


def why_not() -> str | None:
    """Return None if a kernel compiled and ran here, and its result came back; else the reason why not.

    See :meth:`polybn.spec.Backend.why_not`.
    """
    try:
        y = batch_norm(cupy.asarray([[1.0], [3.0]]), training=True, eps=0).y.get()
    except Exception as error:
        # A missing driver, a wrong toolkit, no device: each has a class of its own, in CuPy and below it.
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())} (CuPy needs an NVIDIA GPU, its driver, and the "
            f"package for the driver's CUDA version, cupy-cuda12x or cupy-cuda13x; this is CuPy {cupy.__version__})"
        )
    return None if y.tolist() == [[-1.0], [1.0]] else f"batch_norm of [1, 3] gave {y.tolist()}"


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on; see :meth:`polybn.spec.Backend.describe`."""
    runtime = cupy.cuda.runtime
    device = runtime.getDevice()
    properties = runtime.getDeviceProperties(device)
    return {
        "cupy": cupy.__version__,
        "CUDA": _version(runtime.runtimeGetVersion()),
        "driver": _version(runtime.driverGetVersion()),
        "device": f"cuda:{device} ({properties['name'].decode()})",
    }


def asarray(host: NDArray[Any], /) -> Any:
    """Copy a NumPy array to the current device; see :meth:`polybn.spec.Backend.asarray`."""
    return cupy.array(host)


def to_numpy(array: Any, /) -> NDArray[Any]:
    """Copy an array to the host, once what computes it has run; see :meth:`polybn.spec.Backend.to_numpy`."""
    return np.asarray(array.get())


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


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
