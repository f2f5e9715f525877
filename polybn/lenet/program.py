"""The program protocol: what a backend makes of a network, and what the training loop asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polybn.lenet.networks import Network, State


class Steps(NamedTuple):
    """What a program reports after one or more training steps; one entry per step."""

    losses: NDArray[np.float64]
    """Mean cross-entropy of the step's batch, in nats."""
    correct: NDArray[np.int64]
    """How many images of the batch were labelled right, by the network in training mode."""
    images: NDArray[np.int64]
    """How many images the batch had."""


class Program(Protocol):
    """A network compiled by a backend, with its state on the backend's device."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Any:
        """Bring images and labels to the device, once.

        Parameters
        ----------
        images : ndarray of uint8, shape (N, C, H, W)
        labels : ndarray of uint8, shape (N,)

        Returns
        -------
        object
            What :meth:`train_epoch` and :meth:`logits` take.
        """

    def train_epoch(self, data: Any, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD over the images in the given order, batch by batch, the last one smaller.

        Parameters
        ----------
        data : object
            From :meth:`place`.
        order : ndarray of int64, shape (N,)
            Places of images.
        learning_rate : float

        Yields
        ------
        Steps
            As it goes, for one or more steps.
        """

    def logits(self, data: Any) -> NDArray[np.float32]:
        """Score images in inference mode; nothing changes.

        Parameters
        ----------
        data : object
            From :meth:`place`.

        Returns
        -------
        ndarray of float32, shape (N, classes)
        """

    def state(self) -> State:
        """Copy every parameter and running statistic to the host.

        Returns
        -------
        dict of str to ndarray
        """


class Trainer(Protocol):
    """A backend that trains networks: it has this one function beside those of :class:`polybn.spec.Backend`."""

    def compile(self, network: Network, state: State, *, batch_size: int) -> Program:
        """Turn a network description and its initial state into a program.

        Parameters
        ----------
        network : Network
        state : dict of str to ndarray
            As :func:`polybn.lenet.networks.initial_state` names its arrays.
        batch_size : int
            Of training.

        Returns
        -------
        Program

        Raises
        ------
        BackendError
            If this backend does not train networks, or lacks a layer of this one.
        """
