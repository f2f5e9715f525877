"""The content of a flat model file: named tensors with known shapes, whose values are read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.model_files.errors import ModelFileError

Array: TypeAlias = NDArray[Any]

MOST_CHANNELS, MOST_BYTES = 2**20, 2**27
"""The largest number of channels of a batch norm, and the most bytes of all vectors that are read."""
MOST_TENSORS = 2**20
"""The largest number of tensors in a file."""


class Tensors(NamedTuple):
    """The tensors of a file."""

    shapes: Mapping[str, tuple[int, ...]]
    """The shapes by name, in the order of the file."""
    read: Callable[[str], Array]
    """The function that reads one tensor by name."""
    metadata: Mapping[str, str] = MappingProxyType({})
    """Other texts in the file."""


def from_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Tensors:
    """Return arrays in memory as tensors."""
    return Tensors({name: array.shape for name, array in arrays.items()}, arrays.__getitem__, metadata or {})


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 numbers, which NumPy knows only as bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def check_dtypes(arrays: Mapping[str, Array], dtypes: Container[np.dtype[Any]], kind: str) -> None:
    """Refuse arrays whose dtype a format does not have."""
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<") not in dtypes:
            raise ModelFileError(
                f"polybn.convert: {name} must be of a dtype that {kind} has; got {array.dtype} (cast it before)"
            )


def for_norms(tensors: Tensors) -> Tensors:
    """Limit reading to the possible sizes of batch norms, because files can claim more than memory holds."""
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
