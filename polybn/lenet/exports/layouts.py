"""The axes and the names of arrays in frameworks, except those of batch norm, which :mod:`polybn.dialects` has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn import dialects
from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, Network, Row, State
from polybn.model_files.errors import ModelFileError

Array: TypeAlias = NDArray[Any]
Layers: TypeAlias = dict[str, dict[str, Array]]
"""Arrays by layer, and then by the framework's own names."""


class Layout(NamedTuple):
    """A framework's layout of the arrays of layers."""

    dialect: dialects.Dialect
    """The framework's conventions for batch norm."""
    weight: str = "weight"
    """The name of the weight of a convolution or a dense layer."""
    channels_last: bool = False
    """Whether images have shape (N, H, W, C), and weights the axis of outputs last."""


def to_layers(network: Network, state: State, layout: Layout, steps: int) -> Layers:
    """Return the arrays of a network in a framework's layout.

    Parameters
    ----------
    network : Network
    state : dict of str to ndarray
        Arrays of float32 by PolyBN's names.
    layout : Layout
    steps : int
        The number of batches in the running statistics.

    Returns
    -------
    dict of str to dict

    Examples
    --------
    >>> from polybn import dialects
    >>> lenet = networks.lenet()
    >>> keras = Layout(dialects.KERAS3, "kernel", channels_last=True)
    >>> to_layers(lenet, networks.initial_state(lenet, 0), keras, 0)["conv2"]["kernel"].shape
    (5, 5, 6, 16)
    """
    layers: Layers = {}
    for row in networks.rows(network):
        own = {name.partition(".")[2]: array for name, array in state.items() if name.startswith(f"{row.name}.")}
        if isinstance(row.layer, BatchNorm):
            layers[row.name] = dialects.convert(own, dialects.POLYBN, layout.dialect, steps=steps).state
        elif own:
            layers[row.name] = {layout.weight: _turned(own["weight"], row, layout), "bias": own["bias"]}
    return layers


def from_layers(network: Network, layers: Mapping[str, Mapping[str, Array]], layout: Layout) -> State:
    """Return the argument of :func:`to_layers`, bit by bit.

    Parameters
    ----------
    network : Network
    layers : mapping of str to mapping
    layout : Layout

    Returns
    -------
    dict of str to ndarray

    Examples
    --------
    >>> from polybn import dialects
    >>> lenet, torch = networks.lenet(), Layout(dialects.PYTORCH)
    >>> state = networks.initial_state(lenet, 0)
    >>> from_layers(lenet, to_layers(lenet, state, torch, 9), torch).keys() == state.keys()
    True
    """
    state: State = {}
    for row in networks.rows(network):
        if not row.parameters:
            continue
        own = layers[row.name]
        if isinstance(row.layer, BatchNorm):
            made = dialects.convert(own, layout.dialect, dialects.POLYBN).state
            arrays = {name: made[name] for name in ("gamma", "beta", "running_mean", "running_var")}
        else:
            weight = _turned_back(np.asarray(own[layout.weight]), row, layout)
            arrays = {"weight": weight, "bias": np.asarray(own["bias"])}
        named = {f"{row.name}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
        _check(row, named)
        state |= named
    return state


def _check(row: Row, arrays: State) -> None:
    """Compare the arrays of a layer with those that the network has there."""
    for name, shape in (row.parameters | row.statistics).items():
        found = arrays[name]
        if found.shape != shape or found.dtype != np.float32:
            raise ModelFileError(f"hold {name} as float32 of shape {shape}; got {found.dtype} of shape {found.shape}")


def _turned(weight: Array, row: Row, layout: Layout) -> Array:
    if not layout.channels_last:
        return weight
    if isinstance(row.layer, Convolution):
        return weight.transpose(2, 3, 1, 0)
    # The framework flattens images in the order H, W, C, and PolyBN in the order C, H, W.
    before = row.input_shape
    images = weight.reshape(-1, *before)
    turned = images.transpose(0, 2, 3, 1) if len(before) == 3 else images
    return turned.reshape(weight.shape).T


def _turned_back(weight: Array, row: Row, layout: Layout) -> Array:
    if not layout.channels_last:
        return weight
    if isinstance(row.layer, Convolution):
        return weight.transpose(3, 2, 0, 1)
    assert isinstance(row.layer, Dense)
    if len(row.input_shape) != 3:
        return weight.T
    channels, height, width = row.input_shape
    return weight.T.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(weight.shape[::-1])
