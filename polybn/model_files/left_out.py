"""What may be a batch norm and is not read as one, with the reason: nothing is left out without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from polybn.dialects import DIALECTS
from polybn.model_files.incomplete import incomplete
from polybn.model_files.model import LeftOut
from polybn.model_files.names import Shapes, places, short

_NAMED = re.compile(r"(?:^|[._/])(?:bn|bnorm|batch_?norm)[^./]*$", re.IGNORECASE)
"""The name of a layer that calls itself a batch norm; others with gamma and beta alone are layer or group norms."""
_PAIRS = sorted({(d.names["gamma"], d.names["beta"]) for d in DIALECTS.values() if {"gamma", "beta"} <= d.names.keys()})
BARE = (
    "its mean and var have neither gamma nor beta beside them, and may be anything's; if it is a batch norm, "
    "polybn inspect and polybn convert read it with --from flax_linen"
)
UNTRACKED = (
    "it has weight and bias but no running statistics, which is right for PyTorch's layer with "
    "track_running_stats=False alone, where each batch is normalized by its own: there is nothing to convert"
)
FORGOTTEN = (
    "it has scale and bias but neither mean nor var, which Flax keeps in another collection, batch_stats: "
    "save all variables, not params alone"
)
LOST = (
    "it has {} and {} but no running statistics, without which there is no inference: save all arrays of the model, "
    "not those alone that are trained"
)


def left_out(shapes: Shapes, found: Iterable[str], first: tuple[str, ...] = ()) -> Iterator[LeftOut]:
    """Yield layers that may be batch norms, and why they are not among those that were ``found``.

    Also layers that were found, where some of their arrays are not read. Names of missing arrays are those of the
    dialects ``first``, if these fit.
    """
    known = set(found)
    for place in places(shapes, bare=True):
        if place.layer not in known:
            known.add(place.layer)
            yield LeftOut(place.layer, BARE)
    for left in incomplete(shapes, known, first):
        known.add(left.layer)
        yield left
    for name, shape in shapes.items():
        for gamma, beta in _PAIRS:
            layer = name.removesuffix(gamma)
            if layer == name or len(shape) != 1 or shapes.get(layer + beta) != shape:
                continue
            layer = layer.rstrip("._/:")
            if _NAMED.search(layer) and not {layer, short(layer)} & known:
                yield _without_statistics(layer, gamma, beta)


def _without_statistics(layer: str, gamma: str, beta: str) -> LeftOut:
    if (gamma, beta) == ("weight", "bias"):
        return LeftOut(layer, UNTRACKED)
    why = FORGOTTEN if (gamma, beta) == ("scale", "bias") else LOST.format(gamma, beta)
    return LeftOut(layer, why, "statistics are missing", "warning")
