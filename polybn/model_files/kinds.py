"""The kind of a file, by its beginning; its name counts only where that is the beginning of no kind."""

from __future__ import annotations

from typing import BinaryIO

from polybn.model_files import keras, pytorch
from polybn.model_files.archives import open_archive
from polybn.model_files.errors import ModelFileError

KINDS = ".safetensors, .pt, .pth, .keras, .h5, .msgpack, .params, .onnx, .npz, or a directory of Orbax"
_BY_NAME = {".onnx": "ONNX", ".msgpack": "Flax", ".safetensors": "safetensors", ".params": "MXNet"}
_FIRST_IR = 3
"""The version of ONNX from which on its files are recognized; a SavedModel of TensorFlow begins as one of version 1."""


def kind_of(file: BinaryIO, suffix: str) -> str:
    """Return the kind of a file by its first bytes, or else by the ending of its name."""
    start = file.read(9)
    if not start:
        raise ModelFileError("be the file of a model; got an empty one")
    if start.startswith(b"PK\3\4"):
        return _kind_of_archive(set(open_archive(file).namelist()))
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5"
    if start.startswith(b"\x12\1\0\0\0\0\0\0"):
        return "MXNet"
    if start == pytorch.LEGACY:
        return "PyTorch"
    if start[5:] == b"\0\0\0{":  # after the length of a header, which is never as long
        return "safetensors"
    named = "ONNX" if _is_onnx(start) else "Flax" if _is_flax(start) else _BY_NAME.get(suffix)
    if named is None and start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
        raise ModelFileError("be of another kind; got a pickle, which can run any code: it is not opened")
    if named is None:
        raise ModelFileError(f"be one of {KINDS}; got {start!r} as its beginning")
    return named


def _is_onnx(start: bytes) -> bool:
    """Whether these are a version of ONNX and then its producer's name, or else one of the fields before the graph."""
    if len(start) < 9 or start[0] != 0x08 or not _FIRST_IR <= start[1] < 0x80:
        return False
    producer = start[2] == 0x12 and 0 < start[3] < 0x80 and _is_text(start[4 : 4 + start[3]])
    return producer or start[2] in b"\x1a\x22\x28\x32\x3a"


def _is_flax(start: bytes) -> bool:
    """Whether this is a mapping of msgpack whose first key is a text, as is every state of Flax."""
    key = start[3:] if start[0] == 0xDE else start[1:] if 0x81 <= start[0] <= 0x8F else b""
    if key[:1] == b"\xd9":
        return _is_text(key[2:])
    return len(key) > 1 and 0xA1 <= key[0] <= 0xBF and _is_text(key[1 : key[0] - 0xA0 + 1])


def _is_text(data: bytes) -> bool:
    return data.isascii() and data.decode("latin-1").isprintable() and data != b""


def _kind_of_archive(members: set[str]) -> str:
    if keras.CONFIG in members:
        return "Keras"
    if any(member.endswith("data.pkl") for member in members):
        return "PyTorch"
    if any(member.endswith(".npy") for member in members):
        return "NumPy"
    raise ModelFileError(f"be an archive of PyTorch, Keras or NumPy; got members {', '.join(sorted(members)):.120}")
