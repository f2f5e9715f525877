"""Keras: ``.keras``, an archive with a configuration and weights; ``.weights.h5``, only weights; ``.h5``, both.

Weights of ``.weights.h5`` have numbers and no names: in a batch norm 0 is gamma, 1 beta, 2 the moving mean and 3 the
moving variance, and without scale or center the others move up. With neither, two vectors are left, as a layer
normalization has them, too: only the name of their group, ``layers/batch_normalization_1``, tells which they are. Early
versions of Keras 3, such as 3.3, name no layers either: a layer is known by its place, such as
``layers/sequential/layers/batch_normalization_1``.
"""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO

from polybn.dialects import KERAS3
from polybn.model_files import hdf5, names
from polybn.model_files.archives import read_member
from polybn.model_files.errors import ModelFileError
from polybn.model_files.keras_config import LAYERS, Layer, parse
from polybn.model_files.left_out import left_out
from polybn.model_files.model import Model, Norm, vector
from polybn.model_files.tensors import Tensors, for_norms

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""The members of an archive."""
MOST_CONFIG = 2**23
VARIABLES = "vars"
ROLES = list(KERAS3.names.values())
_GROUP = re.compile(r"(?:sync_)?batch_normalization(?:_\d+)?")
"""How Keras calls the group of a batch norm in a list of layers: by its class."""
EITHER = (
    "gamma or beta is missing, and weights alone do not say which one: a .keras file does, and polybn convert takes "
    "--option {} or --option {}"
)
LOST = "its weights are numbered {}, so that one is lost: save the model again"


def read_archive(archive: zipfile.ZipFile) -> tuple[list[Layer], Tensors]:
    """Return the layers of a ``.keras`` file, and its weights as ``layer/0``, ``layer/1``."""
    layers, weights, _ = _read_archive(archive)
    return layers, weights


def _read_archive(archive: zipfile.ZipFile) -> tuple[list[Layer], Tensors, set[str]]:
    if WEIGHTS not in archive.namelist():
        raise ModelFileError(f"hold {CONFIG} and {WEIGHTS}; got {', '.join(archive.namelist()):.120}")
    if archive.getinfo(CONFIG).file_size > MOST_CONFIG:
        raise ModelFileError(f"have a {CONFIG} of at most {MOST_CONFIG:,} bytes; got more")
    layers = parse(archive.read(CONFIG))
    weights = io.BytesIO(read_member(archive, WEIGHTS))
    return layers, *_read_weights(weights, {layer.place: layer.name for layer in layers})


def _read_weights(file: BinaryIO, by_place: Mapping[str, str] = MappingProxyType({})) -> tuple[Tensors, set[str]]:
    """Return weights as ``layer/0``, ``layer/1``, and the layers that are batch norms by the names of their groups.

    A layer in nested models is ``outer/inner/layer``.
    """
    tensors, given = hdf5.read(file)
    named = {path: _named(path, given, by_place) for path in tensors.shapes}
    shared = Counter(named.values())
    paths = {name if shared[name] == 1 else _named(path, {}, {}): path for path, name in named.items()}
    shapes = {name: tensors.shapes[path] for name, path in paths.items()}
    grouped = {name.rpartition("/")[0] for name, path in paths.items() if _is_of_batch_norm(path)}
    return tensors._replace(shapes=shapes, read=lambda name: tensors.read(paths[name])), grouped


def _is_of_batch_norm(path: str) -> bool:
    """Return whether a path is such as ``layers/batch_normalization_1/vars/0``."""
    parts = path.split("/")
    return len(parts) > 2 and parts[-2] == VARIABLES and _GROUP.fullmatch(parts[-3]) is not None


def _named(path: str, given: Mapping[str, str], by_place: Mapping[str, str]) -> str:
    """Return a path such as ``layers/batch_normalization/vars/0`` with the layer's own name, ``norm1/0``."""
    group, _, last = path.rpartition("/")
    *outer, kind = group.split("/")
    if kind != VARIABLES:
        return path
    if group not in given:
        place = "/".join(part for part in outer if part != LAYERS)
        return f"{by_place.get(place, place)}/{last}"
    parents = ("/".join([*outer[:depth], VARIABLES]) for depth in range(1, len(outer) + 1))
    return "/".join([*(given[parent] for parent in parents if parent in given), last])


def find_weights(file: BinaryIO) -> Model:
    """Return the batch norms of an HDF5 file: numbered vectors of one length, or names of Keras 2."""
    weights, grouped = _read_weights(file)
    tensors = for_norms(weights)
    norms, size = [*names.find(tensors), *_nameless(tensors, _numbered(tensors), grouped)], len(tensors.shapes)
    left = tuple(left_out(tensors.shapes, [norm.name for norm in norms], (KERAS3.name,)))
    config = tensors.metadata.get(hdf5.CONFIG)
    if config is None:
        return Model("Keras weights", norms, size, left)
    if len(config) > MOST_CONFIG:
        raise ModelFileError(f"have a {hdf5.CONFIG} of at most {MOST_CONFIG:,} bytes; got more")
    return Model("Keras", _configured(norms, [layer for layer in parse(config) if layer.normalizes]), size, left)


def _configured(norms: list[Norm], layers: list[Layer]) -> list[Norm]:
    """Give batch norms the names, the options and the order of a configuration, and leave the others at the end.

    A group such as ``model_weights/inner/inner/bn`` begins with the layer of the outermost model. It ends with the
    batch norm's own name, to which TensorFlow may have put a number.
    """
    left = {norm.name: norm for norm in norms}
    found = []
    for layer in layers:
        first, last = layer.name.split("/")[0], layer.name.split("/")[-1]
        alike = [each for each in layers if each.name.split("/")[0] == first]
        fits = [name for name in left if name.removeprefix("model_weights/").split("/")[0] == first]
        if len(alike) > 1 or len(fits) > 1:
            fits = [name for name in fits if name.split("/")[-1] == last]
        if len(fits) == 1:
            found.append(left.pop(fits[0])._replace(name=layer.name, options=layer.words()))
    return [*found, *left.values()]


def _nameless(tensors: Tensors, layers: dict[str, list[str]], grouped: set[str]) -> Iterator[Norm]:
    """Yield the layers whose numbered weights are those of a batch norm: vectors of one length.

    Two of them are its statistics if the layer is among those that are ``grouped`` with batch norms.
    """
    for layer, numbered in layers.items():
        shapes = {tensors.shapes[name] for name in numbered}
        numbers = [int(name.rpartition("/")[2]) for name in numbered]
        if numbers != [*range(len(numbers))]:
            if layer in grouped:
                yield Norm(layer, KERAS3.name, {}, lacks=LOST.format(", ".join(map(str, numbers))))
            continue
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            continue
        if len(numbered) == 4:
            yield _norm(tensors, layer, numbered, ROLES)
        elif len(numbered) == 3:
            words = (shlex.quote(f"{layer}.{word}=False") for word in KERAS3.affine_words)
            norm = _norm(tensors, layer, numbered[1:], ROLES[2:])
            yield norm._replace(lacks=EITHER.format(*words), unnamed=vector(tensors.read(numbered[0])))
        elif len(numbered) == 2 and layer in grouped:
            yield _norm(tensors, layer, numbered, ROLES[2:])


def find_archive(archive: zipfile.ZipFile) -> Model:
    """Return the batch norms of a ``.keras`` file: with their options those in its configuration, then the others.

    The configuration does not show what a layer of the user's own makes inside.
    """
    layers, weights, grouped = _read_archive(archive)
    tensors = for_norms(weights)
    numbered = _numbered(tensors)
    norms = []
    for layer in layers:
        if layer.normalizes:
            there = (layer.options.get("scale", True), layer.options.get("center", True), True, True)
            roles = [role for role, kept in zip(ROLES, there, strict=True) if kept]
            own = numbered.pop(layer.name, [])
            if len(own) != len(roles):
                raise ModelFileError(f"hold {len(roles)} weights of {layer.name!r:.80}; got {len(own)}")
            norms.append(_norm(tensors, layer.name, own, roles)._replace(options=layer.words()))
    return Model("Keras", [*norms, *_nameless(tensors, numbered, grouped)], len(tensors.shapes))


def _numbered(tensors: Tensors) -> dict[str, list[str]]:
    """Return names ``layer/0``, ``layer/1`` by layer, in the order of their numbers."""
    found = dict[str, list[str]]()
    for name in tensors.shapes:
        layer, _, number = name.rpartition("/")
        if number.isdecimal():
            found.setdefault(layer, []).append(name)
    return {layer: sorted(own, key=lambda name: int(name.rpartition("/")[2])) for layer, own in found.items()}


def _norm(tensors: Tensors, layer: str, numbered: list[str], roles: list[str]) -> Norm:
    state = {role: vector(tensors.read(name)) for role, name in zip(roles, numbered, strict=True)}
    return Norm(layer, KERAS3.name, state)
