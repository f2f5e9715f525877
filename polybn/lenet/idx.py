"""Read IDX, the file format of MNIST and similar data sets, from bytes that are not trusted.

An IDX file is a header (two zero bytes, a type code, the number of dimensions, each dimension as a
big-endian 32-bit integer) and then the values. It has no digest and no end mark, so the caller
gives the expected shape, and any other is refused. No more memory is allocated than this shape
needs, whatever the header claims.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GZIP = 31  # zlib's code for a gzip header and trailer, and a window of any size
_UINT8 = 0x08
TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
"""The dtype of each type code; values are big-endian."""


class DamagedError(ValueError):
    """Bytes are not what they should be. The message has the form ``<rule>; got <what was found>``."""


def file_size(shape: tuple[int, ...]) -> int:
    """Return the number of bytes of an uncompressed IDX file of uint8 values.

    >>> file_size((60_000, 28, 28))
    47040016
    """
    return 4 + 4 * len(shape) + math.prod(shape)


def gunzip(data: bytes, size: int) -> bytes:
    """Decompress one gzip member that must hold exactly ``size`` bytes and end where ``data`` ends.

    At most one byte more is decompressed. Anything but a complete, intact member is a :class:`DamagedError`.

    >>> import gzip
    >>> gunzip(gzip.compress(b"abc"), 3)
    b'abc'
    """
    stream = zlib.decompressobj(_GZIP)
    try:
        content = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise DamagedError(
            f"be an intact gzip file; got {len(data):,} bytes that start with {data[:12]!r} ({error})"
        ) from error
    if len(content) > size:
        raise DamagedError(f"decompress to {size:,} bytes; got more than that")
    if not stream.eof:
        raise DamagedError(f"be a whole gzip file; got one that is cut off after {len(data):,} bytes")
    if len(content) < size:
        raise DamagedError(f"decompress to {size:,} bytes; got {len(content):,}")
    if stream.unused_data:
        raise DamagedError(f"end where its gzip member ends; got {len(stream.unused_data):,} more bytes")
    return content


def parse(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the values of an uncompressed IDX file as a read-only view of its bytes.

    A header or a length that does not fit the given shape is a :class:`DamagedError`.

    >>> parse(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), (2,))
    array([7, 9], dtype=uint8)
    """
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DamagedError(f"start with an IDX header of {header} bytes; got {len(content)} bytes in all")
    zeros, code, dimensions = struct.unpack_from(">HBB", content)
    if zeros != 0:
        raise DamagedError(f"start with the IDX magic number, two zero bytes first; got {content[:4]!r}")
    if code != _UINT8:
        raise DamagedError(f"hold uint8 values (IDX type 0x08); got type {code:#04x} ({TYPES.get(code, 'unknown')})")
    if dimensions != len(shape):
        raise DamagedError(f"have {len(shape)} dimensions; got {dimensions}")
    found = struct.unpack_from(f">{dimensions}I", content, 4)
    if found != shape:
        raise DamagedError(f"have shape {shape}; got {found}")
    if len(content) != file_size(shape):
        raise DamagedError(f"have {file_size(shape):,} bytes for its shape {shape}; got {len(content):,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
