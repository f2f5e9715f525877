"""What is known of a model after its file was read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Norm(NamedTuple):
    """One batch norm of a model."""

    name: str
    """The layer's name in the model, such as ``layer1.bn2``."""
    dialect: str
    """A key of :data:`polybn.dialects.DIALECTS`: whose words the other fields have."""
    state: dict[str, NDArray[Any]]
    """Parameters and statistics by the dialect's own names; arrays of channels have shape ``(C,)``."""
    options: Mapping[str, Any] = MappingProxyType({})
    """What the file says of momentum, eps and axis, in the dialect's own words; often nothing."""
    training: bool = False
    """Whether the file asks for the statistics of each batch, in inference, too."""
    lacks: str = ""
    """Why the state is not whole; empty if it is."""


class Model(NamedTuple):
    """The batch norms of a file."""

    format: str
    """The kind of file, in words."""
    norms: list[Norm]
    """In the order of the file."""
    tensors: int
    """How many arrays there are in all."""

    @property
    def channels(self) -> int:
        """How many channels all batch norms have together."""
        return sum(max((array.size for array in norm.state.values()), default=0) for norm in self.norms)


def vector(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array without its axes of length 1, as one that may be written to."""
    return np.array(array).reshape(-1) if array.ndim else np.array(array)
