"""Frozen lattice calls with the bits of their exact answers, for implementers in any language.

The calls are JSON files in the folder ``golden`` beside this module, with a README that says how to read them;
:func:`load` reads them in Python. A published file never changes: new cases get a new version.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Array, Case

VERSION = 1


class Golden(NamedTuple):
    """One frozen call."""

    name: str
    case: Case
    expected: dict[str, Array]
    """Exact bits, by the names of the JSON file: ``y``, ``running_mean``, ``running_var_biased``, where it is exact
    ``running_var_unbiased``, ``dx``, ``dgamma``, ``dbeta``, and in inference ``drunning_mean``, ``drunning_var``."""


def load(version: int = VERSION) -> tuple[Golden, ...]:
    """Read the frozen calls of a version, by default the newest.

    Examples
    --------
    >>> first = load()[0]
    >>> first.name, first.case.x.shape, first.expected["y"].dtype.name
    ('f32-two-axes', (4, 3), 'float32')
    """
    file = resources.files("polybn.conformance") / "golden" / f"v{version}.json"
    if not file.is_file():
        raise ValueError(f"polybn.conformance.golden.load: version must be 1 to {VERSION}; got {version!r}")
    return tuple(_read(entry) for entry in json.loads(file.read_text("ascii"))["cases"])


def from_hex(written: dict[str, Any]) -> Array:
    """Read an array from its dtype, its shape, and the bits of its values, most significant digit first.

    Examples
    --------
    >>> from_hex({"dtype": "float16", "shape": [2], "bits": "3c00 c000"}).tolist()
    [1.0, -2.0]
    """
    dtype = DTYPES[written["dtype"]]
    words = np.array([int(word, 16) for word in written["bits"].split()], f"u{dtype.itemsize}")
    array: Array = words.view(dtype).reshape(written["shape"])
    return array


def _read(entry: dict[str, Any]) -> Golden:
    arrays = {name: from_hex(value) for name, value in entry["inputs"].items()}
    eps, momentum = (
        float(from_hex({"dtype": "float64", "shape": [1], **entry[key]})[0]) for key in ("eps", "momentum")
    )
    given: dict[str, Any] = arrays
    case = Case(**given, training=entry["training"], momentum=momentum, eps=eps, axis=entry["axis"])
    return Golden(entry["name"], case, {name: from_hex(value) for name, value in entry["expected"].items()})
