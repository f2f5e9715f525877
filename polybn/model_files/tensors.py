"""What a flat model file comes down to: named tensors, of which the shapes are known and the values are read late."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.model_files.errors import ModelFileError

Array: TypeAlias = NDArray[Any]

MOST_CHANNELS, MOST_BYTES = 2**20, 2**27
"""A longer vector belongs to no batch norm; all that are read together take at most so many bytes."""
MOST_TENSORS = 2**20
"""How many tensors a file may have."""


class Tensors(NamedTuple):
    """The tensors of a file."""

    shapes: Mapping[str, tuple[int, ...]]
    """By name, in the order of the file."""
    read: Callable[[str], Array]
    """Reads one of them."""
    metadata: Mapping[str, str] = MappingProxyType({})
    """What else the file says."""


def from_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Tensors:
    """Return arrays that are in memory already."""
    return Tensors({name: array.shape for name, array in arrays.items()}, arrays.__getitem__, metadata or {})


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 numbers, of which NumPy knows the bits alone."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def for_norms(tensors: Tensors) -> Tensors:
    """Limit what is read to what batch norms may have: files can claim more than memory holds."""
    left = MOST_BYTES

    def read(name: str) -> Array:
        nonlocal left
        size = math.prod(tensors.shapes[name])
        if size > MOST_CHANNELS:
            raise ModelFileError(f"have at most {MOST_CHANNELS:,} channels; got {size:,} in {name!r:.80}")
        left -= 8 * size
        if left < 0:
            raise ModelFileError(f"have batch norms of at most {MOST_BYTES:,} bytes in all; got more")
        return tensors.read(name)

    return tensors._replace(read=read)
