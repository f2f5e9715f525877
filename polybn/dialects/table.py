"""The dialects, one row each. A row has only the facts that differ from the specification, and their source."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from polybn.dialects.dialect import Dialect
from polybn.dialects.record import ABOVE_0, Role

STATISTICS: tuple[Role, ...] = ("gamma", "beta", "running_mean", "running_var")
AVERAGES: tuple[Role, ...] = (*STATISTICS, "hidden_mean", "hidden_var", "count", "second_count")


def _names(words: str, roles: tuple[Role, ...] = STATISTICS) -> Mapping[Role, str]:
    return MappingProxyType(dict(zip(roles, words.split(), strict=True)))


_PYTORCH_NAMES = _names("weight bias running_mean running_var num_batches_tracked", (*STATISTICS, "count"))
_D2L = "https://github.com/d2l-ai/d2l-en, chapter_convolutional-modern/batch-norm.md"
_CUDNN_EPS = "CUDNN_BN_MIN_EPSILON in the header cudnn.h of cuDNN 4 to 7; 0 in later headers"

# Each row is a few lines, as in a table: what belongs together stands on one line.
# fmt: off
POLYBN = Dialect(
    name="polybn", title="PolyBN, polybn.BatchNorm", empty="kept", any_axis=True,
    names=_names("gamma beta running_mean running_var updates", (*STATISTICS, "count")), optional=frozenset(("count",)),
    affine_words=("scale", "shift"),
    source="polybn.spec, clauses S1 to S12",
)
PYTORCH = Dialect(
    name="pytorch", title="PyTorch, torch.nn.BatchNorm1d, 2d, 3d", names=_PYTORCH_NAMES,
    momentum_weighs="new", momentum=0.1, running_variance="unbiased", single_value="error", empty="kept",
    least_eps=ABOVE_0, affine="together",
    affine_words=("affine", "affine"),
    source="https://docs.pytorch.org/docs/2.13/generated/torch.nn.BatchNorm2d.html",
    sources={
        **dict.fromkeys(("single_value", "least_eps"), "torch.nn.functional, 2.13.0"),
        "empty": "seen with torch 2.13.0",
    },
    remark="momentum=None weighs all batches alike, by num_batches_tracked.",
)
PYTORCH_SYNC = Dialect(
    name="pytorch_sync", title="PyTorch, torch.nn.SyncBatchNorm", names=_PYTORCH_NAMES,
    momentum_weighs="new", momentum=0.1, running_variance="unbiased", single_value="error", empty="kept",
    affine="together",
    affine_words=("affine", "affine"),
    source="https://docs.pytorch.org/docs/2.13/generated/torch.nn.SyncBatchNorm.html",
    sources=dict.fromkeys(("single_value", "empty"), "torch/nn/modules/_functions.py, 2.13.0"),
    remark="The number of values is that of all processes together; a process may hold none.",
)
KERAS3 = Dialect(
    name="keras3", title="Keras 3, keras.layers.BatchNormalization",
    names=_names("gamma beta moving_mean moving_variance"),
    momentum=0.99, eps=1e-3, eps_word="epsilon", empty="changed", axis=-1, any_axis=True,
    affine_words=("scale", "center"),
    source="https://keras.io/api/layers/normalization_layers/batch_normalization, 3.15",
    sources={"empty": "seen with keras 3.15.1 on NumPy", "running_variance": "keras.src.layers.normalization, 3.15.1"},
    remark="With trainable=False the layer uses its moving statistics in training, too.",
)
TF_FUSED = Dialect(
    name="tf_fused", title="TensorFlow, tf.keras 2 where it is fused (rank 4, axis -1 or 1)",
    names=_names("gamma beta moving_mean moving_variance"),
    momentum=0.99, eps=1e-3, eps_word="epsilon", least_eps=1.001e-5, running_variance="unbiased",
    dtype="float32", empty="kept", axis=-1, any_axis=True,
    affine_words=("scale", "center"),
    source="https://github.com/keras-team/tf-keras, layers/normalization/batch_normalization.py, dd0a7237b",
    sources={
        "running_variance": "tensorflow/core/kernels/fused_batch_norm_op.cc, 057091db",
        "least_eps": "tensorflow/python/ops/nn_impl.py, fused_batch_norm, 2.x: a smaller eps is raised without a word",
        "single_value": "tensorflow/core/kernels/fused_batch_norm_op.cc, 057091db",
    },
    remark="One value per channel makes the moving variance NaN on GPUs. Where the layer is not fused, it keeps the "
    "biased variance.",
)
FLAX_LINEN = Dialect(
    name="flax_linen", title="Flax, flax.linen.BatchNorm", names=_names("scale bias mean var"),
    momentum=0.99, eps_word="epsilon", dtype="float32", empty="changed", axis=-1, any_axis=True,
    affine_words=("use_scale", "use_bias"),
    source="https://flax-linen.readthedocs.io/en/latest/api_reference/flax.linen/layers.html, 0.12",
    sources={"empty": "seen with flax 0.12.8", "running_variance": "flax.linen.normalization, 0.12.8"},
    remark="scale and bias are in the collection params, mean and var in batch_stats.",
)
FLAX_NNX = Dialect(
    name="flax_nnx", title="Flax, flax.nnx.BatchNorm", names=_names("scale bias mean var"),
    momentum=0.99, eps_word="epsilon", dtype="float32", empty="changed", axis=-1, any_axis=True,
    affine_words=("use_scale", "use_bias"),
    source="https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/normalization.html, 0.12",
    sources={"empty": "seen with flax 0.12.8", "running_variance": "flax.nnx.nn.normalization, 0.12.8"},
)
HAIKU = Dialect(
    name="haiku", title="Haiku, haiku.BatchNorm",
    names=_names(
        "scale offset mean_ema/average var_ema/average mean_ema/hidden var_ema/hidden mean_ema/counter var_ema/counter",
        AVERAGES,
    ),
    momentum=None, momentum_word="decay_rate", average="debiased", initial_var=0.0, dtype="input", empty="changed",
    axis=-1, any_axis=True,
    affine_words=("create_scale", "create_offset"),
    source="haiku._src.batch_norm and haiku._src.moving_averages, 0.0.17",
    sources={"empty": "seen with dm-haiku 0.0.17"},
    remark="Arrays keep axes of length 1, as in (1, 1, 1, C).",
)
EQUINOX_EMA = Dialect(
    name="equinox_ema", title='Equinox, equinox.nn.BatchNorm(mode="ema")',
    names=_names("weight bias ema_state_index.0 ema_state_index.1 ema_first_time_index", (*STATISTICS, "first")),
    affine="together",
    momentum=0.99, normalizes_by="running", average="first", empty="changed", axis=1,
    affine_words=("channelwise_affine", "channelwise_affine"),
    source="equinox.nn._batch_norm, 0.13.8", sources={"empty": "seen with equinox 0.13.8"},
    remark="The channel axis is the first one, under a vmap over the batch.",
)
EQUINOX_BATCH = Dialect(
    name="equinox_batch", title='Equinox, equinox.nn.BatchNorm(mode="batch")',
    names=_names("weight bias batch_state_index.0 batch_state_index.1 batch_counter",
                 ("gamma", "beta", "hidden_mean", "hidden_var", "count")),
    affine="together",
    momentum=0.99, average="debiased from 1", empty="changed", axis=1,
    affine_words=("channelwise_affine", "channelwise_affine"),
    source="equinox.nn._batch_norm, 0.13.8", sources={"empty": "seen with equinox 0.13.8"},
    remark="The variance is too large by m^k / (1 - m^k) after k batches: 99 after the first, with momentum m = 0.99.",
)
MXNET_NATIVE = Dialect(
    name="mxnet_native", title="MXNet, mx.nd.BatchNorm without cuDNN",
    names=_names("gamma beta moving_mean moving_var"),
    eps=1e-3, dtype="float32", changes_in="backward", empty="error", fix_gamma=True, any_axis=True,
    affine="always",
    source="apache/mxnet, src/operator/nn/batch_norm.cc and batch_norm-inl.h, 1.9.1",
    sources={"empty": "seen with mxnet 1.9.1"},
)
MXNET_CUDNN = Dialect(
    name="mxnet_cudnn", title="MXNet, mx.nd.BatchNorm with cuDNN, as on GPUs",
    names=_names("gamma beta moving_mean moving_var"),
    eps=1e-3, least_eps=1e-5, running_variance="unbiased", dtype="float32", single_value="nan", fix_gamma=True,
    affine="always",
    any_axis=True, source="apache/mxnet, src/operator/nn/cudnn/cudnn_batch_norm-inl.h, 1.9.1",
    sources={
        "least_eps": _CUDNN_EPS,
        **dict.fromkeys(("running_variance", "single_value"), "https://github.com/apache/mxnet/issues/21111"),
    },
)
GLUON = Dialect(
    name="gluon", title="MXNet, mx.gluon.nn.BatchNorm on the CPU",
    names=_names("gamma beta running_mean running_var"),
    eps_word="epsilon", dtype="float32", changes_in="backward", empty="error", any_axis=True, affine="always",
    source="mxnet.gluon.nn.basic_layers, 1.9.1", sources={"empty": "seen with mxnet 1.9.1"},
    remark="On GPUs its statistics are those of mxnet_cudnn. With scale=False, gamma is taken for 1, which conversion "
    "is told as fix_gamma=True; it is in every file, as beta is.",
)
ONNX15 = Dialect(
    name="onnx15", title="ONNX, BatchNormalization since operator set 15", names=_names("scale B input_mean input_var"),
    affine="always",
    eps_word="epsilon", dtype="layer", empty="changed",
    source="https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, version 15",
    sources={"empty": "seen with onnx 1.23.2 and onnxruntime 1.32.0"},
    remark="training_mode is 0 if nothing is said. A model that was exported in training has 1, and goes on using "
    "the statistics of each batch.",
)
ONNX9 = Dialect(
    name="onnx9", title="ONNX, BatchNormalization in operator sets 9 to 13", names=_names("scale B mean var"),
    affine="always",
    eps_word="epsilon", running_variance="unspecified", single_value="unknown",
    source="https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, version 9",
    sources={"running_variance": "https://github.com/onnx/onnx/pull/3402 says it for later versions only"},
    remark="Training is implied by the number of outputs, five.",
)
CHAINER = Dialect(
    name="chainer", title="Chainer, chainer.links.BatchNormalization",
    names=_names("gamma beta avg_mean avg_var N", (*STATISTICS, "count")),
    momentum_word="decay", eps=2e-5, least_eps=1e-5, running_variance="unbiased", any_axis=True,
    affine_words=("use_gamma", "use_beta"),
    source="chainer/functions/normalization/batch_normalization.py and links/, v7, a8e15cbe",
    sources={"least_eps": "where cuDNN is used: chainer/functions/normalization/batch_normalization.py, a8e15cbe"},
    remark="N counts batches of fine-tuning alone. One value per channel is warned of; m - 1 is then taken for 1.",
)
MLX = Dialect(
    name="mlx", title="MLX, mlx.nn.BatchNorm", names=_names("weight bias running_mean running_var"),
    momentum_weighs="new", momentum=0.1, least_eps=ABOVE_0, running_variance="unbiased", single_value="error", axis=-1,
    affine_words=("affine", "affine"),
    affine="together", source="ml-explore/mlx, python/mlx/nn/layers/normalization.py, 846d1762",
    remark="Before July 2026 the running variance was biased.",
)
TINYGRAD = Dialect(
    name="tinygrad", title="tinygrad, tinygrad.nn.BatchNorm", names=_PYTORCH_NAMES,
    momentum_weighs="new", momentum=0.1, running_variance="unbiased", dtype="float32", single_value="error",
    affine_words=("affine", "affine"),
    affine="together", empty="changed", source="tinygrad.nn, 0.14.0",
    sources=dict.fromkeys(("single_value", "empty"), "seen with tinygrad 0.14.0"),
)
CUDNN = Dialect(
    name="cudnn", title="cuDNN 5 and later, cudnnBatchNormalizationForwardTraining",
    names=_names("bnScale bnBias resultRunningMean resultRunningVariance"),
    momentum_weighs="new", momentum=None, momentum_word="exponentialAverageFactor", eps_word="epsilon",
    least_eps=1e-5, running_variance="unbiased", dtype="float32", single_value="nan",
    affine="always",
    source="https://docs.nvidia.com/deeplearning/cudnn, cudnnBatchNormalizationForwardTraining; header cudnn.h, 5 to 8",
    sources={
        "least_eps": _CUDNN_EPS,
        **dict.fromkeys(("running_variance", "single_value"), "https://github.com/apache/mxnet/issues/21111"),
    },
    remark="The caller says what statistics are before training.",
)
CUDNN4 = Dialect(
    name="cudnn4", title="cuDNN 4, cudnnBatchNormalizationForwardTraining",
    names=_names("bnScale bnBias resultRunningMean resultRunningInvVariance"),
    momentum_weighs="new", momentum=None, momentum_word="exponentialAverageFactor", eps_word="epsilon",
    least_eps=1e-5, stored="inverse root", running_variance="unspecified", dtype="float32", single_value="unknown",
    affine="always",
    source="header cudnn.h of cuDNN 4", sources={"least_eps": _CUDNN_EPS},
    remark="The average is one of 1 / sqrt(variance + eps): eps is in it, and inference takes no other.",
)
CAFFE = Dialect(
    name="caffe", title="Caffe, layers BatchNorm and Scale",
    names=_names("Scale.0 Scale.1 BatchNorm.0 BatchNorm.1 BatchNorm.2", (*STATISTICS, "factor")),
    momentum=0.999, momentum_word="moving_average_fraction", running_variance="unbiased", average="debiased",
    stored="sums", initial_var=0.0,
    source="BVLC/caffe, src/caffe/layers/batch_norm_layer.cpp, 1.0",
    remark="BatchNorm.2 divides the two others. gamma and beta are a layer of their own, Scale.",
)
D2L_MXNET = Dialect(
    name="d2l_mxnet", title="Dive into Deep Learning 1.0, MXNet", names=_names("gamma beta moving_mean moving_var"),
    affine="always",
    momentum_weighs="new", momentum=0.1, eps=1e-12, source=f"{_D2L}, 23d7a5ae",
)
D2L_TORCH = Dialect(
    name="d2l_torch", title="Dive into Deep Learning 1.0, PyTorch", names=_names("gamma beta moving_mean moving_var"),
    affine="always",
    momentum_weighs="new", momentum=0.1, source=f"{_D2L}, 23d7a5ae",
    remark="Training is guessed from torch.is_grad_enabled().",
)
D2L_TENSORFLOW = Dialect(
    name="d2l_tensorflow", title="Dive into Deep Learning 1.0, TensorFlow",
    names=_names("gamma beta moving_mean moving_variance"),
    affine="always",
    momentum_weighs="new", momentum=0.1, axis=-1, source=f"{_D2L}, 23d7a5ae",
)
D2L_JAX = Dialect(
    name="d2l_jax", title="Dive into Deep Learning 1.0, JAX", names=_names("gamma beta moving_mean moving_var"),
    affine="always",
    source=f"{_D2L}, 23d7a5ae",
    remark="The axes that it reduces are those of channels first, and its images have channels last.",
)
D2L_CLASSIC = Dialect(
    name="d2l_classic", title="Dive into Deep Learning before 1.0, all libraries",
    affine="always",
    names=_names("gamma beta moving_mean moving_var"), source=f"{_D2L}, branch classic, 0.17",
    remark="eps is 1e-12 in its MXNet form, and the channel axis -1 in its TensorFlow form.",
)

# fmt: on
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {value.name: value for value in dict(globals()).values() if isinstance(value, Dialect)}
)
"""All dialects, by name."""
