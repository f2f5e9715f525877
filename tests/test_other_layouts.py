"""Arrays that are no plain block of numbers are refused, in words that say what they are and what makes them plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polybn
from polybn import dispatch
from tests.conftest import TRAITS

pytestmark = pytest.mark.clause("S14")


def bcoo(x: Any) -> Any:
    from jax.experimental.sparse import BCOO

    return BCOO.fromdense(x)


def quantized(x: Any) -> Any:
    import torch

    return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


def nested(x: Any) -> Any:
    import torch

    return torch.nested.nested_tensor([x[0], x[1, :, :2]])


def masked(x: Any) -> Any:
    import torch

    return torch.masked.masked_tensor(x, x > 0)


def uninitialized(x: Any) -> Any:
    import torch

    return torch.nn.UninitializedParameter()


def sparse(x: Any) -> Any:
    """Return what SciPy users hand over; no backend serves it."""
    return pytest.importorskip("scipy.sparse").csr_array(x[:, :, 0])


OTHERS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("numpy", sparse, "an array of an installed backend (.*); got scipy.sparse._csr.csr_array (the type of the array"),
    ("jax", bcoo, "a plain JAX array; got jax.experimental.sparse.bcoo.BCOO (it is sparse: todense() makes it plain;"),
    ("mxnet", lambda x: x.reshape((7, -1)).tostype("csr"),
     "a plain MXNet array; got mxnet.ndarray.sparse.CSRNDArray (it is sparse: tostype('default') makes it plain;"),
    ("mxnet", lambda x: x.tostype("row_sparse"),
     "a plain MXNet array; got mxnet.ndarray.sparse.RowSparseNDArray (it is sparse: tostype('default') makes it"),
    ("torch", lambda x: x.to_sparse(), "torch.Tensor (its layout is torch.sparse_coo: to_dense() makes it plain;"),
    ("torch", lambda x: x[:, :, 0].to_sparse_csr(), "torch.Tensor (its layout is torch.sparse_csr: to_dense() makes"),
    ("torch", lambda x: x.to_mkldnn(), "torch.Tensor (its layout is torch._mkldnn: to_dense() makes it plain;"),
    ("torch", quantized, "torch.Tensor (it is quantized: dequantize() makes it plain;"),
    ("torch", nested, "torch.Tensor (it is nested: torch.nested.to_padded_tensor makes it plain, and where says"),
    ("torch", masked, "MaskedTensor (its get_data() is plain, and its get_mask() may be given as where;"),
    ("torch", uninitialized, "torch.nn.parameter.UninitializedParameter (nothing is converted"),
    ("torch", lambda x: x.cfloat(), "x must have one of the dtypes float16, bfloat16, float32, float64; got complex64"),
]  # fmt: skip
HERE = [other for other in OTHERS if other[0] in TRAITS]


@pytest.mark.filterwarnings("ignore")  # libraries say that these kinds are experimental
@pytest.mark.parametrize(("name", "make", "words"), HERE, ids=[words for *_, words in HERE])
def test_another_layout_is_named(name: str, make: Callable[[Any], Any], words: str) -> None:
    x = make(dispatch.backend(name).asarray(np.float32(100 + 7 * np.arange(105).reshape(7, 3, 5))))
    for function, options in ((polybn.moments, {}), (polybn.batch_norm, {"training": True})):
        with pytest.raises((polybn.BackendError, polybn.DTypeError)) as error:
            function(x, **options)
        said = str(error.value)
        assert said.startswith(f"polybn.{function.__name__}: x must ")
        assert all(part in said for part in words.split(".*")), said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("torch" not in TRAITS, reason="torch: cannot run here")
@pytest.mark.parametrize("training", [True, False])
def test_the_modules_of_pytorch_say_the_same(training: bool) -> None:
    import torch

    import polybn_torch

    norm = polybn_torch.BatchNorm1d(3).train(training)
    for x in (torch.ones(7, 3).to_sparse(), torch.ones(7, 3).to_mkldnn()):
        with pytest.raises(polybn.BackendError, match=r"BatchNorm1d: x must be .*its layout is .*: to_dense\(\)"):
            norm(x)
