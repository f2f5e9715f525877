"""A trained network for export: layers, state, and a note about its input and its origin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.lenet.fashion_mnist import CLASSES
from polybn.lenet.networks import BatchNorm, rows
from polybn.lenet.plain import from_plain, to_plain
from polybn.lenet.recipe import Recipe
from polybn.model_files.errors import ModelFileError
from polybn.model_files.note import content
from polybn.version import __version__

if TYPE_CHECKING:
    from polybn.lenet.networks import Network, State
    from polybn.lenet.runs import Run

MOST_NOTE = 2**16


class Trained(NamedTuple):
    """The content of an export."""

    network: Network
    """The layers."""
    state: State
    """Every parameter and running statistic."""
    steps: int
    """The number of batches in the running statistics."""
    note: str
    """A text in JSON: the preparation of images, the names of the classes, the layers, and the run."""


def of_run(run: Run) -> Trained:
    """Return the network of a run.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Trained

    Examples
    --------
    >>> import polybn
    >>> run = polybn.train(polybn.networks.lenet(), data=polybn.fashion_mnist.load("sample"), epochs=1)
    >>> of_run(run).steps
    24
    """
    recipe = Recipe.from_config(run.config)
    norms = {row.name: row.layer for row in rows(recipe.network) if isinstance(row.layer, BatchNorm)}
    shape = " x ".join(map(str, recipe.network.input_shape))
    note = {
        "polybn": __version__,
        "images": f"uint8, {shape} (channels, height, width), divided by 255 before the first layer",
        "classes": list(CLASSES),
        "network": to_plain(recipe.network),
        **content("polybn", {name: {"momentum": norm.momentum, "eps": norm.eps} for name, norm in norms.items()}),
        "backend": recipe.backend,
        "epochs": len(run.epochs),
        "test_accuracy": run.epochs[-1].test_accuracy if run.epochs else None,
    }
    return Trained(recipe.network, run.state, sum(map(len, run.losses)), json.dumps(note))


def network_of(note: str | None) -> Network:
    """Return the network that a note describes.

    Parameters
    ----------
    note : str or None

    Returns
    -------
    Network

    Raises
    ------
    ModelFileError
        If it describes no network.

    Examples
    --------
    >>> from polybn.lenet import networks
    >>> network_of(json.dumps({"network": to_plain(networks.lenet())})) == networks.lenet()
    True
    """
    if note is None or len(note) > MOST_NOTE:
        raise ModelFileError("hold the note that `polybn export` writes; got none")
    told: Any = json.loads(note)
    return from_plain(told["network"])
