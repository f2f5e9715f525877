"""Arrays in files: NumPy's ``.npy`` and ``.npz``, and IDX, the format of MNIST, compressed or not.

Uncompressed arrays are mapped into memory, and only the current block is read; arrays in archives are read as a
stream. Nothing is unpickled.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy

from polybn.lenet.errors import DataIntegrityError
from polybn.lenet.idx import TYPES
from polybn.spec import DomainError, ShapeError
from polybn.statistics.accumulator import DAMAGE, FIELDS
from polybn.statistics.parts import LIMIT, Array, Layout, NotFinite, Part, blocks, channels_last, check_dtype, noted

SAVED = tuple(FIELDS)[:4]
"""The arrays that every file of statistics has."""
NPY, ZIP, GZIP = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b"


class Header(NamedTuple):
    """The facts about an array in its first bytes in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    length: int
    """The number of bytes of the header itself."""

    @property
    def size(self) -> int:
        """The number of bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def parts_of(path: Path, layout: Layout) -> list[Part] | None:
    """Return the parts of a file of arrays, recognized by its first bytes; None for any other file."""
    with path.open("rb") as file:
        start = file.read(6)
    try:
        if start.startswith(NPY):
            return _mapped(path, layout, _npy_header)
        if start.startswith(ZIP):
            return _npz(path, layout)
        if start.startswith(GZIP):
            return _streamed(path, f"{path}", layout, partial(_open_packed, path), _idx_header)
        if start[:2] == b"\0\0" and len(start) > 3 and start[2] in TYPES:
            return _mapped(path, layout, _idx_header)
    except (DomainError, ShapeError, DataIntegrityError):  # --axis or --array is wrong, or what is wrong is said
        raise
    except DAMAGE as error:
        raise DataIntegrityError(f"polybn stats: {path} must be a whole file of arrays; got {error}") from error
    return None


def _npy_header(file: IO[bytes]) -> Header:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format, whose dtypes have names")
    shape, fortran, dtype = read(file)
    return Header(shape, dtype, fortran, file.tell())


def _idx_header(file: IO[bytes]) -> Header:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or start[3] == 0:
        raise ValueError(f"{start!r} where the magic number of an IDX file should be")
    sizes = file.read(4 * start[3])
    return Header(
        struct.unpack(f">{start[3]}I", sizes), np.dtype(TYPES[start[2]]).newbyteorder(">"), False, file.tell()
    )


def _channel_axis(name: str, layout: Layout, header: Header, read: Callable[[IO[bytes]], Header]) -> int | None:
    """Return the channel axis; images in IDX files are grey, so they have none."""
    check_dtype(name, header.dtype)
    grey = read is _idx_header and len(header.shape) <= 3
    return layout.channel_axis(name, header.shape, default="none" if grey else None)


def _mapped(path: Path, layout: Layout, read: Callable[[IO[bytes]], Header]) -> list[Part]:
    with path.open("rb") as file:
        header = read(file)
    axis, found = _channel_axis(f"{path}", layout, header, read), path.stat().st_size - header.length
    if found != header.size:
        raise ValueError(
            f"{found:,} bytes of values, where shape {header.shape} of {header.dtype} needs {header.size:,}"
        )
    if not header.size:
        return []
    array = _map(path, header)
    cut = list(blocks(array, axis))
    named = {f"{path}{'' if len(cut) == 1 else _words(index)}": index for index in cut}
    size, dtype = header.size // len(cut), header.dtype.name
    return [Part(name, size, partial(_read, path, header, i, axis), dtype) for name, i in named.items()]


def _words(index: tuple[slice, ...]) -> str:
    return f"[{', '.join(f'{part.start}:{part.stop}' for part in index)}]"


def _map(path: Path, header: Header) -> Array:
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", header.length, header.shape, order)


def _read(path: Path, header: Header, index: tuple[slice, ...], axis: int | None) -> Iterator[Array | NotFinite]:
    yield from noted(f"{path}", channels_last(_map(path, header)[index], axis))


def _npz(path: Path, layout: Layout) -> list[Part]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if layout.array is None and {"axis", *SAVED} <= set(names):
        raise DataIntegrityError(
            f"polybn stats: {path} must be a file of data; it has statistics that --save or polybn.Statistics.save "
            f"wrote (--from {path} goes on with them)"
        )
    name = pick(f"{path}", names, layout.array)
    return _streamed(path, f"{path}[{name}]", layout, partial(_open_member, path, f"{name}.npy"), _npy_header)


def pick(path: str, names: list[str], wanted: str | None) -> str:
    """Choose the array with the wanted name, or the only one."""
    if wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    raise DomainError(
        f"polybn stats: --array must name one of the arrays of {path}; got {wanted or 'nothing'} "
        f"(they are {', '.join(names) or 'none'})"
    )


def _open_packed(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path))


def _open_member(path: Path, member: str) -> IO[bytes]:
    return zipfile.ZipFile(path).open(member)


def _streamed(
    path: Path, name: str, layout: Layout, start: Callable[[], IO[bytes]], read: Callable[[IO[bytes]], Header]
) -> list[Part]:
    with start() as file:
        header = read(file)
    axis = _channel_axis(name, layout, header, read)
    if not header.size:
        return []
    return [Part(name, path.stat().st_size, partial(_stream, name, start, header, axis), header.dtype.name)]


def _stream(name: str, start: Callable[[], IO[bytes]], header: Header, axis: int | None) -> Iterator[Array | NotFinite]:
    """Read row by row along the first axis, or as a whole if that axis is the channels' or the last in memory."""
    rows, at_once = header.shape[0] if header.shape else 1, header.fortran or axis == 0
    step = rows if at_once else max(1, LIMIT // (header.size // rows))
    with start() as file:
        file.read(header.length)
        for low in range(0, rows, step):
            count = min(step, rows - low)
            data = _exactly(file, count * (header.size // rows))
            shape = (count, *header.shape[1:]) if header.shape else ()
            array = np.ndarray(shape, header.dtype, data, order="F" if header.fortran else "C")
            yield from noted(name, channels_last(array, axis))
        if file.read(1):
            raise ValueError(f"more bytes than shape {header.shape} needs")


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Read exactly ``size`` bytes, in small steps, because a header may claim more than the file has."""
    steps, left = [], size
    while left:
        steps.append(file.read(min(left, 1 << 24)))
        if not steps[-1]:
            raise ValueError(f"an end, {left:,} bytes too early")
        left -= len(steps[-1])
    return b"".join(steps)
