"""A state dict for ``torch.load(path, weights_only=True)``: it holds only arrays, the note among them as bytes."""

from __future__ import annotations

import io

import numpy as np

from polybn.lenet.exports import safetensors
from polybn.lenet.exports.layouts import Layers, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.model_files import pytorch
from polybn.model_files.errors import need

LAYOUT = safetensors.LAYOUT
NOTE = "polybn"


def files(trained: Trained) -> dict[str, bytes]:
    """Write one file: a dict of the state dict and the note."""
    torch = need("torch", "files of PyTorch", "torch")
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    state = {
        f"{layer}.{name}": torch.from_numpy(np.array(array))
        for layer, own in layers.items()
        for name, array in own.items()
    }
    buffer = io.BytesIO()
    torch.save({"state_dict": state, NOTE: trained.note}, buffer)
    return {".pt": buffer.getvalue()}


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the note and the arrays; PyTorch unpickles no other types."""
    content = pytorch.load(io.BytesIO(data))
    layers: Layers = {}
    for full, tensor in content["state_dict"].items():
        layer, _, name = full.rpartition(".")
        layers.setdefault(layer, {})[name] = tensor.numpy()
    return content.get(NOTE), layers
