"""The recipes of the golden vectors, and the text of the file that they make."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np

from polybn.conformance.cases import Array, Case, statistics_dtype
from polybn.conformance.golden import VERSION
from polybn.conformance.lattice import Lattice, in_inference, lattice

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


def generate() -> str:
    """Make the JSON text of the newest version from the lattice; it equals the frozen file."""
    entries = [_entry(name, Recipe(*recipe)) for name, recipe in RECIPES.items()]
    text = json.dumps({"format": FORMAT, "version": VERSION, "cases": entries}, indent=1) + "\n"
    return re.sub(r"[\[{]\n *[^\[\]{}]*(\[\n *[\d,\s]+\])?[^\[\]{}]*[\]}]", _on_one_line, text)


def to_hex(array: Array) -> dict[str, Any]:
    """Write a floating-point array as its dtype, its shape, and the bits of its values, most significant digit first.

    Examples
    --------
    >>> to_hex(np.float32([1, -2]))
    {'dtype': 'float32', 'shape': [2], 'bits': '3f800000 c0000000'}
    """
    digits = 2 * array.dtype.itemsize
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").ravel().tolist()
    bits = " ".join(f"{word:0{digits}x}" for word in words)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bits": bits}


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
    """Return the new running statistic (S4). It may be in the range of its dtype where the batch's is not (S10)."""
    if case.momentum == 1:
        return old
    wide = statistics_dtype(case.x)
    with np.errstate(over="ignore"):
        new = case.momentum * old.astype(np.float64) + (1 - case.momentum) * batch.astype(np.float64)
        return np.asarray(new.astype(wide))
