"""What may be a batch norm and is not read as one, with the reason: nothing is left out without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from polybn.dialects import DIALECTS
from polybn.model_files.names import Shapes, places, short

_NAMED = re.compile(r"(?:^|[._/])(?:bn|bnorm|batch_?norm)[^./]*$", re.IGNORECASE)
"""The name of a layer that calls itself a batch norm; others with gamma and beta alone are layer or group norms."""
_PAIRS = sorted({(d.names["gamma"], d.names["beta"]) for d in DIALECTS.values() if {"gamma", "beta"} <= d.names.keys()})
BARE = (
    "its mean and var have neither gamma nor beta beside them, and may be anything's; if it is a batch norm, "
    "polybn convert reads it with --from flax_linen"
)
UNTRACKED = (
    "it has gamma and beta but no running statistics, as PyTorch's layer with track_running_stats=False, which "
    "normalizes each batch by its own: there is nothing to convert"
)


def left_out(shapes: Shapes, found: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield layers that may be batch norms, and why they are not among those that were ``found``."""
    known = set(found)
    for place in places(shapes, bare=True):
        if place.layer not in known:
            known.add(place.layer)
            yield place.layer, BARE
    for name, shape in shapes.items():
        for gamma, beta in _PAIRS:
            layer = name.removesuffix(gamma)
            if layer == name or len(shape) != 1 or shapes.get(layer + beta) != shape:
                continue
            layer = layer.rstrip("._/:")
            if _NAMED.search(layer) and not {layer, short(layer)} & known:
                yield layer, UNTRACKED
