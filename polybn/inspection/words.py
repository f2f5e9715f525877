"""The findings of a model in the lines that a person reads: the one useful sentence first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.inspection.channels import channels_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.inspection.findings import Finding
    from polybn.model_files import Model, Norm

HEADINGS = ("batch norm", "channels", "mean", "variance", "gamma", "beta", "eps", "")
"""The columns of the table."""
SHOWN = 3
"""How many batch norms with the same finding are told one by one."""


def headline(name: str, model: Model, findings: list[Finding]) -> str:
    """Return the one sentence that the model's author needs."""
    if not model.norms:
        return f"{name} ({model.format}, {_count(model.tensors, 'array')}) holds no batch norm."
    what = f"{name} ({model.format}): {_count(len(model.norms), 'batch norm')} with {_count(model.channels, 'channel')}"
    worst = [finding for finding in findings if finding.level == findings[0].level]
    if not findings or worst[0].level == "note":
        return f"{what}, nothing wrong with {'them' if len(model.norms) > 1 else 'it'}."
    layers = list(dict.fromkeys(finding.norm for finding in worst))
    verb = {"error": ("is broken", "are broken"), "warning": ("needs a look", "need a look")}[worst[0].level]
    rest = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"{what}; {len(layers)} {verb[len(layers) > 1]}: {worst[0].kind} in {layers[0]}{rest}."


def table(model: Model, findings: list[Finding]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each batch norm, in the order of :data:`HEADINGS`."""
    levels = {finding.norm: finding.level for finding in reversed(findings)}
    for norm in model.norms:
        c = channels_of(norm)
        if c is None:
            yield (norm.name, "", *[""] * 5, "")
            continue
        ranges = (_range(values) for values in (c.mean, c.var, c.gamma, c.beta))
        eps = f"{c.eps:g}" if c.eps_known else "not said"
        yield (norm.name, f"{c.mean.size}", *ranges, eps, levels.get(norm.name, ""))


def lines(findings: list[Finding]) -> Iterator[str]:
    """Yield a line for each finding; of many of a kind the first ones, and how many more there are."""
    kinds = dict.fromkeys((finding.level, finding.kind) for finding in findings)
    for level, kind in kinds:
        alike = [finding for finding in findings if (finding.level, finding.kind) == (level, kind)]
        yield from (f"{level}: {finding.sentence}" for finding in alike[:SHOWN])
        if len(alike) > SHOWN:
            rest = alike[SHOWN:]
            yield f"{level}: {kind} in {len(rest)} more: {', '.join(f.norm for f in rest[:SHOWN])}" + (
                ", ..." if len(rest) > SHOWN else ""
            )


def to_plain(norm: Norm) -> dict[str, Any]:
    """Return a batch norm in JSON's types; NaN and infinity as words."""
    arrays = {name: _plain(array) for name, array in norm.state.items()}
    return {"name": norm.name, "dialect": norm.dialect, "options": dict(norm.options), "state": arrays}


def _plain(array: NDArray[Any]) -> Any:
    if array.ndim == 0:
        return array.item()
    return [value if np.isfinite(value) else str(value) for value in array.tolist()]


def _range(values: NDArray[np.float64]) -> str:
    if not values.size:
        return ""
    least, most = values.min(), values.max()
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
