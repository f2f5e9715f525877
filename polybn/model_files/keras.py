"""Keras 3: ``.keras``, an archive of a configuration and weights, and ``.weights.h5``, the weights alone.

Weights are numbered, not named: of a batch norm 0 is gamma, 1 beta, 2 the moving mean and 3 the moving variance, and
where scale or center is off, the others move up.
"""

from __future__ import annotations

from typing import BinaryIO

from polybn.model_files import hdf5
from polybn.model_files.tensors import Tensors

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""Members of an archive."""
VARIABLES = "vars"


def read_weights(file: BinaryIO) -> Tensors:
    """Return weights as ``layer/0``, ``layer/1``; a layer in a model in a model is ``outer/inner/layer``."""
    tensors, names = hdf5.read(file)
    paths = {_named(path, names): path for path in tensors.shapes}
    return Tensors({name: tensors.shapes[path] for name, path in paths.items()}, lambda name: tensors.read(paths[name]))


def _named(path: str, names: dict[str, str]) -> str:
    """Replace ``layers/batch_normalization/vars/0`` by the name that the layer was given, ``norm1/0``."""
    group, _, last = path.rpartition("/")
    if group.rpartition("/")[2] != VARIABLES:
        return path
    parts, outer = list[str](), ""
    for part in group.split("/")[:-1]:
        outer = f"{outer}/{part}".strip("/")
        name = names.get(f"{outer}/{VARIABLES}")
        parts += [] if name is None else [name]
    return "/".join([*parts, last])
