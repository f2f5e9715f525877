"""What the adapters share: importing a library late, and refusing an axis that a library does not support."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from polybn.spec import ShapeError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array


def load(module: str, requirements: str) -> Any:
    """Import a module such as ``"flax.linen"``, or say what to install; ``requirements`` are for ``pip install``.

    Examples
    --------
    >>> load("math", "nothing").sqrt(4)
    2.0
    """
    try:
        with warnings.catch_warnings():
            # A library that warns about its own deprecated code says nothing about its batch norm.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"polybn.conformance: this adapter needs the library {module}; got {error} "
            f"(`pip install {requirements}` brings it)",
            name=module,
        ) from error


def refuse_other_axes(library: str, x: Array, axis: int) -> None:
    """Raise ShapeError unless the channel axis is the second one: an adapter transposes nothing."""
    if axis not in (1, 1 - x.ndim):
        raise ShapeError(
            f"polybn.conformance: axis must be 1 for {library}; got {axis} for x of rank {x.ndim} "
            "(the library has no axis argument, and its adapter declares axes='second')"
        )
