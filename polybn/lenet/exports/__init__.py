"""Conversion of a trained network to files of other frameworks, and back.

>>> sorted(FORMATS)
['flax', 'gluon', 'keras', 'onnx', 'pt', 'safetensors']
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polybn.atomic import StrPath, read_whole, write_atomic
from polybn.lenet.exports import trained
from polybn.lenet.exports.layouts import from_layers
from polybn.model_files.errors import naming
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.lenet.networks import Network, State
    from polybn.lenet.runs import Run

FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "pt": ".pt",
    "flax": ".msgpack",
    "keras": ".keras",
    "gluon": "-0000.params",
}
"""For each format, the ending of its files. Gluon has a second file, ``-symbol.json``."""
MOST_BYTES = 2**30


def export(run: Run, path: StrPath, format: str) -> list[Path]:
    """Write the trained network of a run for another framework.

    Parameters
    ----------
    run : Run
        A run, as :func:`polybn.train` and :func:`polybn.lenet.runs.load` return it.
    path : path
        The file. The ending of the format is appended if it is missing.
    format : str
        A key of :data:`~polybn.lenet.exports.FORMATS`.

    Returns
    -------
    list of Path
        The files that were written; two for Gluon, one for the others.

    Raises
    ------
    DomainError
        If there is no such format.
    ImportError
        If the format needs a library that is not installed; the message says what installs it.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> run = polybn.train(polybn.networks.lenet(), data=polybn.fashion_mnist.load("sample"), epochs=1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [file.name for file in export(run, Path(directory, "lenet"), "safetensors")]
    ['lenet.safetensors']
    """
    files: dict[str, bytes] = _module(format).files(trained.of_run(run))
    target = Path(path)
    written = {target.with_name(target.name.removesuffix(FORMATS[format]) + end): data for end, data in files.items()}
    for file, data in written.items():
        write_atomic(file, data)
    return list(written)


def load(path: StrPath) -> tuple[Network, State]:
    """Read a network that :func:`export` wrote, even if other programs have changed its weights.

    Parameters
    ----------
    path : path
        The file; for Gluon the one with the arrays.

    Returns
    -------
    network : Network
    state : dict of str to ndarray
        The exported values, bit by bit.

    Raises
    ------
    ModelFileError
        If the file is damaged, or is no such export.

    Examples
    --------
    >>> import tempfile
    >>> import polybn
    >>> run = polybn.train(polybn.networks.lenet(), data=polybn.fashion_mnist.load("sample"), epochs=1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     network, state = load(export(run, Path(directory, "lenet"), "safetensors")[0])
    >>> all((state[name] == run.state[name]).all() for name in state)
    True
    """
    format = next((key for key, ending in FORMATS.items() if str(path).endswith(ending)), None)
    if format is None:
        endings = ", ".join(FORMATS.values())
        raise DomainError(f"polybn.exports.load: path must end in one of {endings}; got {path} (the format's ending)")
    module, kind = _module(format), "what polybn export writes"
    with naming("exports.load", path, kind):
        note, layers = module.read(read_whole(path, MOST_BYTES))
    if format == "gluon":
        symbol = Path(str(path).removesuffix(FORMATS[format]) + "-symbol.json")
        with naming("exports.load", symbol, kind):
            note = module.note_of(read_whole(symbol, MOST_BYTES))
    with naming("exports.load", path, kind):
        network = trained.network_of(note)
        return network, from_layers(network, layers, module.LAYOUT)


def _module(format: str) -> Any:
    if format not in FORMATS:
        names = ", ".join(FORMATS)
        raise DomainError(f"polybn.exports.export: format must be one of {names}; got {format!r} (see FORMATS)")
    return importlib.import_module(f"polybn.lenet.exports.{format}")
