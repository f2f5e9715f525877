"""Frozen lattice calls with the bits of their answers, for implementers in any language.

The vectors are JSON files in the folder ``golden`` beside this module, with a README that says how to read them.
:func:`load` reads them in Python. A file that was published never changes: other cases are another version.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Array, Case, statistics_dtype
from polybn.conformance.lattice import Lattice, in_inference, lattice

VERSION = 1
FORMAT = "polybn-golden"


class Recipe(NamedTuple):
    """How to make one frozen call with :func:`~polybn.conformance.lattice.lattice`."""

    seed: int
    dtype: str
    channels: int
    rest: tuple[int, ...]
    """The shape without channels."""
    axis: int
    power: int
    """The exponent of s."""
    offset: int
    momentum: float
    training: bool


RECIPES: dict[str, tuple[int, str, int, tuple[int, ...], int, int, int, float, bool]] = {
    "f32-two-axes": (1, "float32", 3, (4,), 1, 0, 0, 0.75, True),
    "f32-images": (2, "float32", 3, (2, 2, 4), 1, 0, 17, 0.5, True),
    "f32-images-channels-last": (3, "float32", 5, (2, 4, 2), 3, 0, 17, 0.5, True),
    "f32-channels-first": (4, "float32", 5, (4, 2), 0, 1, 1, 0.25, True),
    "f32-volumes": (5, "float32", 3, (2, 1, 2, 4), 1, -3, 5, 0.75, True),
    "f32-far-from-zero": (6, "float32", 7, (2, 8), 1, 0, 4096, 0.75, True),
    "f32-unbiased-of-5": (7, "float32", 3, (5,), 1, 0, 2, 0.5, True),
    "f32-unbiased-of-9": (8, "float32", 3, (3, 3), 1, -2, 10, 0.75, True),
    "f32-large": (9, "float32", 2, (8,), 1, 40, 17, 0.75, True),
    "f32-small": (10, "float32", 2, (8,), 1, -40, 17, 0.75, True),
    "f32-squares-overflow": (11, "float32", 3, (8,), 1, 61, 17, 0.75, True),
    "f32-squares-vanish": (12, "float32", 3, (8,), 1, -61, 17, 0.75, True),
    "f32-batch-replaces": (13, "float32", 3, (4,), 1, 0, 3, 0.0, True),
    "f32-batch-is-ignored": (14, "float32", 3, (4,), 1, 0, 3, 1.0, True),
    "f32-inference": (15, "float32", 3, (2, 4), 1, 0, 17, 0.75, False),
    "f32-inference-far-from-zero": (16, "float32", 3, (8,), 1, 0, 4096, 0.75, False),
    "f64-two-axes": (17, "float64", 3, (4,), 1, 0, 0, 0.75, True),
    "f64-images": (18, "float64", 3, (2, 2, 4), 1, 0, 17, 0.5, True),
    "f64-far-from-zero": (19, "float64", 5, (2, 8), 1, 0, 2**27, 0.75, True),
    "f64-unbiased-of-5": (20, "float64", 3, (5,), 1, 3, 2, 0.5, True),
    "f64-squares-overflow": (21, "float64", 2, (8,), 1, 509, 17, 0.75, True),
    "f64-squares-vanish": (22, "float64", 2, (8,), 1, -509, 17, 0.75, True),
    "f64-inference": (23, "float64", 3, (2, 4), 1, 0, 17, 0.75, False),
    "f16-images": (24, "float16", 3, (2, 2, 4), 1, 0, 17, 0.5, True),
    "f16-far-from-zero": (25, "float16", 3, (2, 4), 1, 0, 1000, 0.75, True),
    "f16-unbiased-of-5": (26, "float16", 3, (5,), 1, 0, 2, 0.5, True),
    "f16-inference": (27, "float16", 3, (2, 4), 1, 0, 17, 0.75, False),
    "bf16-images": (28, "bfloat16", 3, (2, 2, 4), 1, 0, 17, 0.5, True),
    "bf16-far-from-zero": (29, "bfloat16", 3, (2, 4), 1, 0, 80, 0.75, True),
    "bf16-unbiased-of-9": (30, "bfloat16", 3, (3, 3), 1, 0, 10, 0.75, True),
    "bf16-inference": (31, "bfloat16", 3, (2, 4), 1, 0, 17, 0.75, False),
}


class Golden(NamedTuple):
    """One frozen call."""

    name: str
    case: Case
    expected: dict[str, Array]
    """Exact bits, by the names of the JSON file: ``y``, ``running_mean``, ``running_var_biased``, where it is exact
    ``running_var_unbiased``, ``dx``, ``dgamma``, ``dbeta``, and in inference ``drunning_mean``, ``drunning_var``."""


def load(version: int = VERSION) -> tuple[Golden, ...]:
    """Read the frozen vectors.

    Parameters
    ----------
    version : int
        Of the vectors; the newest by default.

    Raises
    ------
    ValueError
        If there is no such version.

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


def generate() -> str:
    """Make the text of the newest file from the lattice; it equals the frozen one.

    Returns
    -------
    str
        JSON.
    """
    entries = [_entry(name, Recipe(*recipe)) for name, recipe in RECIPES.items()]
    text = json.dumps({"format": FORMAT, "version": VERSION, "cases": entries}, indent=1) + "\n"
    return re.sub(r"[\[{]\n *[^\[\]{}]*(\[\n *[\d,\s]+\])?[^\[\]{}]*[\]}]", _on_one_line, text)


def to_hex(array: Array) -> dict[str, Any]:
    """Write an array as its dtype, its shape, and the bits of its values, most significant digit first.

    Parameters
    ----------
    array : ndarray
        Any shape, floating point.

    Returns
    -------
    dict
        With ``dtype``, ``shape`` and ``bits``.

    Examples
    --------
    >>> to_hex(np.float32([1, -2]))
    {'dtype': 'float32', 'shape': [2], 'bits': '3f800000 c0000000'}
    """
    digits = 2 * array.dtype.itemsize
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").ravel().tolist()
    bits = " ".join(f"{word:0{digits}x}" for word in words)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bits": bits}


def from_hex(written: dict[str, Any]) -> Array:
    """Read what :func:`to_hex` wrote.

    Parameters
    ----------
    written : dict
        With ``dtype``, ``shape`` and ``bits``.

    Examples
    --------
    >>> from_hex({"dtype": "float16", "shape": [2], "bits": "3c00 c000"}).tolist()
    [1.0, -2.0]
    """
    dtype = DTYPES[written["dtype"]]
    words = np.array([int(word, 16) for word in written["bits"].split()], f"u{dtype.itemsize}")
    array: Array = words.view(dtype).reshape(written["shape"])
    return array


def _on_one_line(found: re.Match[str]) -> str:
    return re.sub(r"\n *", " ", found[0]).replace("[ ", "[").replace(" ]", "]").replace("{ ", "{").replace(" }", "}")


def _entry(name: str, recipe: Recipe) -> dict[str, Any]:
    made = lattice(recipe.seed, recipe.dtype, recipe.channels, recipe.rest, recipe.axis, recipe.power, recipe.offset)
    made = made._replace(case=made.case._replace(momentum=recipe.momentum))
    made = made if recipe.training else in_inference(made, recipe.seed)
    case, numbers = made.case, {"eps": made.case.eps, "momentum": made.case.momentum}
    inputs = {**{k: v for k, v in case.arrays().items() if v is not None}, "dy": case.dy}
    return {
        "name": name,
        "training": recipe.training,
        "axis": recipe.axis,
        **{key: {"value": repr(value), "bits": to_hex(np.array([value]))["bits"]} for key, value in numbers.items()},
        "inputs": {key: to_hex(value) for key, value in inputs.items()},
        "expected": {key: to_hex(value) for key, value in _answers(made).items()},
    }


def _answers(made: Lattice) -> dict[str, Array]:
    case, wide = made.case, statistics_dtype(made.case.x)
    found = {"y": made.y.astype(case.x.dtype), "dx": made.dx.astype(case.x.dtype)}
    found |= {"dgamma": made.dgamma.astype(wide), "dbeta": made.dbeta.astype(wide)}
    if not case.training:
        slope = np.asarray(case.gamma, np.float64) / np.sqrt(made.variance + case.eps)
        drunning = (-slope * made.dbeta, -slope / np.sqrt(made.variance + case.eps) * made.dgamma / 2)
        return found | dict(zip(("drunning_mean", "drunning_var"), (v.astype(wide) for v in drunning), strict=True))
    batches = {"running_mean": (case.running_mean, made.mean), "running_var_biased": (case.running_var, made.variance)}
    if made.unbiased is not None:
        batches["running_var_unbiased"] = (case.running_var, made.unbiased)
    return found | {name: blended(case, np.asarray(old), batch) for name, (old, batch) in batches.items()}


def blended(case: Case, old: Array, batch: Array) -> Array:
    """Return the new running statistic (S4); a batch's that is too large for its dtype is infinity (S10).

    Parameters
    ----------
    case : Case
        Which has the momentum.
    old, batch : ndarray
        Shape ``(C,)``.

    Returns
    -------
    ndarray
        Shape ``(C,)``, dtype of the statistics.
    """
    if case.momentum == 1:
        return old
    wide = statistics_dtype(case.x)
    with np.errstate(over="ignore"):
        new = case.momentum * old.astype(np.float64) + (1 - case.momentum) * batch.astype(wide).astype(np.float64)
        return np.asarray(new.astype(wide))


def _read(entry: dict[str, Any]) -> Golden:
    arrays = {name: from_hex(value) for name, value in entry["inputs"].items()}
    eps, momentum = (
        float(from_hex({"dtype": "float64", "shape": [1], **entry[key]})[0]) for key in ("eps", "momentum")
    )
    given: dict[str, Any] = arrays
    case = Case(**given, training=entry["training"], momentum=momentum, eps=eps, axis=entry["axis"])
    return Golden(entry["name"], case, {name: from_hex(value) for name, value in entry["expected"].items()})
