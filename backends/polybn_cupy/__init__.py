"""The CuPy backend: CUDA kernels that read and write each value once; NVRTC compiles them on the user's machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from polybn.spec import Description, Moments, Traits
from polybn_cupy.batch_norm import fold, forward, merge_moments, moments
from polybn_cupy.derivatives import backward, double_backward
from polybn_cupy.program import compile


def _devices() -> dict[str, Any]:
    return {f"gpu:{i}": partial(cupy.cuda.Device, i) for i in range(cupy.cuda.runtime.getDeviceCount())}


name = "cupy"
traits = Traits(
    library="CuPy",
    devices=_devices,
    sees_values=False,
    instead_of_integers="polybn.moments(x.get()) is exact, on the host; x.astype('float64') stays on the device",
)


def why_not() -> str | None:
    """Return None if a kernel can be compiled and run here and its result copied back, else the reason why not."""
    try:
        ones = cupy.asarray(np.ones(1, np.int64))
        parts = (Moments(ones, cupy.asarray(np.array([mean])), cupy.asarray(np.zeros(1))) for mean in (1.0, 4.0))
        whole = merge_moments(*parts)  # the smallest kernel, which compiles fastest
        found = whole.mean.get().tolist() + whole.m2.get().tolist()
    except Exception as error:
        # A missing driver, a wrong toolkit and a missing device raise different classes, some of them not CuPy's.
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())} (CuPy needs an NVIDIA GPU, its driver, and the "
            f"package for the driver's CUDA version, cupy-cuda12x or cupy-cuda13x; this is CuPy {cupy.__version__})"
        )
    return None if found == [2.5, 4.5] else f"merge_moments of 1 and 4 gave mean and m2 {found}, not [2.5, 4.5]"


def describe() -> dict[str, str]:
    """Return the versions and the device that results depend on."""
    runtime = cupy.cuda.runtime
    device = runtime.getDevice()
    properties = runtime.getDeviceProperties(device)
    return {
        "cupy": cupy.__version__,
        "CUDA": _version(runtime.runtimeGetVersion()),
        "driver": _version(runtime.driverGetVersion()),
        "device": f"cuda:{device} ({properties['name'].decode()})",
    }


def inspect(value: Any, /) -> Description | None:
    """Describe an ndarray; return None for all else, also for subclasses, which may change its meaning."""
    if type(value) is not cupy.ndarray:
        return None
    return Description(value.shape, value.dtype.name, f"device {value.device.id}")


def asarray(host: NDArray[Any], /) -> Any:
    """Copy a NumPy array to the current device."""
    return cupy.array(host)


def to_numpy(array: Any, /) -> NDArray[Any]:
    """Copy an array to the host when it has been computed."""
    return np.asarray(array.get())


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


__all__ = [
    "asarray",
    "backward",
    "compile",
    "describe",
    "double_backward",
    "fold",
    "forward",
    "inspect",
    "merge_moments",
    "moments",
    "name",
    "to_numpy",
    "traits",
    "why_not",
]
