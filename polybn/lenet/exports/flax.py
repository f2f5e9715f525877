"""Variables for Flax linen, as ``flax.serialization`` writes them, for images (N, H, W, C)."""

from __future__ import annotations

from polybn import dialects
from polybn.lenet.exports.layouts import Layers, Layout, to_layers
from polybn.lenet.exports.trained import Trained
from polybn.model_files import flax

LAYOUT = Layout(dialects.FLAX_LINEN, "kernel", channels_last=True)
STATISTICS = ("mean", "var")


def files(trained: Trained) -> dict[str, bytes]:
    """Write one file: the collections ``params`` and ``batch_stats``, and the note as ``polybn``."""
    layers = to_layers(trained.network, trained.state, LAYOUT, trained.steps)
    params = {layer: {k: v for k, v in own.items() if k not in STATISTICS} for layer, own in layers.items()}
    stats = {layer: {k: own[k] for k in STATISTICS} for layer, own in layers.items() if "mean" in own}
    return {".msgpack": flax.encode({"params": params, "batch_stats": stats, "polybn": trained.note})}


def read(data: bytes) -> tuple[str | None, Layers]:
    """Return the note and the arrays."""
    tree = flax.decode(data)
    layers = {layer: own | tree["batch_stats"].get(layer, {}) for layer, own in tree["params"].items()}
    return tree.get("polybn"), layers
