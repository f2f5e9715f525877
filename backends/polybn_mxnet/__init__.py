"""The MXNet backend: the specification on ``mxnet.nd.NDArray`` and ``mxnet.np.ndarray``, on a current Python."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.spec import Traits
from polybn_mxnet import arrays
from polybn_mxnet.arrays import BFLOAT16, inspect
from polybn_mxnet.batch_norm import fold, forward, merge_moments, moments, operators_only
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.derivatives import backward, double_backward
from polybn_mxnet.program import compile


def _devices() -> dict[str, Any]:
    return {"cpu": mx.cpu} | {f"gpu:{number}": partial(mx.gpu, number) for number in range(mx.context.num_gpus())}


def _hint(value: object) -> str:
    """Say what makes a sparse array plain."""
    sparse = isinstance(value, mx.nd.sparse.BaseSparseNDArray)
    return "it is sparse: tostype('default') makes it plain" if sparse else ""


name = "mxnet"
traits = Traits(
    library="MXNet",
    devices=_devices,
    native_norm=True,
    integers=True,
    variants={"operators": operators_only},
    hint=_hint,
)


def why_not() -> str | None:
    """Return None if the current context can compute and its result can be copied back, else the reason why not."""
    doubled = to_numpy(asarray(np.array([1.0, 3.0])) * 2)
    return None if doubled.tolist() == [2, 6] else f"twice [1, 3] gave {doubled.tolist()}"


def describe() -> dict[str, str]:
    """Return the versions and the context that results depend on."""
    return {"mxnet": mx.__version__, "numpy": np.__version__, "device": str(mx.context.current_context())}


def asarray(host: NDArray[Any], /) -> Any:
    """Copy a NumPy array, bfloat16 included, to an ``mxnet.nd.NDArray`` in the current context."""
    if host.dtype.name == "bfloat16":
        host = np.ascontiguousarray(host).view(np.uint16).view(BFLOAT16)
    return arrays.send(host, mx.nd.empty(1))


def to_numpy(array: Any, /) -> NDArray[Any]:
    """Copy an array to the host; bfloat16 becomes the dtype of ``ml_dtypes`` if that is imported."""
    host: NDArray[Any] = array.asnumpy()
    if host.dtype == BFLOAT16:
        with contextlib.suppress(TypeError):
            return host.view(np.uint16).view(np.dtype("bfloat16"))
    return host


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
