"""ONNX: the batch norms among the nodes of a graph, with their initializers."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from polybn.dialects import ONNX9, ONNX15
from polybn.model_files.errors import ModelFileError, need
from polybn.model_files.model import Norm, vector
from polybn.model_files.tensors import MOST_BYTES, MOST_CHANNELS, Array

MOST_DEPTH = 16
MOST_IDENTITIES = 64
"""The longest chain of nodes that pass a tensor on; a longer one may be a circle."""
_ENDINGS = (".running_mean", "_running_mean", "/moving_mean", ".input_mean", ".mean", "_mean")
"""Endings of the names of statistics; the rest of such a name is the layer's name in its original framework."""


class Found(NamedTuple):
    """A batch norm with its node and its graph."""

    graph: Any
    node: Any
    norm: Norm


def parse(data: bytes) -> Any:
    """Parse a model without values in other files."""
    onnx = need("onnx", "ONNX files", "onnx")
    model = onnx.ModelProto()
    model.ParseFromString(data)
    if not model.graph.node and not model.graph.initializer:
        raise ModelFileError("be an ONNX model; got one without a graph")
    return model


def find(model: Any) -> list[Found]:
    """List the batch norms of a model, including those in branches and loops."""
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)
    budget, found = MOST_BYTES, list[Found]()
    every = list(graphs(model.graph, 0))
    all_values = {tensor.name: tensor for graph in every for tensor in graph.initializer}
    all_makers = makers_of(*every)
    for graph in every:
        values = ChainMap({tensor.name: tensor for tensor in graph.initializer}, all_values)
        makers = ChainMap(makers_of(graph), all_makers)
        for node in graph.node:
            if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
                found.append(Found(graph, node, _norm(node, version, values, makers)))
                budget -= sum(array.nbytes for array in found[-1].norm.state.values())
                if budget < 0:
                    raise ModelFileError(f"have batch norms of at most {MOST_BYTES:,} bytes in all; got more")
    shared = Counter(each.norm.name for each in found)
    return [each if shared[each.norm.name] == 1 else _by_output(each) for each in found]


def makers_of(*many: Any) -> dict[str, Any]:
    """Return the nodes of graphs by the names of their outputs."""
    return {output: node for graph in many for node in graph.node for output in node.output}


def origin(name: str, makers: Mapping[str, Any]) -> str:
    """Return the name of the tensor that is passed on under a name: exporters keep one of equal tensors."""
    for _ in range(MOST_IDENTITIES):
        node = makers.get(name)
        if node is None or node.op_type != "Identity" or len(node.input) != 1:
            break
        name = node.input[0]
    return name


def _by_output(found: Found) -> Found:
    """Name a batch norm after its output, which differs from all others, where names of statistics do not."""
    return found._replace(norm=found.norm._replace(name=found.node.output[0]))


def graphs(graph: Any, depth: int) -> Iterator[Any]:
    """Yield a graph and those in it, of branches and loops."""
    if depth > MOST_DEPTH:
        raise ModelFileError(f"have graphs in graphs at most {MOST_DEPTH} deep; got more")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner, depth + 1)


def _norm(node: Any, version: int, values: Mapping[str, Any], makers: Mapping[str, Any]) -> Norm:
    if len(node.input) != 5:
        raise ModelFileError(f"give 5 inputs to BatchNormalization; got {len(node.input)} for {_name(node)!r:.80}")
    dialect = ONNX15 if version >= 14 else ONNX9
    given = {attribute.name: attribute for attribute in node.attribute}
    options = {
        "momentum": _short(given["momentum"].f) if "momentum" in given else dialect.momentum,
        "epsilon": _short(given["epsilon"].f) if "epsilon" in given else dialect.eps,
    }
    state, missing = dict[str, Array](), list[str]()
    for own, name in zip(dialect.names.values(), node.input[1:], strict=True):
        value = _value(origin(name, makers), values, makers)
        if value is None:
            missing.append(own)
        else:
            state[own] = vector(value)
    are = "is" if len(missing) == 1 else "are"
    lacks = f"{' and '.join(missing)} {are} computed by the graph" if missing else ""
    training = "training_mode" in given and given["training_mode"].i == 1
    return Norm(_name(node), dialect.name, state, options, training, lacks)


def _short(number: float) -> float:
    """Return the shortest decimal that rounds to this float32, such as 0.1."""
    return float(str(np.float32(number)))


def _name(node: Any) -> str:
    mean = node.input[3] if len(node.input) > 3 else ""
    ending = next((ending for ending in _ENDINGS if mean.endswith(ending)), None)
    return mean.removesuffix(ending) if ending else node.name or next(iter(node.output), "")


def _value(name: str, values: Mapping[str, Any], makers: Mapping[str, Any]) -> Array | None:
    """Return the value of an initializer or of a constant in the graph; None for anything else."""
    onnx = need("onnx", "ONNX files", "onnx")
    if name in values:
        return _bounded(onnx, values[name])
    node = makers.get(name)
    attributes = {attribute.name: attribute for attribute in node.attribute} if node is not None else {}
    if node is not None and node.op_type == "Constant" and "value" in attributes:
        return _bounded(onnx, attributes["value"].t)
    if node is not None and node.op_type == "ConstantOfShape" and (size := origin(node.input[0], makers)) in values:
        shape = _bounded(onnx, values[size])
        fill = _bounded(onnx, attributes["value"].t) if "value" in attributes else np.zeros(1, np.float32)
        if shape.size <= 4 and (shape >= 0).all() and float(np.prod(shape.astype(float))) <= MOST_CHANNELS:
            return np.full(tuple(shape.tolist()), fill.reshape(-1)[0])
    return None


def _bounded(onnx: Any, tensor: Any) -> Array:
    """Decode a tensor, unless it is larger than a batch norm's may be."""
    if float(np.prod([float(size) for size in tensor.dims])) > MOST_CHANNELS:
        raise ModelFileError(f"have at most {MOST_CHANNELS:,} channels; got shape {list(tensor.dims)}"[:200])
    return decode(onnx, tensor)


def decode(onnx: Any, tensor: Any) -> Array:
    """Decode a tensor whose values are all in the file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelFileError(f"hold the values of {tensor.name!r:.80} itself; got a reference to another file")
    array: Array = onnx.numpy_helper.to_array(tensor)
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)
