"""A state dict for PyTorch, as safetensors: names such as ``conv1.weight`` and ``norm1.running_mean``."""

from __future__ import annotations

import io

from polybn import dialects
from polybn.lenet.exports.layouts import Layers, Layout, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.model_files import safetensors

LAYOUT = Layout(dialects.PYTORCH)


def files(trained: Trained) -> dict[str, bytes]:
    """Write one file, with the note in its metadata under ``polybn``."""
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    arrays = {f"{layer}.{name}": array for layer, own in layers.items() for name, array in own.items()}
    return {".safetensors": safetensors.encode(arrays, {"polybn": trained.note, "format": "pt"})}


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the note and the arrays."""
    tensors = safetensors.read(io.BytesIO(data), len(data))
    layers: Layers = {}
    for name in tensors.shapes:
        layer, _, own = name.rpartition(".")
        layers.setdefault(layer, {})[own] = tensors.read(name)
    return tensors.metadata.get("polybn"), layers
