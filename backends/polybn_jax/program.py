"""LeNet on JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polybn.spec import BackendError

if TYPE_CHECKING:
    from polybn.networks import Network
    from polybn.spec import Program, State


def compile(network: Network, state: State, *, batch_size: int) -> Program:  # noqa: ARG001
    """Turn a network description and its initial state into a program."""
    raise BackendError("polybn.train: backend must have a training program; got 'jax' (it is being written)")
