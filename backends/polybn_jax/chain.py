"""A network description as a pure function from its values and a batch of images to logits."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, MaxPool, Network, Row, Sigmoid
from polybn_jax import layers, norms
from polybn_jax.norms import Axis

Values: TypeAlias = dict[str, jax.Array]


class Stage(NamedTuple):
    """A layer, with the max-pool that it does on the way or whose squares it prepares; 1 for none."""

    row: Row
    pool: int


def forward(
    network: Network, values: Values, images: jax.Array, *, training: bool, axis: Axis = None
) -> tuple[jax.Array, Values]:
    """Map images ``(n, H * W * C)``, in bytes, to logits ``(n, classes)`` and, in training, new running statistics."""
    channels, height, width = network.input_shape
    x = (images.astype(jnp.float32) / 255).reshape(-1, height, 1, width * channels)
    statistics: Values = {}
    for row, pool in _stages(network):
        own = {name.partition(".")[2]: values[name] for name in row.parameters | row.statistics}
        match row.layer:
            case Convolution():
                x = layers.convolution(x, own["weight"], own["bias"], pool)
            case Dense():
                x = layers.dense(x, own["weight"], own["bias"], row.input_shape)
            case Sigmoid():
                x = layers.sigmoid(x)
            case MaxPool():
                x = layers.max_pool(layers.to_squares(x, pool, row.input_shape[0]), jnp.ones(row.input_shape[0]))
            case BatchNorm():
                x, updated = _normalize(x, own, row, pool, axis, training=training)
                statistics |= {f"{row.name}.{name}": value for name, value in updated.items()}
    return x.reshape(len(images), -1), statistics


def _normalize(
    x: jax.Array, own: Values, row: Row, pool: int, axis: Axis, *, training: bool
) -> tuple[jax.Array, Values]:
    """Normalize and pool; return new running statistics, too, in training."""
    layer = row.layer
    assert isinstance(layer, BatchNorm)
    if len(row.input_shape) == 1:
        x = x.reshape(len(x), -1)
    if layer.implementation == "native":
        return norms.native(x, own, layer, axis, training=training)
    values = x
    if pool > 1:
        x = layers.to_squares(x, pool, row.input_shape[0])
        values = layers.max_pool(x, jnp.sign(own["gamma"]))
    if not training:
        return norms.inference(values, own, layer.eps), {}
    y, mean, variance = norms.batch_norm(x, values, own["gamma"], own["beta"], layer.eps, axis)
    one, rho = np.float32(1), np.float32(layer.momentum)
    batch = {"running_mean": mean, "running_var": variance}
    return y, {name: rho * own[name] + (one - rho) * value for name, value in batch.items()}


def _stages(network: Network) -> list[Stage]:
    """Put each max-pool before the sigmoid and into the batch norm that it follows: both are monotonic."""
    stages: list[Stage] = []
    for row in networks.rows(network):
        if not isinstance(row.layer, MaxPool):
            stages.append(Stage(row, 1))
        elif row.layer.size > 1:
            _pool(stages, row, row.layer.size)
    return stages


def _pool(stages: list[Stage], row: Row, size: int) -> None:
    place = len(stages)
    while place and isinstance(stages[place - 1].row.layer, Sigmoid):
        place -= 1
    before = stages[place - 1].row.layer if place else None
    if isinstance(before, BatchNorm) and before.implementation == "spec" and stages[place - 1].pool == 1:
        place -= 1
        stages[place] = Stage(stages[place].row, size)
    else:
        stages.insert(place, Stage(row, size))
    while place and isinstance(stages[place - 1].row.layer, (BatchNorm, Sigmoid)) and stages[place - 1].pool == 1:
        place -= 1
    if place and isinstance(stages[place - 1].row.layer, Convolution):
        stages[place - 1] = Stage(stages[place - 1].row, size)
