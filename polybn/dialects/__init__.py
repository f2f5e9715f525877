"""What frameworks mean by the words of batch norm, and how a state gets from one to another.

Momentum weighs the old value here and the new one there; running variances are biased or not; eps is 1e-3 or 1e-5.
Each framework, on each path through it, is a :class:`Dialect`, and :func:`convert` carries states between them.
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
