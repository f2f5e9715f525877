"""What a flat model file comes down to: named tensors, of which the shapes are known and the values are read late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

MOST_TENSORS = 2**20
"""How many tensors a file may have."""


class Tensors(NamedTuple):
    """The tensors of a file."""

    shapes: Mapping[str, tuple[int, ...]]
    """By name, in the order of the file."""
    read: Callable[[str], Array]
    """Reads one of them."""
    metadata: Mapping[str, str] = {}
    """What else the file says."""


def from_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Tensors:
    """Return arrays that are in memory already."""
    return Tensors({name: array.shape for name, array in arrays.items()}, arrays.__getitem__, metadata or {})


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 numbers, of which NumPy knows the bits alone."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
