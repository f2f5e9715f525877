"""A network description as a pure function from its values and a batch of images to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from polybn.lenet.networks import BatchNorm, Convolution, Dense, Layer, MaxPool, Row, Sigmoid
from polybn_jax import layers, norms
from polybn_jax.norms import Axis

Values: TypeAlias = dict[str, jax.Array]


class Stage(NamedTuple):
    """A layer, with the max-pool that it does on the way; it hashes, for compiled programs go by their layers."""

    name: str
    layer: Layer
    input_shape: tuple[int, ...]
    parameters: tuple[str, ...]
    """Full names of what is trained."""
    pool: int
    """Side of the squares that a batch norm or a max-pool reduces, or that a convolution prepares; 1 for none."""


Chain: TypeAlias = tuple[Stage, ...]


def forward(
    chain: Chain, values: Values, images: jax.Array, *, training: bool, axis: Axis = None
) -> tuple[jax.Array, Values]:
    """Map images ``(n, H * W * C)``, in bytes, to logits ``(n, classes)`` and, in training, new running statistics."""
    channels, height, width = chain[0].input_shape
    x = (images.astype(jnp.float32) / 255).reshape(-1, height, 1, width * channels)
    statistics: Values = {}
    for stage in chain:
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{stage.name}.")}
        match stage.layer:
            case Convolution():
                x = layers.convolution(x, own["weight"], own["bias"], stage.pool)
            case Dense():
                x = layers.dense(x, own["weight"], own["bias"], stage.input_shape)
            case Sigmoid():
                x = layers.sigmoid(x)
            case MaxPool():
                channels = stage.input_shape[0]
                x = layers.max_pool(layers.to_squares(x, stage.pool, channels), jnp.ones(channels))
            case BatchNorm():
                x, updated = _normalize(x, own, stage, axis, training=training)
                statistics |= {f"{stage.name}.{key}": value for key, value in updated.items()}
    return x.reshape(len(images), -1), statistics


def _normalize(x: jax.Array, own: Values, stage: Stage, axis: Axis, *, training: bool) -> tuple[jax.Array, Values]:
    """Normalize and pool; return new running statistics, too, in training."""
    layer = stage.layer
    assert isinstance(layer, BatchNorm)
    if len(stage.input_shape) == 1:
        x = x.reshape(len(x), -1)
    if layer.implementation == "native":
        return norms.native(x, own, layer, axis, training=training)
    values = x
    if stage.pool > 1:
        x = layers.to_squares(x, stage.pool, stage.input_shape[0])
        values = layers.max_pool(x, jnp.sign(own["gamma"]))
    if not training:
        return norms.inference(values, own, layer.eps), {}
    y, mean, variance = norms.batch_norm(x, values, own["gamma"], own["beta"], layer.eps, axis)
    one, rho = np.float32(1), np.float32(layer.momentum)
    batch = {"running_mean": mean, "running_var": variance}
    return y, {name: rho * own[name] + (one - rho) * value for name, value in batch.items()}


def stages(rows: Sequence[Row]) -> Chain:
    """Let each batch norm do the max-pool that follows it: it is monotonic, and a quarter of the work is left."""
    found: list[Stage] = []
    for row in rows:
        stage = Stage(row.name, row.layer, row.input_shape, tuple(row.parameters), 1)
        if not isinstance(row.layer, MaxPool):
            found.append(stage)
        elif row.layer.size > 1:
            _pool(found, stage._replace(pool=row.layer.size))
    return tuple(found)


def _pool(found: list[Stage], pool: Stage) -> None:
    """Add a max-pool, and tell the convolution that feeds it to leave its result in squares."""
    last = found[-1] if found else None
    if last and isinstance(last.layer, BatchNorm) and last.layer.implementation == "spec" and last.pool == 1:
        found[-1] = last._replace(pool=pool.pool)
    else:
        found.append(pool)
    place = len(found) - 2
    while place >= 0 and isinstance(found[place].layer, BatchNorm | Sigmoid) and found[place].pool == 1:
        place -= 1
    if place >= 0 and isinstance(found[place].layer, Convolution):
        found[place] = found[place]._replace(pool=pool.pool)
