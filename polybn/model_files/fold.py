"""Folding of inference into the layer before: a convolution or a dense layer takes over the scale and the shift.

An ONNX file says which layer that is. The arithmetic is float64, rounded once.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from polybn.model_files.errors import need
from polybn.model_files.onnx import Found, decode, find, graphs, makers_of, origin
from polybn.model_files.tensors import Array


class Folded(NamedTuple):
    """The outcome for all batch norms of a model."""

    model: Any
    """The changed ONNX model."""
    into: list[tuple[str, str]]
    """The folded batch norms, and their layers."""
    kept: list[tuple[str, str]]
    """The remaining batch norms, and the reasons."""


def fold(model: Any) -> Folded:
    """Fold every batch norm of an ONNX model if possible, in place."""
    folded, every, spent = Folded(model, [], []), list(graphs(model.graph, 0)), set[str]()
    uses = _uses(every)
    for found in find(model):
        name = found.norm.name
        layer, why_not = _layer_before(found, uses)
        if layer is None:
            folded.kept.append((name, why_not))
        else:
            spent.update(found.node.input[1:])
            _absorb(found, layer)
            folded.into.append((name, layer.name or layer.op_type))
    _prune(every, spent)
    return folded


def _uses(every: list[Any]) -> Counter[str]:
    """Count how often each tensor is used, by nodes and as an output."""
    uses = Counter(name for graph in every for node in graph.node for name in node.input)
    uses.update(output.name for graph in every for output in graph.output)
    return uses


def _prune(every: list[Any], spent: set[str]) -> None:
    """Remove what folded batch norms alone have used, and in turn what only that has used."""
    while spent := spent - _uses(every).keys():
        makers = [(graph, node) for graph in every for node in graph.node if spent >= {*node.output}]
        for graph in every:
            for tensor in [tensor for tensor in graph.initializer if tensor.name in spent]:
                graph.initializer.remove(tensor)
        spent = set()
        for graph, node in makers:
            spent.update(node.input)
            graph.node.remove(node)


def _layer_before(found: Found, uses: Counter[str]) -> tuple[Any, str]:
    """Return the node that a batch norm can be folded into, or None with the reason."""
    graph, node, norm = found
    if norm.training or len([output for output in node.output if output]) > 1:
        return None, "it normalizes by the statistics of the batch"
    if norm.lacks:
        return None, norm.lacks
    if not (list(norm.state.values())[-1] + norm.options["epsilon"] > 0).all():
        return None, "its variance and eps are not above 0"
    maker = next((other for other in graph.node if node.input[0] in other.output), None)
    if maker is None:
        return None, "it comes first"
    if maker.op_type not in ("Conv", "Gemm"):
        return None, f"what comes before it is {maker.op_type}, neither Conv nor Gemm"
    if uses[node.input[0]] > 1:
        return None, f"{maker.op_type} before it has other users"
    inputs, makers = {value.name for value in graph.input}, makers_of(graph)
    if inputs & {*maker.input[1:], *(origin(name, makers) for name in node.input[1:])}:
        return None, f"it or {maker.op_type} before it has weights that callers may replace: inputs of the graph"
    values = {tensor.name: tensor for tensor in graph.initializer}
    if any(name not in values or uses[name] > 1 for name in maker.input[1:] if name):
        return None, f"{maker.op_type} before it shares its weights, or computes them"
    plain = {attribute.name: attribute.f for attribute in maker.attribute if attribute.name in ("alpha", "beta")}
    if any(value != 1 for value in plain.values()):
        return None, "Gemm before it has alpha or beta"
    sizes, channels = [list(values[name].dims) for name in maker.input[2:] if name], norm.state["scale"].size
    if any(math.prod(size) != 1 and size not in ([channels], [1, channels]) for size in sizes):
        return None, "Gemm before it adds more than a number for each channel"
    return maker, ""


def _absorb(found: Found, layer: Any) -> None:
    """Scale a layer's weight, shift its bias, and remove the batch norm from the graph."""
    graph, node, norm = found
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        gamma, beta, mean, var = (array.astype(np.float64) for array in norm.state.values())
    scale = gamma / np.sqrt(var + norm.options["epsilon"])
    onnx = need("onnx", "ONNX files", "onnx")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weight = decode(onnx, tensors[layer.input[1]])
    given = len(layer.input) > 2 and layer.input[2] != ""
    bias = decode(onnx, tensors[layer.input[2]]).reshape(-1) if given else np.zeros(len(scale))
    outputs = 1 if layer.op_type == "Gemm" and not _flag(layer, "transB") else 0
    shape = [1] * weight.ndim
    shape[outputs] = -1
    _replace(tensors[layer.input[1]], weight * scale.reshape(shape), weight.dtype)
    shifted = beta + (bias - mean) * scale
    name = layer.input[2] if given else f"{node.output[0]}.folded_bias"
    if not given:
        del layer.input[2:]
        layer.input.append(name)
        graph.initializer.add(name=name)
        tensors[name] = graph.initializer[-1]
    _replace(tensors[name], shifted, weight.dtype)
    layer.output[0] = node.output[0]
    graph.node.remove(node)


def _replace(tensor: Any, values: Array, dtype: np.dtype[Any]) -> None:
    onnx = need("onnx", "ONNX files", "onnx")
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(dtype), tensor.name))


def _flag(node: Any, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)
