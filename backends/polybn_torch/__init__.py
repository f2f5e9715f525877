"""The PyTorch backend: tensors of any device and dtype, autograd, and modules with PyTorch's interface.

For host memory it uses the compiled loops of :mod:`polybn_host`; for other devices PyTorch's operations, in the form of
:mod:`polybn_array_api`. ``polybn_torch.BatchNorm2d`` replaces ``torch.nn.BatchNorm2d``, and
``polybn_torch.convert`` replaces all of a model's batch norms.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.masked import MaskedTensor
from torch.nn.parameter import UninitializedTensorMixin

from polybn.spec import Description, Traits
from polybn_torch.batch_norm import backward, double_backward, fold, forward, merge_moments, moments
from polybn_torch.host import operators_only, view


def _devices() -> dict[str, Any]:
    gpus = {f"gpu:{number}": partial(torch.device, "cuda", number) for number in range(torch.cuda.device_count())}
    return {"cpu": partial(torch.device, "cpu")} | gpus


def _hint(value: object) -> str:
    """Say what is special about a tensor that is not served; the type of all of them is ``torch.Tensor``."""
    if not isinstance(value, torch.Tensor) or isinstance(value, UninitializedTensorMixin):
        return ""
    if isinstance(value, MaskedTensor):
        return "its get_data() is plain, and its get_mask() may be given as where"
    if value.is_quantized:
        return "it is quantized: dequantize() makes it plain"
    if value.is_nested:
        return "it is nested: torch.nested.to_padded_tensor makes it plain, and where says what is padding"
    return "" if value.layout is torch.strided else f"its layout is {value.layout}: to_dense() makes it plain"


def _fleeting(value: torch.Tensor) -> str:
    """Say what to use in place of a layer in ``torch.vmap``, whose tensors end with it."""
    is_batched = getattr(getattr(torch._C, "_functorch", None), "is_batchedtensor", None)
    if is_batched is None or not is_batched(value):
        return ""
    return (
        "each example of torch.vmap has its own: call polybn.batch_norm, which returns the statistics, "
        "y, mean, var = polybn.batch_norm(x, gamma, beta, mean, var, training=True)"
    )


name = "torch"
traits = Traits(
    library="PyTorch",
    devices=_devices,
    variants={"operators": operators_only},
    instead_of_integers="polybn.moments(x.numpy(force=True)) is exact, on the host; x.double() stays on the device",
    hint=_hint,
    fleeting=_fleeting,
)
_MORE = MaskedTensor, UninitializedTensorMixin
"""Tensors with another meaning, or with no shape yet."""


def why_not() -> str | None:
    """Return None if a computation ran and came back, else the reason why not."""
    doubled = to_numpy(asarray(np.array([1.0, 3.0])) * 2)
    return None if doubled.tolist() == [2, 6] else f"twice [1, 3] gave {doubled.tolist()}"


def describe() -> dict[str, str]:
    """Return the versions and the default device that results depend on."""
    return {"torch": torch.__version__, "numpy": np.__version__, "device": str(torch.get_default_device())}


def inspect(value: object, /) -> Description | None:
    """Describe a dense tensor or parameter; None for all else, such as sparse, quantized and nested tensors."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or isinstance(value, _MORE):
        return None
    if value.is_quantized or value.is_nested:
        return None
    return Description(
        tuple(value.shape), _NAMES.get(value.dtype) or str(value.dtype).removeprefix("torch."), str(value.device)
    )


def asarray(host: NDArray[Any], /) -> torch.Tensor:
    """Copy a NumPy array to the default device, also one of bfloat16."""
    if host.dtype.name == "bfloat16":
        tensor = torch.from_numpy(np.array(host).view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.array(host))
    return tensor.to(torch.get_default_device())


def to_numpy(array: torch.Tensor, /) -> NDArray[Any]:
    """Copy a tensor to the host; bfloat16 as that of ``ml_dtypes``."""
    return np.array(view(array.detach().cpu().resolve_conj().resolve_neg()))


_NAMES = {
    getattr(torch, word): word for word in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
}  # str() of a dtype takes a microsecond


MODULES = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "convert")


def __getattr__(name: str) -> Any:
    """Import the modules for PyTorch's users on first use, because they import the public functions."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from polybn_torch import nn

    return getattr(nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})


__all__ = [
    "asarray",
    "backward",
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
