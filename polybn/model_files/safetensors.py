"""The format safetensors: the length of a JSON header, the header, and the bytes of all tensors in a row.

Its specification is at https://github.com/huggingface/safetensors. Names of tensors are free: a running mean may be
``bn1.running_mean`` in a file from PyTorch, and ``batch_stats.bn1.mean`` in one from Flax.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from polybn.model_files.errors import CUT_OFF, ModelFileError
from polybn.model_files.tensors import Array, Tensors, check_dtypes, widen_bfloat16

MOST_HEADER = 2**24
"""The largest header in bytes; a tensor takes some 100."""
DTYPES = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    "BOOL": "|b1",
    "BF16": "<u2",
}
_NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Encode tensors, the widest dtypes first, so that each is aligned."""
    check_dtypes(arrays, _NAMES, ".safetensors")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, offset = list[bytes](), 0
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        dtype = array.dtype.newbyteorder("<")
        parts.append(np.ascontiguousarray(array, dtype).tobytes())
        end = offset + len(parts[-1])
        header[name] = {"dtype": _NAMES[dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def read(file: BinaryIO, size: int) -> Tensors:
    """Read the header; values are read on demand, so that the file may be larger than memory."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if len(start) < 8 or size - 8 < length <= MOST_HEADER:
        raise ModelFileError(f"hold all of its header, {length + 8:,} bytes or more; got {size:,} ({CUT_OFF})")
    if not 2 <= length <= MOST_HEADER:
        raise ModelFileError(f"have a header of 2 to {MOST_HEADER:,} bytes; got {length:,}")
    header = json.loads(file.read(length), object_pairs_hook=_once)
    metadata = header.pop("__metadata__", {})
    places = {name: _place(name, entry, size - 8 - length) for name, entry in header.items()}

    def value(name: str) -> Array:
        code, shape, begin, end = places[name]
        if code not in DTYPES:
            raise ModelFileError(f"hold {name!r:.80} in one of {', '.join(DTYPES)}; got {code!r:.80}")
        file.seek(8 + length + begin)
        found = np.frombuffer(file.read(end - begin), DTYPES[code]).reshape(shape)
        return widen_bfloat16(found) if code == "BF16" else found

    shapes = {name: place[1] for name, place in places.items()}
    return Tensors(shapes, value, {str(key): str(text) for key, text in metadata.items()})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, whose last value of a name would replace the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ModelFileError("name each tensor once; got a name twice")
    return found


def _place(name: str, entry: dict[str, Any], size: int) -> tuple[str, tuple[int, ...], int, int]:
    """Check that a tensor is within the file and has as many bytes as its shape needs; return its place."""
    code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and begin <= end
    if whole and end > size:
        raise ModelFileError(f"hold {name!r:.80} within its {size:,} bytes of data; got {entry!r:.200} ({CUT_OFF})")
    if not whole:
        raise ModelFileError(f"hold {name!r:.80} within its {size:,} bytes of data; got {entry!r:.200}")
    if code in DTYPES and math.prod(shape) * np.dtype(DTYPES[code]).itemsize != end - begin:
        raise ModelFileError(f"hold as many bytes of {name!r:.80} as its shape says; got {entry!r:.200}")
    return code, shape, begin, end
