"""Reading of a model's batch norms. The content of a file, and not its name, decides its format if possible."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from polybn.atomic import StrPath, open_regular
from polybn.model_files import flax, gluon, keras, names, note, npz, onnx, orbax, pytorch, safetensors, symbol
from polybn.model_files import fold as folding
from polybn.model_files.archives import open_archive
from polybn.model_files.errors import ModelFileError, naming
from polybn.model_files.fold import Folded
from polybn.model_files.kinds import kind_of
from polybn.model_files.left_out import left_out
from polybn.model_files.model import Model
from polybn.model_files.tensors import Tensors

WHOLE, MOST_BYTES = ("ONNX", "Flax"), 2**31
"""The kinds of files that are parsed as a whole, and their largest size in bytes; ONNX allows no more than 2 GiB."""


def read(path: StrPath, first: tuple[str, ...] = ()) -> Model:
    """Read the batch norms of a model: names, statistics, and the momentum and eps in the file.

    Parameters
    ----------
    path : path
        A file of PyTorch, Keras, Flax, MXNet, ONNX or NumPy, or a directory of Orbax. No code in it is run, and sizes
        in it are checked before memory is allocated.
    first : tuple of str, optional
        Dialects to try before the others, for arrays whose names fit several. A file that says itself what its layers
        are (Keras, ONNX) is not asked.

    Returns
    -------
    Model

    Raises
    ------
    ModelFileError
        If the file is damaged, too large, or of another kind.
    ImportError
        If a library is needed that is not installed; the message says what installs it.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = f"{directory}/model.npz"
    ...     np.savez(path, **{"bn1/avg_mean": np.ones(3), "bn1/avg_var": np.ones(3), "bn1/gamma": np.ones(3)})
    ...     model = read(path)
    >>> model.norms[0].name, model.norms[0].dialect
    ('bn1', 'chainer')
    """
    if Path(path).is_dir():
        with naming("model_files.read", path, "a checkpoint of Orbax"):
            return _of_tensors("Orbax", orbax.read(Path(path)), first)
    with naming("model_files.read", path, "the file of a model"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        kind = kind_of(file, Path(path).suffix.lower())
    with naming("model_files.read", path, f"an undamaged file of {kind}"), open_regular(path) as file:
        if kind in WHOLE and size > MOST_BYTES:
            raise ModelFileError(f"have at most {MOST_BYTES:,} bytes; got {size:,}")
        model = _of_tensors(kind, _TENSORS[kind](file, size), first) if kind in _TENSORS else _MODELS[kind](file, size)
    return symbol.with_options(model, Path(path)) if kind == "MXNet" else model


def fold(path: StrPath) -> Folded:
    """Read an ONNX model, and fold its batch norms into the layers before them.

    Parameters
    ----------
    path : path

    Returns
    -------
    Folded
        The changed model, and the outcome for each batch norm.

    Raises
    ------
    ModelFileError
        If the file is damaged, too large, or not ONNX.
    """
    with naming("model_files.fold", path, "an ONNX model"), open_regular(path) as file:
        if kind_of(file, Path(path).suffix.lower()) != "ONNX" or os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise ModelFileError("be an ONNX model; got another file (only ONNX says which layer comes before)")
        file.seek(0)
        return folding.fold(onnx.parse(file.read()))


def _of_tensors(format: str, tensors: Tensors, first: tuple[str, ...]) -> Model:
    usual = _USUAL.get(tensors.metadata.get("format", format), ())
    told = (*first, *note.dialect(tensors.metadata), *usual)
    norms = note.with_options(names.find(tensors, told), tensors.metadata)
    left = tuple(left_out(tensors.shapes, [norm.name for norm in norms], told))
    return Model(format, norms, len(tensors.shapes), left)


def _onnx(file: BinaryIO, size: int) -> Model:  # noqa: ARG001
    model = onnx.parse(file.read())
    return Model("ONNX", [found.norm for found in onnx.find(model)], len(model.graph.initializer))


_TENSORS: dict[str, Callable[[BinaryIO, int], Tensors]] = {
    "safetensors": safetensors.read,
    "PyTorch": lambda file, size: pytorch.read(file),  # noqa: ARG005
    "Flax": flax.read,
    "MXNet": gluon.read,
    "NumPy": lambda file, size: npz.read(file),  # noqa: ARG005
}
"""The kinds of files that hold arrays alone, whose names say what they are."""
_USUAL = {"MXNet": ("gluon", "mxnet_native"), "mlx": ("mlx",)}
"""The dialects to try first, by the kind of file or by what its metadata says."""
_MODELS: dict[str, Callable[[BinaryIO, int], Model]] = {
    "Keras": lambda file, size: keras.find_archive(open_archive(file)),  # noqa: ARG005
    "HDF5": lambda file, size: keras.find_weights(file),  # noqa: ARG005
    "ONNX": _onnx,
}
"""The kinds of files that also say which layers there are."""
