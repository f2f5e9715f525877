"""Flax's own serialization: a tree in MessagePack, whose arrays are extensions ``(shape, dtype, bytes)``.

This is the format of ``flax.serialization.msgpack_serialize``. Reading and writing it needs only the package msgpack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from polybn.model_files.errors import ModelFileError, need
from polybn.model_files.tensors import Array, Tensors, from_arrays, widen_bfloat16

ARRAY, COMPLEX, SCALAR = 1, 2, 3
"""The codes of Flax's extensions."""
MOST_DEPTH = 64


def encode(tree: Mapping[str, Any]) -> bytes:
    """Encode a tree of dicts with arrays and strings."""
    msgpack = need("msgpack", "files of Flax", "msgpack")

    def extension(value: Any) -> Any:
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)  # readers take the bytes for little-endian
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        return msgpack.ExtType(ARRAY if isinstance(value, np.ndarray) else SCALAR, packed)

    data: bytes = msgpack.packb(tree, default=extension, strict_types=True)
    return data


def decode(data: bytes) -> Any:
    """Decode a tree; lists stay lists, and arrays that Flax stores in pieces are joined."""
    msgpack = need("msgpack", "files of Flax", "msgpack")

    def value(code: int, packed: bytes) -> Any:
        if code not in (ARRAY, SCALAR):
            raise ModelFileError(f"hold arrays and scalars as Flax does; got extension {code}")
        shape, dtype, content = msgpack.unpackb(packed, use_list=False)
        array = _array(shape, dtype, content)
        return array if code == ARRAY else array[()]

    return msgpack.unpackb(data, ext_hook=value, strict_map_key=False)


def read(file: BinaryIO, size: int) -> Tensors:  # noqa: ARG001
    """Read a whole file; names are such as ``params/bn1/scale``."""
    tree = decode(file.read())
    if not isinstance(tree, dict):
        raise ModelFileError(f"hold a tree with names, as of Flax; got {type(tree).__name__}")
    leaves = dict(_leaves(tree, "", 0))
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray | np.generic)}
    return from_arrays(arrays, {name: leaf for name, leaf in leaves.items() if isinstance(leaf, str)})


def _array(shape: tuple[int, ...], dtype: str, content: bytes) -> Array:
    known = dtype in ("bool", "bfloat16") or np.dtype(dtype).kind in "biufc"
    width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    if not known or math.prod(shape) * width != len(content) or min(shape, default=1) < 0:
        raise ModelFileError(f"hold arrays of as many bytes as {shape} of {dtype} take; got {len(content)}")
    if dtype == "bfloat16":
        return widen_bfloat16(np.frombuffer(content, "<u2").reshape(shape))
    return np.frombuffer(content, dtype).reshape(shape)


def _leaves(tree: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MOST_DEPTH:
        raise ModelFileError(f"have names of at most {MOST_DEPTH} parts; got more")
    if "__msgpack_chunked_array__" in tree:
        yield prefix.removesuffix("/"), np.concatenate(list(tree["chunks"].values())).reshape(_ints(tree["shape"]))
        return
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _ints(tree: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(tree[str(place)] for place in range(len(tree)))
