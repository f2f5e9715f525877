"""Recognition of batch norms by the names of tensors: their dialect, and the arrays that belong together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from polybn.dialects import DIALECTS, Dialect
from polybn.dialects.record import SCALARS
from polybn.model_files.model import Norm, vector
from polybn.model_files.tensors import MOST_CHANNELS, Tensors, for_norms

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

ORDER = (
    "pytorch", "polybn", "keras3", "onnx9", "flax_linen", "mxnet_native", "chainer", "haiku", "caffe", "onnx15",
    "cudnn", "cudnn4", "equinox_ema", "equinox_batch",
)  # fmt: skip
"""Dialects of the names in files. Of those with equal names the first counts, unless the file says otherwise."""
_COLLECTION = re.compile(r"^(?:arg:|aux:|(?:params|batch_stats|state|variables)[./])+")
"""The prefix of a layer's name, which differs between its parameters and its statistics."""
_STATISTICS = re.compile(r"(?:^|[./])batch_stats[./]")
"""What the name of a mean contains in Flax's collection of running statistics, which holds nothing else."""


class Place(NamedTuple):
    """The names of a batch norm's arrays in a file."""

    layer: str
    dialect: Dialect
    tensors: dict[str, str]
    """The names in the file by the dialect's own names."""


def find(tensors: Tensors, first: Iterable[str] = ()) -> list[Norm]:
    """Return the batch norms among tensors; the dialects ``first`` are tried before the others."""
    known = for_norms(tensors)
    found = []
    for place in places(known.shapes, first):
        state = {own: vector(known.read(name)) for own, name in place.tensors.items()}
        found.append(Norm(place.layer, place.dialect.name, state))
    return found


def places(shapes: Shapes, first: Iterable[str] = (), *, bare: bool = False) -> Iterator[Place]:
    """Yield the places of batch norms, in the order of their running means.

    A ``mean`` and ``var`` without gamma and beta may belong to anything. They count in a dialect among ``first``, in
    Flax's collection of statistics, and if ``bare`` is true.
    """
    first, plain = tuple(first), by_plain_name(shapes)
    dialects = [DIALECTS[name] for name in dict.fromkeys((*first, *ORDER))]
    for name, whole in plain.items():
        alone = bare or _STATISTICS.search(whole) is not None
        fits = [
            place
            for dialect in dialects
            if (place := _place(name, plain, shapes, dialect, alone=alone or dialect.name in first)) is not None
        ]
        with_affine = [place for place in fits if {"gamma", "beta"} & _roles(place)]
        # A gamma or beta that belongs to no batch norm shows that the names mean something else.
        without = fits if fits and not any(f"{_stem(name, fits[0])}{own}" in plain for own in _AFFINE) else []
        yield from (with_affine or without)[:1]


def by_plain_name(shapes: Shapes) -> dict[str, str]:
    """Return the names in a file by those without their collections, unless these would be the same."""
    brief = {name: short(name) for name in shapes}
    shared = Counter(brief.values())
    return {brief[name] if shared[brief[name]] == 1 else _plain(name): name for name in shapes}


def short(name: str) -> str:
    """Remove the collection from a name, which differs between parameters and statistics of one layer."""
    return _COLLECTION.sub("", _plain(name))


def _plain(name: str) -> str:
    """Remove TensorFlow's output numbers and Haiku's own level from a name."""
    return name.replace("/~/", "/").removesuffix(":0")


def _place(name: str, plain: dict[str, str], shapes: Shapes, dialect: Dialect, *, alone: bool) -> Place | None:
    """Return the batch norm whose running mean would have this name in a dialect, or None."""
    mean, var = statistics(dialect)
    layer, separator = name.removesuffix(mean), name[: -len(mean)][-1:]
    if layer == name or separator not in ("", ".", "/", "_", ":"):
        return None
    found = {own: plain[layer + own] for own in dialect.names.values() if layer + own in plain}
    vectors = [own for role, own in dialect.names.items() if role not in SCALARS and own in found]
    sizes = {tuple(size for size in shapes[found[own]] if size != 1) for own in vectors}
    if var not in found or len(sizes) != 1:
        return None
    (size,) = sizes
    if len(size) > 1 or (size and size[0] > MOST_CHANNELS):
        return None
    if mean == "mean" and not alone and not {dialect.names["gamma"], dialect.names["beta"]} & found.keys():
        return None  # such plain names may belong to anything
    needed = {dialect.names[role] for role in dialect.names if role not in dialect.may_lack}
    return Place(layer.rstrip("./_:"), dialect, found) if needed <= found.keys() else None


def _stem(name: str, place: Place) -> str:
    return name.removesuffix(statistics(place.dialect)[0])


def statistics(dialect: Dialect) -> tuple[str, str]:
    """Return a dialect's names of mean and variance, or of the hidden averages that it keeps in place of them."""
    names = dialect.names
    kept = "running" if "running_mean" in names else "hidden"
    return names[f"{kept}_mean"], names[f"{kept}_var"]  # type: ignore[index]


_AFFINE = sorted({DIALECTS[name].names[role] for name in ORDER for role in ("gamma", "beta")})


def _roles(place: Place) -> set[str]:
    return {role for role, own in place.dialect.names.items() if own in place.tensors}
