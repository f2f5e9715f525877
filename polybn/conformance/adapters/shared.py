"""What the adapters share: a library brought in late, and the refusal of an axis that a library lacks."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from polybn.spec import ShapeError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array


def load(module: str, requirements: str) -> Any:
    """Import a library, or say what to install.

    Parameters
    ----------
    module : str
        Such as ``"flax.linen"``.
    requirements : str
        The arguments of ``pip install``.

    Raises
    ------
    ImportError
        If it cannot be imported; the cause is kept.

    Examples
    --------
    >>> load("math", "nothing").sqrt(4)
    2.0
    """
    try:
        with warnings.catch_warnings():
            # What a library deprecates in itself is no news about its batch norm.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"polybn.conformance: this adapter needs the library {module}; got {error} "
            f"(`pip install {requirements}` brings it)",
            name=module,
        ) from error


def refuse_other_axes(library: str, x: Array, axis: int) -> None:
    """Insist on the second axis: nothing is transposed behind a library's back.

    Parameters
    ----------
    library : str
        The name of the library, for the message.
    axis : int
        The channel axis that was asked for.

    Raises
    ------
    ShapeError
        If it is another.
    """
    if axis not in (1, 1 - x.ndim):
        raise ShapeError(
            f"polybn.conformance: axis must be 1 for {library}; got {axis} for x of rank {x.ndim} "
            "(the library has no axis argument, and its adapter declares axes='second')"
        )
