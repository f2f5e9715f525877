"""A network description as a CuPy program."""

from __future__ import annotations

from typing import NoReturn

from polybn.networks import Network
from polybn.spec import BackendError, State


def compile(network: Network, state: State, *, batch_size: int) -> NoReturn:
    """Refuse: networks do not train on this backend yet."""
    raise BackendError("polybn.train: backend must be one that trains networks; got 'cupy' (it has batch norm alone)")
