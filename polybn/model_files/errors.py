"""Errors of model files, and the import of libraries that some files need."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from polybn.atomic import StrPath, UnfitFileError
from polybn.spec import DomainError, DTypeError, ShapeError

CUT_OFF = "it may be cut off"
"""What damaged files are most often: half of a download, or of a copy to a full disk."""
_ENDED = re.compile(
    r"EOF|truncated|incomplete|requires a buffer|max_\w+_len|parsing message|bad byte|open file \(", re.I
)
"""What parsers say at a file's early end; those of ONNX and HDF5 have the same words for all damage."""
PARSERS = (None, 0, errno.EINVAL)
"""The numbers of errors that come from parsers and not from the system, such as a seek to a place before the file."""


class ModelFileError(DomainError):
    """A model file is damaged, too large, or of an unknown kind."""


def need(module: str, purpose: str, requirement: str) -> Any:
    """Import a library; without it, raise an error that says what needs it and how to install it.

    Parameters
    ----------
    module : str
        The module, such as ``"onnx.helper"``.
    purpose : str
        What needs the library, such as ``"ONNX files"``.
    requirement : str
        The argument of ``pip install``.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If it cannot be imported.

    Examples
    --------
    >>> need("math", "sums", "nothing").fsum([1, 2])
    3.0
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own deprecations do not matter to users of a file
            return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        lacking = (error.name or root).partition(".")[0]  # it may be what the library itself imports
        raise ImportError(
            f"polybn: {purpose} need the library {root}; got {error} "
            f"(pip install {requirement if lacking == root else lacking})",
            name=module,
        ) from error


@contextlib.contextmanager
def naming(function: str, path: StrPath, kind: str) -> Iterator[None]:
    """Turn any exception of a parser into one sentence that names the file.

    Parameters
    ----------
    function : str
        The public function, such as ``"model_files.read"``.
    path : path
        The file.
    kind : str
        The kind that the file must be, such as ``"an ONNX model"``.

    Raises
    ------
    ModelFileError
        For all errors except those of the system and missing libraries.
    """
    begins = f"polybn.{function}: {os.fspath(path)} must"
    try:
        yield
    except UnfitFileError as error:
        raise ModelFileError(f"polybn.{function}: {error}") from None
    except ModelFileError as error:
        raise ModelFileError(f"{begins} {error}") from None
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in PARSERS:
            error.filename = error.filename or os.fspath(path)
            raise
        raise ModelFileError(f"{begins} be {kind}; got {_one_line(error)}") from error


@contextlib.contextmanager
def of_layer(function: str, layer: str) -> Iterator[None]:
    """Begin a message about the state of a layer with the function that was called, and with the layer.

    Parameters
    ----------
    function : str
        The public function, such as ``"inspect"``.
    layer : str
        The name of the layer.

    Raises
    ------
    DomainError, DTypeError, ShapeError
        With the class and the words of the error in the block.
    """
    try:
        yield
    except (DomainError, DTypeError, ShapeError) as error:
        raise type(error)(f"polybn.{function}: in {layer!r:.80}, {f'{error}'.partition(': ')[2]}") from None


def _one_line(error: Exception) -> str:
    words = " ".join(f"{error}".split())
    name = type(error).__name__
    said = f"{name}: {words:.160}" if words else name
    return f"{said} ({CUT_OFF})" if _ENDED.search(f"{name} {words}") else said
