"""A model, as read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Norm(NamedTuple):
    """One batch norm of a model."""

    name: str
    """The layer's name in the model, such as ``layer1.bn2``."""
    dialect: str
    """The dialect of the other fields, a key of :data:`polybn.dialects.DIALECTS`."""
    state: dict[str, NDArray[Any]]
    """Parameters and statistics by the dialect's own names; arrays with a value per channel have shape ``(C,)``."""
    options: Mapping[str, Any] = MappingProxyType({})
    """The momentum, eps and axis in the file, in the dialect's own words; often none."""
    training: bool = False
    """Whether the file asks for the statistics of each batch even in inference."""
    lacks: str = ""
    """Why the state is not complete; empty if it is."""
    unnamed: NDArray[Any] | None = None
    """An array that is either gamma or beta, where the file does not say which."""


class LeftOut(NamedTuple):
    """A layer that may be a batch norm and is not read as one, or one of whose arrays is not read."""

    layer: str
    """The layer's name in the model."""
    why: str
    """The reason, and what can be done."""
    kind: str = "is left out"
    """The kind of reason, such as ``"an array is missing"``."""
    level: Literal["warning", "note"] = "note"
    """A warning if the file seems to be damaged or incomplete; a note if it may well be as it should."""


class Model(NamedTuple):
    """The batch norms of a file."""

    format: str
    """The kind of file, as a text."""
    norms: list[Norm]
    """The batch norms in the order of the file."""
    tensors: int
    """The number of arrays in the file."""
    left_out: tuple[LeftOut, ...] = ()
    """The layers that may be batch norms and are not read as such, each with the reason."""

    @property
    def channels(self) -> int:
        """The number of channels of all batch norms together."""
        return sum(max((array.size for array in norm.state.values()), default=0) for norm in self.norms)


def vector(array: NDArray[Any]) -> NDArray[Any]:
    """Return a writable copy of an array without its axes of length 1."""
    return np.array(array).reshape(-1) if array.ndim else np.array(array)
