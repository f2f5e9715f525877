"""From the names of tensors to batch norms: whose words they are, and what belongs together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from polybn.dialects import DIALECTS, Dialect
from polybn.model_files.model import Norm, vector
from polybn.model_files.tensors import MOST_CHANNELS, Tensors, for_norms

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

ORDER = ("pytorch", "polybn", "keras3", "flax_linen", "mxnet_native", "chainer", "haiku", "caffe")
"""Dialects whose names files have; of those with the same names, the first is meant unless the file says otherwise."""
_COLLECTION = re.compile(r"^(?:arg:|aux:|(?:params|batch_stats|state|variables)[./])+")
"""What stands before the name of a layer, and differs between its parameters and its statistics."""


class Place(NamedTuple):
    """Where a batch norm was found."""

    layer: str
    dialect: Dialect
    tensors: dict[str, str]
    """The names in the file, by the dialect's own names."""


def find(tensors: Tensors, first: Iterable[str] = ()) -> list[Norm]:
    """Return the batch norms among tensors; dialects named ``first`` come before the usual ones."""
    known = for_norms(tensors)
    found = []
    for place in places(known.shapes, (*first, *ORDER)):
        state = {own: vector(known.read(name)) for own, name in place.tensors.items()}
        found.append(Norm(place.layer, place.dialect.name, state))
    return found


def places(shapes: Shapes, order: Iterable[str]) -> Iterator[Place]:
    """Yield where batch norms are, in the order of their running means."""
    plain = {_plain(name): name for name in shapes}
    dialects = [DIALECTS[name] for name in dict.fromkeys(order)]
    for name in plain:
        fits = [place for dialect in dialects if (place := _place(name, plain, shapes, dialect)) is not None]
        with_affine = [place for place in fits if {"gamma", "beta"} & _roles(place)]
        # Where gamma or beta is there and belongs to none, the names mean something else.
        without = fits if fits and not any(f"{_stem(name, fits[0])}{own}" in plain for own in _AFFINE) else []
        yield from (with_affine or without)[:1]


def _plain(name: str) -> str:
    """Leave out collections, TensorFlow's output numbers and Haiku's own level."""
    return _COLLECTION.sub("", name.replace("/~/", "/")).removesuffix(":0")


def _place(name: str, plain: dict[str, str], shapes: Shapes, dialect: Dialect) -> Place | None:
    """Take a name for a dialect's running mean, and look for the rest of its batch norm."""
    mean = dialect.names["running_mean"]
    layer, separator = name.removesuffix(mean), name[: -len(mean)][-1:]
    if layer == name or separator not in ("", ".", "/", "_", ":"):
        return None
    found = {own: plain[layer + own] for own in dialect.names.values() if layer + own in plain}
    vectors = [own for role, own in dialect.names.items() if role in _VECTORS and own in found]
    sizes = {tuple(size for size in shapes[found[own]] if size != 1) for own in vectors}
    if dialect.names["running_var"] not in found or len(sizes) != 1:
        return None
    (size,) = sizes
    if len(size) > 1 or (size and size[0] > MOST_CHANNELS):
        return None
    if mean == "mean" and not {dialect.names["gamma"], dialect.names["beta"]} & found.keys():
        return None  # plain words: they may be anything's
    needed = {dialect.names[role] for role in dialect.names if role not in dialect.may_lack}
    return Place(layer.rstrip("./_:"), dialect, found) if needed <= found.keys() else None


def _stem(name: str, place: Place) -> str:
    return name.removesuffix(place.dialect.names["running_mean"])


_AFFINE = sorted({DIALECTS[name].names[role] for name in ORDER for role in ("gamma", "beta")})
_VECTORS = ("gamma", "beta", "running_mean", "running_var")


def _roles(place: Place) -> set[str]:
    return {role for role, own in place.dialect.names.items() if own in place.tensors}
