"""Keras 3: ``.keras``, an archive with a configuration and weights, and ``.weights.h5``, only weights.

Weights have numbers and no names: in a batch norm 0 is gamma, 1 beta, 2 the moving mean and 3 the moving variance, and
without scale or center the others move up.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from polybn.dialects import KERAS3
from polybn.model_files import hdf5, names
from polybn.model_files.archives import open_archive, read_member
from polybn.model_files.errors import ModelFileError
from polybn.model_files.model import Norm, vector
from polybn.model_files.tensors import Tensors, for_norms

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""The members of an archive."""
MOST_CONFIG, MOST_DEPTH = 2**23, 16
VARIABLES = "vars"
ROLES = list(KERAS3.names.values())
EITHER = "gamma or beta is missing, and weights alone do not say which one; a .keras file does"


def read_weights(file: BinaryIO) -> Tensors:
    """Return weights as ``layer/0``, ``layer/1``; a layer in nested models is ``outer/inner/layer``."""
    tensors, given = hdf5.read(file)
    paths = {_named(path, given): path for path in tensors.shapes}
    return Tensors({name: tensors.shapes[path] for name, path in paths.items()}, lambda name: tensors.read(paths[name]))


def _named(path: str, given: dict[str, str]) -> str:
    """Return a path such as ``layers/batch_normalization/vars/0`` with the layer's own name, ``norm1/0``."""
    group, _, last = path.rpartition("/")
    if group.rpartition("/")[2] != VARIABLES:
        return path
    parts, outer = list[str](), ""
    for part in group.split("/")[:-1]:
        outer = f"{outer}/{part}".strip("/")
        name = given.get(f"{outer}/{VARIABLES}")
        parts += [] if name is None else [name]
    return "/".join([*parts, last])


def find_weights(file: BinaryIO) -> tuple[list[Norm], int]:
    """Return the batch norms of a file with only weights: four numbered vectors of one length, or names of Keras 2."""
    tensors = for_norms(read_weights(file))
    return [*names.find(tensors), *_nameless(tensors, _numbered(tensors))], len(tensors.shapes)


def _nameless(tensors: Tensors, layers: dict[str, list[str]]) -> Iterator[Norm]:
    """Yield the layers whose numbered weights are those of a batch norm: vectors of one length."""
    for layer, numbered in layers.items():
        shapes = {tensors.shapes[name] for name in numbered}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            continue
        if len(numbered) == 4:
            yield _norm(tensors, layer, numbered, ROLES, {})
        elif len(numbered) == 3:
            yield _norm(tensors, layer, numbered[1:], ROLES[2:], {})._replace(lacks=EITHER)


def find_archive(file: BinaryIO) -> tuple[list[Norm], int]:
    """Return the batch norms of a ``.keras`` file: with their options those in its configuration, then the others.

    The configuration does not show what a layer of the user's own makes inside.
    """
    archive = open_archive(file)
    if WEIGHTS not in archive.namelist():
        raise ModelFileError(f"hold {CONFIG} and {WEIGHTS}; got {', '.join(archive.namelist()):.120}")
    if archive.getinfo(CONFIG).file_size > MOST_CONFIG:
        raise ModelFileError(f"have a {CONFIG} of at most {MOST_CONFIG:,} bytes; got more")
    config = json.loads(archive.read(CONFIG))
    tensors = for_norms(read_weights(io.BytesIO(read_member(archive, WEIGHTS))))
    numbered = _numbered(tensors)
    norms = []
    for layer, options in _layers(config, (), 0):
        there = (options.get("scale", True), options.get("center", True), True, True)
        roles = [role for role, kept in zip(ROLES, there, strict=True) if kept]
        own = numbered.pop(layer, [])
        if len(own) != len(roles):
            raise ModelFileError(f"hold {len(roles)} weights of {layer!r:.80}; got {len(own)}")
        words: dict[str, Any] = {word: options[word] for word in ("momentum", "epsilon", "axis") if word in options}
        words |= {"axis": words["axis"][0]} if isinstance(words.get("axis"), list) else {}
        norms.append(_norm(tensors, layer, own, roles, words))
    return [*norms, *_nameless(tensors, numbered)], len(tensors.shapes)


def _numbered(tensors: Tensors) -> dict[str, list[str]]:
    """Return names ``layer/0``, ``layer/1`` by layer, in the order of their numbers."""
    found = dict[str, list[str]]()
    for name in tensors.shapes:
        layer, _, number = name.rpartition("/")
        if number.isdecimal():
            found.setdefault(layer, []).append(name)
    return {layer: sorted(own, key=lambda name: int(name.rpartition("/")[2])) for layer, own in found.items()}


def _norm(tensors: Tensors, layer: str, numbered: list[str], roles: list[str], options: dict[str, Any]) -> Norm:
    state = {role: vector(tensors.read(name)) for role, name in zip(roles, numbered, strict=True)}
    return Norm(layer, KERAS3.name, state, options)


def _layers(config: Any, outer: tuple[str, ...], depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the options of each batch norm in a configuration, its nested models and wrappers."""
    if depth > MOST_DEPTH or not isinstance(config, dict):
        return
    own = config.get("config")
    if not isinstance(own, dict):
        return
    name = str(own.get("name", ""))
    if config.get("class_name") == "BatchNormalization":
        yield "/".join((*outer, name)), own
    for value in own.values():
        for layer in value if isinstance(value, list) else [value]:
            yield from _layers(layer, (*outer, name) if depth else (), depth + 1)
