"""Small models of each framework, trained a little and saved by it, each with the expected content of its file."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

States: TypeAlias = dict[str, dict[str, NDArray[Any]]]
"""The states of batch norms by layer."""


class Made(NamedTuple):
    """A file with its expected content."""

    path: Path
    dialect: str
    states: States
    options: Mapping[str, Any] = MappingProxyType({})
    """The options of the first batch norm, if the file has them."""


def missing(libraries: tuple[str, ...]) -> list[str]:
    """Return the libraries that are not installed."""
    return [library for library in libraries if importlib.util.find_spec(library) is None]


def states(*names: str, size: int = 5) -> dict[str, NDArray[np.float32]]:
    """Draw a vector for each name."""
    rng = np.random.default_rng(len(names))
    return {name: rng.normal(9, 2, size).astype(np.float32) for name in names}


def batches(*shape: int) -> list[NDArray[np.float32]]:
    """Draw values whose mean is far from 0 and whose scale is far from 1."""
    rng = np.random.default_rng(11)
    return [rng.normal(-30, 700, shape).astype(np.float32) for _ in range(3)]


def _torch_net() -> Any:
    import torch

    torch.manual_seed(1)
    net: Any = torch.nn.Sequential()
    net.add_module("conv", torch.nn.Conv2d(3, 7, 3))
    net.add_module("bn", torch.nn.BatchNorm2d(7, eps=1e-3, momentum=0.3))
    net.add_module("flat", torch.nn.Flatten())
    net.add_module("fc", torch.nn.Linear(7 * 9, 11))
    net.add_module("last", torch.nn.BatchNorm1d(11, affine=False))
    for x in batches(13, 3, 5, 5):
        net(torch.from_numpy(x))
    with torch.no_grad():
        for parameter in net.bn.parameters():
            parameter.add_(torch.randn(7))
    return net.eval()


def _torch_states(net: Any) -> States:
    return {
        layer: {name: array.numpy() for name, array in getattr(net, layer).state_dict().items()}
        for layer in ("bn", "last")
    }


def pt(folder: Path) -> Made:
    import torch

    net = _torch_net()
    torch.save(net.state_dict(), folder / "model.pt")
    return Made(folder / "model.pt", "pytorch", _torch_states(net))


def pt_legacy(folder: Path) -> Made:
    """Write a file as PyTorch before 1.6 did."""
    import torch

    net = _torch_net()
    torch.save(net.state_dict(), folder / "model.pth", _use_new_zipfile_serialization=False)
    return Made(folder / "model.pth", "pytorch", _torch_states(net))


def safetensors(folder: Path) -> Made:
    from safetensors.torch import save_file

    net = _torch_net()
    save_file(net.state_dict(), folder / "model.safetensors")
    return Made(folder / "model.safetensors", "pytorch", _torch_states(net))


def onnx(folder: Path) -> Made:
    """Write an ONNX model node by node, as PyTorch's exporter does."""
    import onnx as library

    net = _torch_net()
    helper, own = library.helper, {k: v.numpy() for k, v in net.state_dict().items() if "tracked" not in k}
    own |= {"last.weight": np.ones(11, np.float32), "last.bias": np.zeros(11, np.float32)}
    four = ("weight", "bias", "running_mean", "running_var")
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], "Conv_0"),
        helper.make_node("BatchNormalization", ["a", *(f"bn.{n}" for n in four)], ["b"], epsilon=1e-3, momentum=0.7),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "fc.weight", "fc.bias"], ["d"], "Gemm_3", transB=1),
        helper.make_node("BatchNormalization", ["d", *(f"last.{name}" for name in four)], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", 1, ["N", 3, 5, 5])],
        [value("y", 1, ["N", 11])],
        [library.numpy_helper.from_array(array, name) for name, array in own.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    library.checker.check_model(model)
    library.save(model, folder / "model.onnx")
    words = ("scale", "B", "input_mean", "input_var")
    states = {n: {w: own[f"{n}.{f}"] for w, f in zip(words, four, strict=True)} for n in ("bn", "last")}
    return Made(folder / "model.onnx", "onnx15", states, {"momentum": 0.7, "epsilon": 1e-3})


def _keras_net() -> tuple[Any, States]:
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((5, 5, 3)), layers.Conv2D(7, 3), layers.BatchNormalization(momentum=0.7, name="bn")], name="inner"
    )
    x = keras.Input((5, 5, 3))
    y = layers.BatchNormalization(scale=False, name="last")(layers.Dense(11)(layers.Flatten()(inner(x))))
    net = keras.Model(x, y)
    for batch in batches(13, 5, 5, 3):
        net(batch, training=True)
    names = {"inner/bn": inner.get_layer("bn"), "last": net.get_layer("last")}
    words = {"moving_variance": "moving_variance", "moving_mean": "moving_mean", "gamma": "gamma", "beta": "beta"}
    states = {n: {words[w.name]: np.asarray(w.numpy()) for w in layer.weights} for n, layer in names.items()}
    return net, states


def keras(folder: Path) -> Made:
    net, states = _keras_net()
    net.save(folder / "model.keras")
    return Made(folder / "model.keras", "keras3", states, {"momentum": 0.7, "epsilon": 1e-3, "axis": -1})


def keras_weights(folder: Path) -> Made:
    """Write weights only, which do not show whether gamma or beta is missing, so only the statistics are known."""
    net, states = _keras_net()
    net.save_weights(folder / "model.weights.h5")
    states["last"] = {name: states["last"][name] for name in ("moving_mean", "moving_variance")}
    return Made(folder / "model.weights.h5", "keras3", states)


def without_names(file: Any) -> None:
    """Remove the names of layers, which early versions of Keras 3 did not write."""
    import h5py

    with h5py.File(file, "a") as tree:
        tree.visititems(lambda path, item: item.attrs.pop("name", None) and None)


def remove_names(path: Path) -> None:
    """Make a ``.keras`` file one of an early version of Keras 3."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    without_names(weights)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"model.weights.h5": weights.getvalue()}).items():
            archive.writestr(name, data)


def keras_unnamed(folder: Path) -> Made:
    made = keras(folder)
    remove_names(made.path)
    return made


def keras_weights_unnamed(folder: Path) -> Made:
    made = keras_weights(folder)
    without_names(made.path)
    names = {"inner/bn": "sequential/batch_normalization", "last": "batch_normalization"}
    return made._replace(states={names[layer]: state for layer, state in made.states.items()})


def keras_whole(folder: Path) -> Made:
    """Write weights and configuration into one HDF5 file, as most models of Keras 2 are."""
    net, states = _keras_net()
    net.save(folder / "model.h5")
    return Made(folder / "model.h5", "keras3", states, {"momentum": 0.7, "epsilon": 1e-3, "axis": -1})


def keras2(folder: Path) -> Made:
    """Write a file as ``tf.keras`` 2 did, with only h5py."""
    import h5py

    rng = np.random.default_rng(2)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    states = {f"bn_{n}": {w: rng.normal(50, 9, n).astype(np.float32) for w in names} for n in (5, 3)}
    layers = [{"class_name": "BatchNormalization", "config": {"name": n, "epsilon": 0.5, "axis": [3]}} for n in states]
    with h5py.File(folder / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": layers}}).encode()
        for layer, state in states.items():
            for name, array in state.items():
                file[f"model_weights/{layer}/{layer}_1/{name}:0"] = array
    return Made(folder / "model.h5", "keras3", states, {"epsilon": 0.5, "axis": 3})


def _flax_variables() -> tuple[Any, States]:
    import jax
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.BatchNorm(use_running_average=False, name="bn")(linen.Conv(7, (3, 3))(x))
            return linen.BatchNorm(use_running_average=False, use_scale=False, name="last")(
                linen.Dense(11)(x.reshape(len(x), -1))
            )

    first, *rest = batches(13, 5, 5, 3)
    variables = Net().init(jax.random.PRNGKey(0), first)
    for x in rest:
        _, changed = Net().apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **changed}
    plain = jax.tree_util.tree_map(np.asarray, variables)
    both = [plain["params"], plain["batch_stats"]]
    return plain, {n: {k: v for part in both for k, v in part.get(n, {}).items()} for n in ("bn", "last")}


def flax(folder: Path) -> Made:
    from flax import serialization

    variables, states = _flax_variables()
    (folder / "model.msgpack").write_bytes(serialization.to_bytes(variables))
    return Made(folder / "model.msgpack", "flax_linen", states)


def flax_safetensors(folder: Path) -> Made:
    from safetensors.numpy import save_file

    variables, states = _flax_variables()
    flat = {
        f"{kind}.{layer}.{name}": np.ascontiguousarray(array)
        for kind, layers in variables.items()
        for layer, own in layers.items()
        for name, array in own.items()
    }
    save_file(flat, folder / "flax.safetensors")
    return Made(folder / "flax.safetensors", "flax_linen", states)


def orbax(folder: Path) -> Made:
    import orbax.checkpoint

    variables, states = _flax_variables()
    orbax.checkpoint.PyTreeCheckpointer().save((folder / "orbax").resolve(), variables)
    return Made(folder / "orbax", "flax_linen", states)


def orbax_nnx(folder: Path) -> Made:
    import jax
    import orbax.checkpoint
    from flax import nnx

    state = nnx.state(nnx.BatchNorm(5, epsilon=1e-3, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(3)
    state = jax.tree_util.tree_map(lambda leaf: rng.normal(50, 9, leaf.shape).astype(np.float32), state)
    checkpointer = orbax.checkpoint.StandardCheckpointer()
    checkpointer.save((folder / "nnx").resolve(), nnx.State({"bn": state}))
    checkpointer.wait_until_finished()
    names = ("scale", "bias", "mean", "var")
    return Made(folder / "nnx", "flax_linen", {"bn": {name: np.asarray(state[name].value) for name in names}})


def _gluon_net() -> tuple[Any, States]:
    from polybn_mxnet.compat import mxnet as mx

    net = mx.gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(
            mx.gluon.nn.Conv2D(7, 3, in_channels=3), mx.gluon.nn.BatchNorm(epsilon=1e-3, in_channels=7, prefix="bn_")
        )
    net.initialize()
    net.hybridize()
    for x in batches(13, 3, 5, 5):
        with mx.autograd.record():
            y = net(mx.nd.array(x))
        y.backward()
    names = ("gamma", "beta", "running_mean", "running_var")
    return net, {"": {name: getattr(net[1], name).data().asnumpy() for name in names}}


def gluon(folder: Path) -> Made:
    net, states = _gluon_net()
    net.save_parameters(str(folder / "model.params"))
    return Made(folder / "model.params", "gluon", {"1": states[""]})


def gluon_export(folder: Path) -> Made:
    net, states = _gluon_net()
    net.export(str(folder / "model"))
    options = {"momentum": 0.9, "epsilon": 1e-3, "axis": 1}
    return Made(folder / "model-0000.params", "gluon", {"net_bn": states[""]}, options)


def npz(folder: Path) -> Made:
    """Write a compressed file as Chainer does."""
    rng = np.random.default_rng(2)
    states = {"bn1": {w: rng.normal(50, 9, 5).astype(np.float32) for w in ("gamma", "beta", "avg_mean", "avg_var")}}
    states["bn1"]["N"] = np.array(3)
    arrays: dict[str, Any] = {f"bn1/{name}": array for name, array in states["bn1"].items()}
    np.savez_compressed(folder / "model.npz", **arrays)
    return Made(folder / "model.npz", "chainer", states)


MAKERS: dict[str, Callable[[Path], Made]] = {
    made.__name__: made
    for made in (
        *(
            pt,
            pt_legacy,
            safetensors,
            onnx,
            keras,
            keras_unnamed,
            keras_weights,
            keras_weights_unnamed,
            keras_whole,
            keras2,
        ),
        *(flax, flax_safetensors, orbax, orbax_nnx, gluon, gluon_export, npz),
    )
}
LIBRARIES = {
    "pt": ("torch",),
    "pt_legacy": ("torch",),
    "safetensors": ("torch", "safetensors"),
    "onnx": ("torch", "onnx"),
    "keras": ("keras", "h5py"),
    **dict.fromkeys(("keras_unnamed", "keras_weights", "keras_weights_unnamed", "keras_whole"), ("keras", "h5py")),
    "keras2": ("h5py",),
    "flax": ("flax", "msgpack"),
    "flax_safetensors": ("flax", "safetensors"),
    "orbax": ("flax", "orbax"),
    "orbax_nnx": ("flax", "orbax"),
    "gluon": ("mxnet",),
    "gluon_export": ("mxnet",),
    "npz": (),
}
"""The libraries that making and reading a file need."""
