"""The conventions of frameworks for batch norm, and conversion of states between them.

Momentum weighs the old or the new value, running variances are biased or unbiased, and eps is 1e-3 or 1e-5.
Each implementation in a framework is a :class:`Dialect`, and :func:`convert` converts states between dialects.
"""

from __future__ import annotations

from polybn.dialects.conversion import convert, convert_options
from polybn.dialects.dialect import Dialect
from polybn.dialects.find import find
from polybn.dialects.table import (
    CAFFE,
    CHAINER,
    CUDNN,
    CUDNN4,
    D2L_CLASSIC,
    D2L_JAX,
    D2L_MXNET,
    D2L_TENSORFLOW,
    D2L_TORCH,
    DIALECTS,
    EQUINOX_BATCH,
    EQUINOX_EMA,
    FLAX_LINEN,
    FLAX_NNX,
    GLUON,
    HAIKU,
    KERAS3,
    MLX,
    MXNET_CUDNN,
    MXNET_NATIVE,
    ONNX9,
    ONNX15,
    POLYBN,
    PYTORCH,
    PYTORCH_SYNC,
    TF_FUSED,
    TINYGRAD,
)

__all__ = [
    "CAFFE",
    "CHAINER",
    "CUDNN",
    "CUDNN4",
    "D2L_CLASSIC",
    "D2L_JAX",
    "D2L_MXNET",
    "D2L_TENSORFLOW",
    "D2L_TORCH",
    "DIALECTS",
    "EQUINOX_BATCH",
    "EQUINOX_EMA",
    "FLAX_LINEN",
    "FLAX_NNX",
    "GLUON",
    "HAIKU",
    "KERAS3",
    "MLX",
    "MXNET_CUDNN",
    "MXNET_NATIVE",
    "ONNX9",
    "ONNX15",
    "POLYBN",
    "PYTORCH",
    "PYTORCH_SYNC",
    "TF_FUSED",
    "TINYGRAD",
    "Dialect",
    "convert",
    "convert_options",
    "find",
]
