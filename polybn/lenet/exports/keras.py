"""The whole network as a Keras 3 model, from images (N, H, W, C) of 0 to 255 to class scores."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polybn import dialects
from polybn.lenet import networks
from polybn.lenet.exports.layouts import Layers, Layout, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.lenet.networks import Row
from polybn.model_files.archives import open_archive, read_member
from polybn.model_files.errors import ModelFileError, need

LAYOUT = Layout(dialects.KERAS3, "kernel", channels_last=True)
NOTE = "polybn.json"
"""The member of the archive with the note, which Keras ignores."""


def files(trained: Trained) -> dict[str, bytes]:
    """Let Keras write the model, and add the note to the archive."""
    if "keras" not in sys.modules:
        # Nothing is computed, so any backend will do; that on NumPy comes last, because it needs SciPy and JAX, too.
        usable = (name for name in ("jax", "torch", "tensorflow") if find_spec(name) is not None)
        os.environ.setdefault("KERAS_BACKEND", next(usable, "numpy"))
    keras = need("keras", "files of Keras", "keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras on NumPy calls what NumPy 2 deprecates
        return {".keras": _with_note(_model(keras, trained), trained.note)}


def _model(keras: Any, trained: Trained) -> Any:
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    rows = networks.rows(trained.network)
    channels, height, width = trained.network.input_shape
    made = [layer for row in rows for layer in _layers(keras, row)]
    model = keras.Sequential(
        [keras.Input((height, width, channels), name="images"), keras.layers.Rescaling(1 / 255), *made], name="lenet"
    )
    for layer in model.layers:
        if layer.name in layers:
            layer.set_weights(list(layers[layer.name].values()))
    return model


def _with_note(model: Any, note: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "lenet.keras")
        model.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(NOTE, note)
        return path.read_bytes()


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the note and the arrays."""
    from polybn.model_files import keras

    archive = open_archive(io.BytesIO(data))
    if NOTE not in archive.namelist():
        raise ModelFileError(f"hold a member {NOTE}; got none (polybn export writes it)")
    note = read_member(archive, NOTE).decode()
    found, tensors = keras.read_archive(archive)
    layers: Layers = {}
    for layer in found:
        names = list(LAYOUT.dialect.names.values()) if layer.normalizes else [LAYOUT.weight, "bias"]
        own = {name: f"{layer.name}/{number}" for number, name in enumerate(names)}
        layers[layer.name] = {name: tensors.read(full) for name, full in own.items() if full in tensors.shapes}
    return note, layers


def _layers(keras: Any, row: Row) -> list[Any]:
    match row.layer:
        case networks.Convolution(channels, kernel):
            return [keras.layers.Conv2D(channels, kernel, name=row.name)]
        case networks.Dense(features):
            flat = [keras.layers.Flatten()] if len(row.input_shape) == 3 else []
            return [*flat, keras.layers.Dense(features, name=row.name)]
        case networks.BatchNorm(_, momentum, eps):
            return [keras.layers.BatchNormalization(-1, momentum=momentum, epsilon=eps, name=row.name)]
        case networks.MaxPool(size):
            return [keras.layers.MaxPooling2D(size, name=row.name)]
        case networks.Sigmoid():
            return [keras.layers.Activation("sigmoid", name=row.name)]
