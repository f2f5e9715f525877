"""Facts as texts, for tables and comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.dialects.record import ABOVE_0

if TYPE_CHECKING:
    from collections.abc import Iterable

    from polybn.dialects.dialect import Dialect

LABELS = {
    "momentum_weighs": "momentum weighs the",
    "momentum": "momentum, if nothing is said",
    "momentum_word": "the word for momentum",
    "eps": "eps, if nothing is said",
    "eps_word": "the word for eps",
    "least_eps": "least eps",
    "running_variance": "running variance takes in the",
    "normalizes_by": "training normalizes by",
    "average": "running statistics",
    "stored": "stored",
    "initial_mean": "running mean before training",
    "initial_var": "running variance before training",
    "dtype": "dtype of the state",
    "changes_in": "running statistics change in the",
    "single_value": "training on one value per channel",
    "empty": "running statistics after training on no values",
    "fix_gamma": "gamma, if nothing is said",
    "affine": "gamma and beta",
    "affine_words": "the words for gamma and beta",
    "axis": "channel axis",
    "any_axis": "other channel axes",
    "names": "arrays",
    "remark": "remark",
}
"""A description of each fact, by the name of its field."""
MAIN = ("momentum_weighs", "momentum", "eps", "running_variance", "average", "single_value", "axis")
"""The facts in the table of all dialects."""
HEADINGS = ("dialect", "momentum weighs", "momentum", "eps", "running variance", "average", "m = 1", "axis")
"""The columns of the table of all dialects."""
_SAID: dict[tuple[str, Any], str] = {
    ("momentum_weighs", "old"): "old value",
    ("momentum_weighs", "new"): "new value",
    ("momentum", None): "must be said",
    ("least_eps", ABOVE_0): "above 0",
    ("normalizes_by", "batch"): "the statistics of the batch",
    ("normalizes_by", "running"): "the running statistics, after their update",
    ("average", "plain"): "an average that begins before training",
    ("average", "first"): "an average that begins with the first batch",
    ("average", "debiased"): "an average of the batches alone, debiased",
    ("average", "debiased from 1"): "debiased, though the variance begins at 1",
    ("stored", "variance"): "mean and variance",
    ("stored", "inverse root"): "mean and 1 / sqrt(variance + eps)",
    ("stored", "sums"): "weighted sums and their divisor",
    ("dtype", "layer"): "as the layer is made",
    ("dtype", "input"): "the input's",
    ("changes_in", "forward"): "forward pass",
    ("changes_in", "backward"): "backward pass",
    ("single_value", "beta"): "returns beta",
    ("single_value", "error"): "raises an error",
    ("single_value", "nan"): "makes the state NaN",
    ("fix_gamma", True): "taken for 1",
    ("fix_gamma", False): "taken as it is",
    ("affine", "together"): "both or none",
    ("affine", "apart"): "each for itself",
    ("affine", "always"): "always there",
    ("any_axis", True): "may be chosen",
    ("any_axis", False): "none",
}
_SHORT: dict[tuple[str, Any], str] = {
    ("momentum_weighs", "old"): "old",
    ("momentum_weighs", "new"): "new",
    ("average", "plain"): "plain",
    ("average", "first"): "from first batch",
    ("average", "debiased"): "debiased",
    ("average", "debiased from 1"): "debiased, wrongly",
    ("single_value", "beta"): "beta",
    ("single_value", "error"): "error",
    ("single_value", "nan"): "NaN",
}


def say(dialect: Dialect, fact: str) -> str:
    """Return a fact as a text."""
    value = getattr(dialect, fact)
    if fact == "names":
        return ", ".join(name if name == role else f"{name} for {role}" for role, name in value.items())
    if fact == "affine_words":
        return ", ".join(dict.fromkeys(value)) or "none"
    return _SAID.get((fact, value)) or _plain(value)


def row(dialect: Dialect) -> tuple[str, ...]:
    """Return the main facts of a dialect, in the order of :data:`HEADINGS`."""
    cells = (_SHORT.get((fact, getattr(dialect, fact))) or say(dialect, fact) for fact in MAIN)
    return (dialect.name, *cells)


def differing(dialects: Iterable[Dialect]) -> list[str]:
    """Return the facts in which the dialects differ."""
    chosen = list(dialects)
    return [fact for fact in LABELS if len({say(dialect, fact) for dialect in chosen}) > 1]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
