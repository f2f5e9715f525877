"""Convert networks to the types of JSON, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from polybn.lenet.networks import LAYERS, Network
from polybn.spec import DomainError


def to_plain(network: Network) -> dict[str, Any]:
    """Convert a network to the types of JSON.

    Examples
    --------
    >>> from polybn.lenet import networks, plain
    >>> plain.to_plain(networks.lenet(None))["layers"][1]
    {'layer': 'Sigmoid'}
    """
    layers = [{"layer": type(layer).__name__, **asdict(layer)} for layer in network.layers]
    return {"input_shape": list(network.input_shape), "layers": layers}


def from_plain(plain: dict[str, Any]) -> Network:
    """Convert what :func:`to_plain` returned back to a network.

    Examples
    --------
    >>> from polybn.lenet import networks, plain
    >>> plain.from_plain(plain.to_plain(networks.lenet())) == networks.lenet()
    True
    """
    classes = {cls.__name__: cls for cls in LAYERS}
    try:
        channels, height, width = plain["input_shape"]
        layers = [{**fields} for fields in plain["layers"]]
        return Network((channels, height, width), tuple(classes[fields.pop("layer")](**fields) for fields in layers))
    except (KeyError, TypeError, ValueError) as error:
        raise DomainError(
            f"polybn.lenet.plain.from_plain: layers must be of {', '.join(classes)}, with their fields; "
            f"got {plain!r:.200} ({type(error).__name__}: {error})"
        ) from error
