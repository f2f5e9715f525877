"""MXNet's ``.params``: a list of arrays in its binary form, then a list of their names.

Files of ``HybridBlock.export`` have names such as ``arg:conv0_weight`` and ``aux:batchnorm0_running_mean``, those of
``Block.save_parameters`` names such as ``0.weight``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from polybn.model_files.errors import CUT_OFF, ModelFileError
from polybn.model_files.tensors import MOST_TENSORS, Array, Tensors, check_dtypes

LIST, DENSE, DENSE_NUMPY = 0x112, 0xF993FAC9, 0xF993FACA
"""The first numbers of a list, of an array with classic shapes, and of one with NumPy's shapes."""
DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8", 7: "|b1"}
_FLAGS = {np.dtype(code): flag for flag, code in DTYPES.items()}
_CPU = (1, 0)


def encode(arrays: Mapping[str, Array]) -> bytes:
    """Encode arrays with one axis or more, as ``mxnet.nd.save`` does."""
    check_dtypes(arrays, _FLAGS, ".params")
    parts = [struct.pack("<3Q", LIST, 0, len(arrays))]
    for array in arrays.values():
        flag = _FLAGS[array.dtype.newbyteorder("<")]
        parts.append(struct.pack(f"<Iii{array.ndim}q3i", DENSE, 0, array.ndim, *array.shape, *_CPU, flag))
        parts.append(np.ascontiguousarray(array, DTYPES[flag]).tobytes())
    names = [name.encode() for name in arrays]
    parts += [struct.pack("<Q", len(names)), *(struct.pack("<Q", len(name)) + name for name in names)]
    return b"".join(parts)


def read(file: BinaryIO, size: int) -> Tensors:
    """Read the headers of the arrays and their names; values are read on demand."""
    magic, _, count = _take(file, "<3Q")
    if magic != LIST or count > MOST_TENSORS:
        raise ModelFileError(f"begin with a list of at most {MOST_TENSORS:,} arrays; got {count:,}")
    places = [_skip(file, size) for _ in range(count)]
    (named,) = _take(file, "<Q")
    if named != count:
        raise ModelFileError(f"name each of its {count} arrays; got {named} names")
    names = [_name(file, size) for _ in range(count)]
    found = dict(zip(names, places, strict=True))
    if len(found) < count:
        raise ModelFileError("name each array once; got a name twice")

    def value(name: str) -> Array:
        code, shape, offset = found[name]
        file.seek(offset)
        data = file.read(math.prod(shape) * np.dtype(code).itemsize)
        return np.frombuffer(data, code).reshape(shape)

    return Tensors({name: place[1] for name, place in found.items()}, value)


def _skip(file: BinaryIO, size: int) -> tuple[str, tuple[int, ...], int]:
    """Return the dtype, the shape and the offset of the next array, and skip its values."""
    magic, storage, rank = _take(file, "<Iii")
    if magic not in (DENSE, DENSE_NUMPY) or storage != 0 or not 0 <= rank <= 32:
        raise ModelFileError(f"hold dense arrays of MXNet 1.x; got a beginning {magic:#x}, {storage}, {rank}")
    shape = _take(file, f"<{rank}q")
    _, _, flag = _take(file, "<3i")
    if flag not in DTYPES:
        raise ModelFileError(f"hold arrays of dtypes {', '.join(map(str, DTYPES))}; got {flag}")
    offset = file.tell()
    length = math.prod(shape) * np.dtype(DTYPES[flag]).itemsize
    if min(shape, default=1) < 0 or offset + length > size:
        got = f"{size - offset:,} bytes after its beginning ({CUT_OFF})"
        raise ModelFileError(f"hold all of an array of shape {shape}; got {got}")
    file.seek(offset + length)
    return DTYPES[flag], shape, offset


def _name(file: BinaryIO, size: int) -> str:
    (length,) = _take(file, "<Q")
    if size - file.tell() < length <= 4096:
        raise ModelFileError(f"hold all of a name of {length:,} bytes; got {size - file.tell():,} ({CUT_OFF})")
    if length > 4096:
        raise ModelFileError(f"have names of at most 4,096 bytes; got {length:,}")
    return file.read(length).decode()


def _take(file: BinaryIO, form: str) -> tuple[int, ...]:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ModelFileError(f"go on where it says so; got its end after {file.tell():,} bytes ({CUT_OFF})")
    return struct.unpack(form, data)
