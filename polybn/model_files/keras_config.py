"""The configuration of a Keras model: its layers, with their names, options, and places among the weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from polybn.model_files.errors import ModelFileError

MOST_DEPTH = 16
LAYERS = "layers"
"""What models call the list of their layers."""
KINDS = ("BatchNormalization", "BatchNormalizationV1", "SyncBatchNormalization")
"""The names of batch norm in Keras 3, TensorFlow 1 and TensorFlow 2."""
WORDS: dict[str, tuple[type, ...]] = {"momentum": (int, float), "epsilon": (int, float), "axis": (int,)}
"""The options of batch norm that a dialect knows, and their types."""


class Layer(NamedTuple):
    """One layer of a model, of its nested models, or in a wrapper."""

    name: str
    """Its own name after those of the layers around it, without the whole model's, such as ``inner/bn``."""
    place: str
    """Where its weights are: such as ``sequential/batch_normalization_1``, by classes, counted in each model."""
    kind: str
    """The name of its class."""
    options: dict[str, Any]

    @property
    def normalizes(self) -> bool:
        """Whether it is a batch norm."""
        return self.kind in KINDS

    def words(self) -> dict[str, Any]:
        """Return momentum, epsilon and axis, which must be numbers; Keras 2 wrote the axis as a list of one."""
        found = {word: self.options[word] for word in WORDS if word in self.options}
        if isinstance(found.get("axis"), list) and len(found["axis"]) == 1:
            found["axis"] = found["axis"][0]
        for word, value in found.items():
            if type(value) not in WORDS[word]:
                raise ModelFileError(f"have one number as {word} of {self.name!r:.80}; got {value!r:.80}")
        return {word: value if word == "axis" else float(value) for word, value in found.items()}


def parse(text: str | bytes) -> list[Layer]:
    """Return the layers in a configuration, the outer ones first."""
    return list(_inner(json.loads(text), (), (), 0))


def _inner(config: Any, names: tuple[str, ...], places: tuple[str, ...], depth: int) -> Iterator[Layer]:
    """Yield the layers in a layer's options: in the list of a model, or as a value, in a wrapper."""
    own = config.get("config") if isinstance(config, dict) else None
    if depth > MOST_DEPTH or not isinstance(own, dict):
        return
    for key, value in own.items():
        several, counted = isinstance(value, list), Counter[str]()
        for layer in value if several else [value]:
            if not (isinstance(layer, dict) and isinstance(layer.get("config"), dict)):
                continue
            kind = str(layer.get("class_name", ""))
            here = [key] if key != LAYERS else []
            here += [_numbered(_snake(kind), counted)] if several else []
            place = (*places, *here)
            name = (*names, str(layer["config"].get("name", "")))
            yield Layer("/".join(name), "/".join(place), kind, layer["config"])
            yield from _inner(layer, name, place, depth + 1)


def _numbered(name: str, counted: Counter[str]) -> str:
    """Return a name with the number of its earlier occurrences, if there are any."""
    counted[name] += 1
    return name if counted[name] == 1 else f"{name}_{counted[name] - 1}"


def _snake(kind: str) -> str:
    """Return the name of a class in snake case, as Keras does."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))).lower()
