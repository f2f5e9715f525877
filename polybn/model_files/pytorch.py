"""PyTorch's ``.pt`` and ``.pth``, read by PyTorch itself, which unpickles only tensors and plain containers."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from polybn.model_files.archives import open_archive
from polybn.model_files.errors import ModelFileError, need
from polybn.model_files.tensors import Array, Tensors

MOST_DEPTH = 16
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"
"""The first bytes of files of PyTorch before 1.6: a pickled number, before several pickles and the tensors' bytes."""


def read(file: BinaryIO) -> Tensors:
    """Read all state dicts of a file at any depth; names are such as ``state_dict.bn1.weight``."""
    torch = need("torch", "files of PyTorch", "torch")
    content = load(file)
    tensors = dict(_tensors(torch, content, "", 0))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    texts = content.items() if isinstance(content, Mapping) else ()
    said = {f"{key}": text for key, text in texts if isinstance(text, str)}
    return Tensors(shapes, lambda name: _to_numpy(torch, tensors[name]), said)


def load(file: BinaryIO) -> Any:
    """Let PyTorch load a file that holds tensors and plain containers alone."""
    torch = need("torch", "files of PyTorch", "torch")
    file.seek(0)
    if file.read(len(LEGACY)) != LEGACY:
        _check(open_archive(file))
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is refused, and its oddities do not matter
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" not in f"{error}" and "Weights only" not in f"{error}":
            raise
        raise ModelFileError(
            "hold tensors and plain containers alone; got a pickle that names other types, which is not run "
            "(save the module's state_dict(), not the module)"
        ) from error


def _check(archive: zipfile.ZipFile) -> None:
    if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # first, because its code is compressed
        raise ModelFileError("hold a state dict; got a TorchScript program (save the module's state_dict())")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ModelFileError("hold members as torch.save writes them; got compressed ones")


def _tensors(torch: Any, content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < MOST_DEPTH:
        for key, value in content.items():
            yield from _tensors(torch, value, f"{prefix}{key}.", depth + 1)


def _to_numpy(torch: Any, tensor: Any) -> Array:
    plain = tensor.detach().contiguous()
    small = plain.is_floating_point() and plain.element_size() <= 2 and plain.dtype != torch.float16
    return np.array((plain.float() if small else plain).numpy())  # NumPy has neither bfloat16 nor float8
