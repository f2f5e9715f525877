"""A network description as an MXNet program."""

from __future__ import annotations

from polybn.networks import Network
from polybn.spec import BackendError, Program, State


def compile(network: Network, state: State, *, batch_size: int) -> Program:
    """Refuse: see :class:`polybn.spec.Program`."""
    raise BackendError(
        f"polybn.train: backend must be one that compiles networks; got 'mxnet' ({len(network.layers)} layers)"
    )
