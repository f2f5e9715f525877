"""The options that, together with the data, determine the results of a run; they are checked and saved as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polybn.lenet import networks
from polybn.lenet.plain import from_plain, to_plain
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.lenet.fashion_mnist import Dataset
    from polybn.lenet.networks import Network, Row


@dataclass(frozen=True)
class Recipe:
    """The options of :func:`polybn.train` that stay the same when a run is resumed."""

    network: Network
    """The network to train."""
    backend: str = "numpy"
    """The name of the backend."""
    batch_size: int = 256
    """The number of images in a training step."""
    learning_rate: float = 1.0
    """The step along the gradient of the mean loss."""
    seed: int = 0
    """The seed of the weights and of the order of the images."""
    devices: int = 1
    """The number of devices that share each step."""
    last_batch: Literal["keep", "drop"] = "keep"
    """Whether images left over after the last whole batch of an epoch make a smaller batch, or are left out."""
    device: str | None = None
    """The device that trains, in the words of the backend; None is the one that the library chooses."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "seed", "devices"):
            check_integer(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))
        if isinstance(self.learning_rate, bool) or not isinstance(self.learning_rate, Real):
            raise DTypeError(f"polybn.train: learning_rate must be a number; got {self.learning_rate!r}")
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        if not isinstance(self.device, str | None):
            raise DTypeError(f"polybn.train: device must be a name or None; got {self.device!r} (such as 'gpu:0')")
        self._check_ranges()

    def to_config(self) -> dict[str, Any]:
        """Return the options as types of JSON."""
        options = asdict(self)
        del options["network"]
        return options | {"network": to_plain(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Recipe:
        """Make a recipe from what :meth:`to_config` returned; other keys are ignored."""
        network = from_plain(config["network"])
        networks.rows(network)
        return cls(network, **{name: config[name] for name in _OPTIONS if name in config})

    def trained_on(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of an epoch that are trained on, in order: all of them, or only whole batches."""
        rest = len(order) % self.batch_size
        return order[: len(order) - rest] if self.last_batch == "drop" else order

    def check_data(self, data: Dataset) -> None:
        """Check that images and labels fit the network, and that no batch is too small for batch norm."""
        check_images("train", self.network, data)
        self._check_batches(len(data.train_labels), networks.rows(self.network))

    def _check_batches(self, images: int, rows: list[Row]) -> None:
        size, rest = self.batch_size, images % self.batch_size
        if self.last_batch == "drop" and images < size:
            raise DomainError(
                f"polybn.train: batch_size must be {images} or less; got {size} (there are {images:,} training images, "
                "and last_batch='drop' leaves incomplete batches out)"
            )
        norms = [row.name for row in rows if isinstance(row.layer, networks.BatchNorm) and len(row.input_shape) == 1]
        if norms and (size == 1 or (rest == 1 and self.last_batch == "keep")):
            raise DomainError(
                f"polybn.train: every batch must hold 2 images or more; got {images:,} images in batches of {size:,} "
                f"(of one image {norms[0]} would learn nothing: "
                f"{'choose a larger batch size' if size == 1 else 'leave the last one out, --last-batch drop'})"
            )

    def _check_ranges(self) -> None:
        check_range("batch_size", self.batch_size, 1, "images in a training step")
        check_range("seed", self.seed, 0, "it draws the weights and the order of the images")
        check_range("devices", self.devices, 1, "they share each training step")
        if not 2.0**-126 <= self.learning_rate < 2.0**127:
            raise DomainError(
                f"polybn.train: learning_rate must lie between 2^-126 and 2^127; got {self.learning_rate!r} "
                "(the step along the gradient of the mean loss, in float32)"
            )
        if self.last_batch not in ("keep", "drop"):
            raise DomainError(
                f"polybn.train: last_batch must be 'keep' or 'drop'; got {self.last_batch!r} "
                "(what happens to the images left over after the last whole batch)"
            )
        if self.device is not None and self.devices > 1:
            raise DomainError(
                f"polybn.train: device must be left out with several devices; got {self.device!r} and "
                f"{self.devices} devices (these are the library's first ones)"
            )


_OPTIONS = tuple(Recipe.__dataclass_fields__.keys() - {"network"})


def check_images(function: str, network: Network, data: Dataset) -> None:
    """Check that images and labels fit a network."""
    shape, classes = network.input_shape, networks.rows(network)[-1].output_shape[0]
    for part, images, labels in (("train", *data[:2]), ("test", *data[2:4])):
        if images.shape != (*labels.shape[:1], *shape) or labels.ndim != 1 or not len(labels):
            raise ShapeError(
                f"polybn.{function}: {part}_images must have shape (N, {', '.join(map(str, shape))}), and "
                f"{part}_labels (N,), N >= 1; got {images.shape} and {labels.shape} (the network's input)"
            )
        if images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise DTypeError(
                f"polybn.{function}: {part}_images and {part}_labels must have dtype uint8; got {images.dtype} and "
                f"{labels.dtype} (each program divides images by 255)"
            )
        if labels.max() >= classes:
            raise DomainError(
                f"polybn.{function}: {part}_labels must lie in 0 to {classes - 1}; got {labels.max()} "
                "(the network's output)"
            )


def check_integer(name: str, value: object) -> None:
    """Check that an option is an integer of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DTypeError(f"polybn.train: {name} must be an integer; got {value!r} ({type(value).__name__})")


def check_range(name: str, value: int, least: int, reason: str) -> None:
    """Check that an integer is not too small."""
    if value < least:
        raise DomainError(f"polybn.train: {name} must be {least} or more; got {value} ({reason})")
