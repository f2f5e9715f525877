"""The whole network for MXNet, as ``HybridBlock.export`` writes it: a symbol in JSON, and its arrays.

``gluon.SymbolBlock.imports("lenet-symbol.json", ["data"], "lenet-0000.params")`` reads both.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from polybn import dialects
from polybn.lenet import networks
from polybn.lenet.exports.layouts import Layers, Layout, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.lenet.networks import Row
from polybn.model_files import gluon

LAYOUT = Layout(dialects.GLUON)
STATISTICS = ("running_mean", "running_var")
VERSION = ["int", 10901]


def files(trained: Trained) -> dict[str, bytes]:
    """Write the two files; the symbol holds the note as its attribute ``polybn``."""
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    arrays = {f"{_kind(name)}:{layer}_{name}": array for layer, own in layers.items() for name, array in own.items()}
    graph = _Graph()
    value = graph.add("null", "data", {"polybn": trained.note})
    value = graph.add("Cast", "floats", {"dtype": "float32"}, [value])
    value = graph.add("_div_scalar", "scaled", {"scalar": "255"}, [value])
    for row in networks.rows(trained.network):
        own = [graph.add("null", f"{row.name}_{name}", _of(array)) for name, array in layers.get(row.name, {}).items()]
        kind, attributes = _operator(row)
        value = graph.add(kind, row.name, attributes, [value, *own])
    return {"-symbol.json": graph.to_json(value), "-0000.params": gluon.encode(arrays)}


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the arrays; the note is in the other file."""
    tensors = gluon.read(io.BytesIO(data), len(data))
    layers: Layers = {}
    for full in tensors.shapes:
        layer, _, name = full.partition(":")[2].partition("_")
        layers.setdefault(layer, {})[name] = np.array(tensors.read(full))
    return None, layers


def note_of(symbol: bytes) -> str | None:
    """Return the note in a symbol."""
    nodes = json.loads(symbol)["nodes"]
    note: str | None = nodes[0].get("attrs", {}).get("polybn")
    return note


class _Graph:
    """The nodes of a symbol."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []

    def add(self, op: str, name: str, attributes: dict[str, str], inputs: list[int] | None = None) -> int:
        """Add a node whose inputs are the first outputs of other nodes; return its number."""
        node = {"op": op, "name": name, "attrs": attributes, "inputs": [[number, 0, 0] for number in inputs or []]}
        self.nodes.append(node)
        return len(self.nodes) - 1

    def to_json(self, head: int) -> bytes:
        """Return the symbol with the output of one node."""
        arguments = [number for number, node in enumerate(self.nodes) if node["op"] == "null"]
        symbol = {"nodes": self.nodes, "arg_nodes": arguments, "heads": [[head, 0, 0]]}
        return json.dumps(symbol | {"attrs": {"mxnet_version": VERSION}}, indent=1).encode()


def _kind(name: str) -> str:
    return "aux" if name in STATISTICS else "arg"


def _of(array: Any) -> dict[str, str]:
    return {"__shape__": str(tuple(array.shape)), "__dtype__": "0"}


def _operator(row: Row) -> tuple[str, dict[str, str]]:
    match row.layer:
        case networks.Convolution(channels, kernel):
            return "Convolution", {"kernel": f"({kernel}, {kernel})", "num_filter": f"{channels}"}
        case networks.Dense(features):
            return "FullyConnected", {"num_hidden": f"{features}", "flatten": "True"}
        case networks.BatchNorm(_, momentum, eps):
            options = {"momentum": f"{momentum!r}", "eps": f"{eps!r}", "axis": "1"}
            return "BatchNorm", options | {"fix_gamma": "False", "use_global_stats": "False"}
        case networks.MaxPool(size):
            return "Pooling", {"kernel": f"({size}, {size})", "stride": f"({size}, {size})", "pool_type": "max"}
        case networks.Sigmoid():
            return "Activation", {"act_type": "sigmoid"}
