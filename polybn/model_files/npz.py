"""NumPy's ``.npz``: an archive with a ``.npy`` file for each array. Nothing is unpickled."""

from __future__ import annotations

import io
import math
from typing import BinaryIO

import numpy as np

from polybn.model_files.archives import open_archive, read_member
from polybn.model_files.errors import ModelFileError
from polybn.model_files.tensors import Array, Tensors

HEADER = 2**16


def read(file: BinaryIO) -> Tensors:
    """Read the headers of all arrays; values are read on demand."""
    archive = open_archive(file)
    names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    shapes = dict[str, tuple[int, ...]]()
    for name, member in names.items():
        with archive.open(member) as stream:
            shapes[name] = _header(io.BytesIO(stream.read(HEADER)))[0]

    def value(name: str) -> Array:
        stream = io.BytesIO(read_member(archive, names[name]))
        shape, by_columns, dtype = _header(stream)
        if dtype.hasobject or dtype.kind not in "biufc":
            raise ModelFileError(f"hold numbers as {name!r:.80}; got {dtype} (objects would have to be unpickled)")
        # Not read_array, which allocates as much memory as a header claims.
        flat = np.frombuffer(stream.getbuffer(), dtype, math.prod(shape), stream.tell())
        return flat.reshape(shape, order="F" if by_columns else "C")

    return Tensors(shapes, value)


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ModelFileError(f"hold arrays in NumPy's formats 1.0 and 2.0; got {version}")
    return readers[version](stream)
