"""The protocol of programs: a backend compiles a network into one, and the training loop calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from polybn.lenet import networks
from polybn.spec import BackendError, DomainError, ShapeError, traits_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polybn.lenet.networks import Network, Row, State
    from polybn.spec import Backend


class Steps(NamedTuple):
    """The report of a program after one or more training steps; one entry per step."""

    losses: NDArray[np.float64]
    """Mean cross-entropy of the step's batch, in nats."""
    correct: NDArray[np.int64]
    """Number of images of the batch that the network, in training mode, labelled right."""
    images: NDArray[np.int64]
    """Number of images of the batch."""


class Program(Protocol):
    """A network compiled by a backend, with its state on the backend's device."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Any:
        """Copy images and labels to the device, once for all epochs.

        Parameters
        ----------
        images : ndarray of uint8, shape (N, C, H, W)
        labels : ndarray of uint8, shape (N,)

        Returns
        -------
        object
            The argument ``data`` of :meth:`train_epoch` and :meth:`logits`.
        """

    def train_epoch(self, data: Any, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD over the images in the given order, batch by batch, the last one smaller.

        Parameters
        ----------
        data : object
            A result of :meth:`place`.
        order : ndarray of int64, shape (N,)
            Indices of images.
        learning_rate : float

        Yields
        ------
        Steps
            The reports of one or more steps each, in order.
        """

    def logits(self, data: Any) -> NDArray[np.float32]:
        """Score images in inference mode; nothing changes.

        Parameters
        ----------
        data : object
            A result of :meth:`place`.

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
    """A backend that trains networks: it has this function besides those of :class:`polybn.spec.Backend`.

    If several processes can share a run, it also has ``join_processes(coordinator, processes, process)`` and
    ``is_first_process()``; see ``polybn.lenet.team``.
    """

    def compile(self, rows: Sequence[Row], state: State, *, batch_size: int) -> Program:
        """Turn the layers of a network and its state, which is copied, into a program.

        The layers are already checked, and each pool comes before the sigmoid that it followed; see
        :func:`pooled_first`. A backend whose traits declare ``several_devices`` takes ``devices``, too.
        """


def compile(network: Network, backend: Backend, state: State, *, batch_size: int, devices: int = 1) -> Program:
    """Check a network once for every backend, and let the given one turn it into a program.

    Parameters
    ----------
    network : Network
    backend : Backend
        As :func:`polybn.backend` returns it.
    state : dict of str to ndarray
        float32, by the names that :func:`polybn.lenet.networks.initial_state` gives.
    batch_size : int
        Images in a training step.
    devices : int, default 1
        Number of devices that share each step, if the backend supports several.

    Returns
    -------
    Program

    Raises
    ------
    BackendError
        If the backend trains no networks or not on several devices, or if the network asks for the batch norm of a
        library that has none.
    DomainError
        If the batch size is not positive, or the backend does not support the size of a layer.
    ShapeError
        If the layers do not fit each other, or the last one does not give a score for each class.

    Examples
    --------
    >>> import polybn
    >>> from polybn.lenet import networks, program
    >>> lenet = networks.lenet()
    >>> state = networks.initial_state(lenet, 0)
    >>> compiled = program.compile(lenet, polybn.backend("numpy"), state, batch_size=4)
    >>> compiled.state().keys() == state.keys()
    True
    """
    traits = traits_of(backend)
    trainer = getattr(backend, "compile", None)
    if trainer is None:
        raise BackendError(
            f"polybn.train: backend must train networks; got {backend.name!r} (it has batch norm alone, no compile)"
        )
    if _asks_for_native(network) and not traits.native_norm:
        raise BackendError(
            f"polybn.train: norm must be 'spec' or None on the {backend.name} backend; got 'native' "
            f"({traits.library or backend.name} has no batch norm of its own)"
        )
    if devices != 1 and not traits.several_devices:
        raise BackendError(
            f"polybn.train: devices must be 1 on the {backend.name} backend; got {devices} "
            "(it trains on one; the backends that train on several say so in `polybn info`)"
        )
    if batch_size < 1:
        raise DomainError(f"polybn.train: batch_size must be 1 or more; got {batch_size} (images in a training step)")
    rows = networks.rows(network)
    _check_scores(rows)
    options = {"devices": devices} if traits.several_devices else {}
    program: Program = trainer(pooled_first(rows), state, batch_size=batch_size, **options)
    return program


def pooled_first(rows: Sequence[Row]) -> list[Row]:
    """Move each max-pool before the sigmoid that it follows.

    A sigmoid is increasing, so the result is the same, and only a quarter of the sigmoids are computed.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    list of Row

    Examples
    --------
    >>> from polybn.lenet import networks, program
    >>> [row.name for row in program.pooled_first(networks.rows(networks.lenet(None)))][:4]
    ['conv1', 'pool1', 'sigmoid1', 'conv2']
    """
    result: list[Row] = []
    for row in rows:
        result.append(row)
        if (
            isinstance(row.layer, networks.MaxPool)
            and len(result) > 1
            and isinstance(result[-2].layer, networks.Sigmoid)
        ):
            result[-2:] = [row, result[-2]._replace(input_shape=row.output_shape, output_shape=row.output_shape)]
    return result


def _asks_for_native(network: Network) -> bool:
    return any(isinstance(layer, networks.BatchNorm) and layer.implementation == "native" for layer in network.layers)


def _check_scores(rows: Sequence[Row]) -> None:
    shape, name = (rows[-1].output_shape, rows[-1].name) if rows else ((), "no layer")
    if len(shape) != 1:
        raise ShapeError(
            f"polybn.train: the last layer must give one score for each class, (classes,); got {shape} "
            f"from {name} (end the network with a Dense layer)"
        )
