"""Networks as plain data: frozen layer descriptions, their shapes, and their initial state.

A backend compiles a description into a program in its own idiom. Initial weights and the order of
every epoch are drawn here, on the host, so that all backends start from the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.options import type_name
from polybn.spec import DomainError, DTypeError, ShapeError

Norm: TypeAlias = Literal["spec", "native"] | None

State: TypeAlias = dict[str, NDArray[np.float32]]
"""Every parameter and running statistic of a network, by name, as host arrays."""


@dataclass(frozen=True)
class Convolution:
    """Cross-correlation with a square kernel, plus a bias; stride 1, no padding."""

    channels: int
    kernel: int


@dataclass(frozen=True)
class Dense:
    """``weight @ x + bias``, with ``x`` flattened in the order C, H, W; weight has shape ``(features, inputs)``."""

    features: int


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalization over all but the channel axis: by the specification, or by the library's own."""

    implementation: Literal["spec", "native"] = "spec"
    momentum: float = 0.9
    eps: float = 1e-5


@dataclass(frozen=True)
class Sigmoid:
    """``1 / (1 + exp(-x))``."""


@dataclass(frozen=True)
class MaxPool:
    """Maximum over squares of ``size`` by ``size`` values, without overlap. Ties go to the first in row order."""

    size: int


Layer: TypeAlias = Convolution | Dense | BatchNorm | Sigmoid | MaxPool
LAYERS: tuple[type[Layer], ...] = (Convolution, Dense, BatchNorm, Sigmoid, MaxPool)


@dataclass(frozen=True)
class Network:
    """A chain of layers, fed with ``uint8`` images divided by 255, ending in class scores (logits)."""

    input_shape: tuple[int, int, int]
    """Channels, height, width."""
    layers: tuple[Layer, ...]


class Row(NamedTuple):
    """One layer of a network, with its name, shapes and arrays."""

    name: str
    layer: Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    """The shape of the output without the batch axis."""
    parameters: dict[str, tuple[int, ...]]
    """The shapes of trainable arrays by full name, such as ``conv1.weight``."""
    statistics: dict[str, tuple[int, ...]]
    """The shapes of running statistics by full name."""


def lenet(norm: Norm = "spec") -> Network:
    """Describe LeNet for 28 x 28 images and ten classes, with sigmoids as in 1998.

    Parameters
    ----------
    norm : {"spec", "native", None}
        Batch norm after each layer except the last: PolyBN's, that of the backend's library, or none.

    Returns
    -------
    Network

    Raises
    ------
    DomainError
        If ``norm`` is none of the three.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998; sizes as
    in the LeNet of "Dive into Deep Learning", chapter 6, without padding.

    Examples
    --------
    >>> from polybn import networks
    >>> networks.count_parameters(networks.lenet())
    44878
    """
    if norm not in ("spec", "native", None):
        raise DomainError(f"polybn.networks.lenet: norm must be 'spec', 'native' or None; got {norm!r} (see --norm)")

    def activate(layer: Layer) -> tuple[Layer, ...]:
        return (layer, Sigmoid()) if norm is None else (layer, BatchNorm(norm), Sigmoid())

    layers = (
        *activate(Convolution(6, kernel=5)),
        MaxPool(2),
        *activate(Convolution(16, kernel=5)),
        MaxPool(2),
        *activate(Dense(120)),
        *activate(Dense(84)),
        Dense(10),
    )
    return Network((1, 28, 28), layers)


def rows(network: Network) -> list[Row]:
    """Name the layers, infer their shapes and list their arrays.

    Parameters
    ----------
    network : Network

    Returns
    -------
    list of Row
        One for each layer, in order.

    Raises
    ------
    ShapeError
        If a layer does not fit the output of the one before it, or has a size below 1.
    DTypeError
        If a layer is not one of the descriptions of this module.

    Examples
    --------
    >>> from polybn import networks
    >>> first = networks.rows(networks.lenet())[0]
    >>> first.name, first.output_shape, first.parameters["conv1.weight"]
    ('conv1', (6, 24, 24), (6, 1, 5, 5))
    """
    result, shape, counts = [], tuple(network.input_shape), dict[str, int]()
    for place, layer in enumerate(network.layers, 1):
        kind = _KINDS.get(type(layer))
        if kind is None:
            raise DTypeError(
                f"polybn.networks.rows: layer {place} must be Convolution, Dense, BatchNorm, Sigmoid or MaxPool; "
                f"got {type_name(layer)} (a network is a chain of these descriptions)"
            )
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}{counts[kind]}"
        _check_layer(name, layer, shape)
        output, parameters = _infer(layer, shape)
        statistics = {"running_mean": (shape[0],), "running_var": (shape[0],)} if isinstance(layer, BatchNorm) else {}
        full = [{f"{name}.{key}": value for key, value in arrays.items()} for arrays in (parameters, statistics)]
        result.append(Row(name, layer, shape, output, *full))
        shape = output
    return result


def count_parameters(network: Network) -> int:
    """Count trainable values; running statistics are not trained.

    Parameters
    ----------
    network : Network

    Returns
    -------
    int

    Examples
    --------
    >>> from polybn import networks
    >>> networks.count_parameters(networks.lenet(None))
    44426
    """
    return sum(math.prod(shape) for row in rows(network) for shape in row.parameters.values())


def summary(network: Network) -> str:
    """Draw the network as a table: layer, output shape, trainable values.

    Parameters
    ----------
    network : Network

    Returns
    -------
    str
        A heading, a line for each layer, and the total.

    Examples
    --------
    >>> from polybn import networks
    >>> print(networks.summary(networks.lenet(None)).splitlines()[-1])
    total                       44,426
    """
    lines = [f"{'layer':<10}{'output':<16}{'values':>8}"]
    for row in rows(network):
        values = sum(math.prod(shape) for shape in row.parameters.values())
        shape = " x ".join(map(str, row.output_shape))
        lines.append(f"{row.name:<10}{shape:<16}{f'{values:,}' if values else '':>8}".rstrip())
    lines.append(f"{'total':<26}{count_parameters(network):>8,}")
    return "\n".join(lines)


def initial_state(network: Network, seed: int) -> State:
    """Draw Xavier-uniform weights; biases and beta start at 0, gamma at 1, running statistics at 0 and 1.

    Parameters
    ----------
    network : Network
    seed : int
        0 or more. The same seed gives the same bits on every platform and NumPy version.

    Returns
    -------
    dict of str to ndarray
        float32 arrays by name, in the order of the layers.

    Raises
    ------
    DomainError
        If the seed is negative or not an int.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010:
    uniform in ``+-sqrt(6 / (fan_in + fan_out))``, where a fan counts the kernel's area, too.

    Examples
    --------
    >>> from polybn import networks
    >>> state = networks.initial_state(networks.lenet(), 0)
    >>> state["conv1.weight"].shape, state["norm1.running_var"].tolist()
    ((6, 1, 5, 5), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    _check_int("initial_state", "seed", seed, 0, "it selects the weights")
    bits, state = _bits(seed, 0), dict[str, NDArray[np.float32]]()
    for row in rows(network):
        for name, shape in (row.parameters | row.statistics).items():
            kind = name.rpartition(".")[2]
            if kind == "weight":
                area = math.prod(shape[2:])
                bound = math.sqrt(6 / ((shape[0] + shape[1]) * area))
                values = (2 * _uniform(bits, math.prod(shape)) - 1) * bound
                state[name] = values.reshape(shape).astype(np.float32)
            else:
                state[name] = np.full(shape, 1 if kind in ("gamma", "running_var") else 0, np.float32)
    return state


def epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Shuffle ``0 .. size - 1`` for one epoch; the order depends only on seed and epoch, also in a resumed run.

    Parameters
    ----------
    seed, epoch : int
        0 or more; epochs count from 1.
    size : int
        Number of training images.

    Returns
    -------
    ndarray of int64, shape (size,)

    Raises
    ------
    DomainError
        If an argument is negative or not an int.

    Examples
    --------
    >>> from polybn import networks
    >>> networks.epoch_order(0, 1, 5).tolist()
    [4, 1, 2, 0, 3]
    """
    for name, value in {"seed": seed, "epoch": epoch, "size": size}.items():
        _check_int("epoch_order", name, value, 0, "seed and epoch select the order of size images")
    return np.argsort(_bits(seed, epoch).random_raw(size), kind="stable").astype(np.int64)


_KINDS: dict[type, str] = dict(zip(LAYERS, ("conv", "dense", "norm", "sigmoid", "pool"), strict=True))


def _check_layer(name: str, layer: Layer, shape: tuple[int, ...]) -> None:
    for field in ("channels", "kernel", "features", "size"):
        _check_int("rows", f"{field} of {name}", getattr(layer, field, 1), 1, f"the layer is {layer}", ShapeError)
    match layer:
        case Convolution(_, kernel):
            rule, fits = f"at least {kernel}", all(side >= kernel for side in shape[1:])
        case MaxPool(size):
            rule, fits = f"multiples of {size}", not any(side % size for side in shape[1:])
        case _:
            return
    if len(shape) != 3 or not fits:
        raise ShapeError(
            f"polybn.networks.rows: {layer} must have an input (C, H, W), H and W {rule}; got {shape} "
            f"(what comes before {name})"
        )


def _check_int(
    function: str, name: str, value: object, least: int, because: str, error: type[ValueError] = DomainError
) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"polybn.networks.{function}: {name} must be an int of {least} or more; got {value!r} ({because})")


def _infer(layer: Layer, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    match layer:
        case Convolution(channels, kernel):
            spatial = tuple(side - kernel + 1 for side in shape[1:])
            return (channels, *spatial), {"weight": (channels, shape[0], kernel, kernel), "bias": (channels,)}
        case Dense(features):
            return (features,), {"weight": (features, math.prod(shape)), "bias": (features,)}
        case BatchNorm():
            return shape, {"gamma": (shape[0],), "beta": (shape[0],)}
        case MaxPool(size):
            return (shape[0], *(side // size for side in shape[1:])), {}
        case Sigmoid():
            return shape, {}


# NumPy promises that the streams of its bit generators never change, but not so for the methods of Generator (NEP 19).
# The two small steps from bits to numbers are therefore made here.
def _bits(seed: int, stream: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, stream]))


def _uniform(bits: np.random.PCG64, size: int) -> NDArray[np.float64]:
    """Draw from [0, 1) with 53 bits each."""
    return (bits.random_raw(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
