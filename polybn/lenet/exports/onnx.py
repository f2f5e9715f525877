"""The whole network as an ONNX graph, from ``uint8`` images to class scores."""

from __future__ import annotations

from typing import Any

from polybn import dialects
from polybn.lenet import networks
from polybn.lenet.exports.layouts import Array, Layers, Layout, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.lenet.networks import Row
from polybn.model_files.errors import need
from polybn.model_files.onnx import decode

LAYOUT = Layout(dialects.ONNX15)
OPSET, IR = 15, 8
"""The first operator set whose batch norm specifies the running variance, and the file format of that time."""


def files(trained: Trained) -> dict[str, bytes]:
    """Write one file, with the note in its metadata under ``polybn``."""
    onnx = need("onnx", "ONNX files", "onnx")
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    rows = networks.rows(trained.network)
    graph = onnx.helper.make_graph(
        _nodes(onnx.helper, rows, layers),
        "lenet",
        [_value(onnx, "images", onnx.TensorProto.UINT8, rows[0].input_shape)],
        [_value(onnx, "logits", onnx.TensorProto.FLOAT, rows[-1].output_shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in _initializers(layers).items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR, producer_name="polybn")
    onnx.helper.set_model_props(model, {"polybn": trained.note})
    onnx.checker.check_model(model)
    return {".onnx": model.SerializeToString()}


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the note and the arrays."""
    onnx = need("onnx", "ONNX files", "onnx")
    model = onnx.load_model_from_string(data)
    layers: Layers = {}
    for tensor in model.graph.initializer:
        layer, _, name = tensor.name.rpartition(".")
        layers.setdefault(layer, {})[name] = decode(onnx, tensor)
    return {prop.key: prop.value for prop in model.metadata_props}.get("polybn"), layers


def _initializers(layers: Layers) -> dict[str, Array]:
    return {f"{layer}.{name}": array for layer, own in layers.items() for name, array in own.items()} | {
        "255": _scalar(255)
    }


def _scalar(value: float) -> Array:
    import numpy as np

    return np.array(value, np.float32)


def _value(onnx: Any, name: str, kind: int, shape: tuple[int, ...]) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, ["N", *shape])


def _nodes(helper: Any, rows: list[Row], layers: Layers) -> list[Any]:
    """Chain the layers: each outputs a value of its own name, and the last one the scores."""
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=1), helper.make_node("Div", ["floats", "255"], ["x"])]
    value = "x"
    for row in rows:
        if isinstance(row.layer, networks.Dense) and len(row.input_shape) == 3:
            nodes.append(helper.make_node("Flatten", [value], [f"{row.name}.flat"]))
            value = f"{row.name}.flat"
        result = "logits" if row is rows[-1] else row.name
        kind, options = _operator(row.layer)
        inputs = [value, *(f"{row.name}.{name}" for name in layers.get(row.name, ()))]
        nodes.append(helper.make_node(kind, inputs, [result], row.name, **options))
        value = result
    return nodes


def _operator(layer: networks.Layer) -> tuple[str, dict[str, Any]]:
    match layer:
        case networks.Convolution():
            return "Conv", {}
        case networks.Dense():
            return "Gemm", {"transB": 1}
        case networks.BatchNorm(_, momentum, eps):
            options = {"momentum": momentum, "eps": eps, "axis": 1}
            words = dialects.convert_options(options, dialects.POLYBN, LAYOUT.dialect).options
            return "BatchNormalization", words
        case networks.MaxPool(size):
            return "MaxPool", {"kernel_shape": [size] * 2, "strides": [size] * 2}
        case networks.Sigmoid():
            return "Sigmoid", {}
