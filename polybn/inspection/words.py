"""The findings of a model as lines of text, the most useful sentence first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.dialects import DIALECTS
from polybn.inspection.channels import channels_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.inspection.findings import Finding
    from polybn.model_files import Model, Norm

HEADINGS = ("batch norm", "channels", "mean", "variance", "gamma", "beta", "eps", "momentum", "")
"""The columns of the table."""
SHOWN = 3
"""The number of batch norms with the same finding that get a line each."""


def headline(name: str, model: Model, findings: list[Finding]) -> str:
    """Return the most useful sentence for the model's author."""
    worst = [finding for finding in findings if finding.level == findings[0].level]
    fine = not findings or worst[0].level == "note"
    if not model.norms:
        folded = "; if there was one, the exporter folded it into a convolution" if model.format == "ONNX" else ""
        whole = "" if fine else " that is whole"
        what = f"{name} ({model.format}, {count_of(model.tensors, 'array')}) holds no batch norm{whole}{folded}"
    else:
        size = f"{count_of(len(model.norms), 'batch norm')} with {count_of(model.channels, 'channel')}"
        what = f"{name} ({model.format}): {size}"
    if fine:
        right = f", nothing wrong with {'them' if len(model.norms) > 1 else 'it'}" if model.norms else ""
        return f"{what}{right}."
    layers = list(dict.fromkeys(finding.norm for finding in worst))
    verb = {"error": ("is broken", "are broken"), "warning": ("needs a look", "need a look")}[worst[0].level]
    return f"{what}; {len(layers)} {verb[len(layers) > 1]}: {_kinds(worst)}."


def _kinds(findings: list[Finding]) -> str:
    """Return the fault of most layers with their names, and then the other faults."""
    layers = dict[str, list[str]]()
    for finding in findings:
        layers.setdefault(finding.kind, [])
        if finding.norm not in layers[finding.kind]:
            layers[finding.kind].append(finding.norm)
    ranked = sorted(layers.items(), key=lambda item: -len(item[1]))
    said = [f"{kind} in {own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''}" for kind, own in ranked]
    return "; ".join(said[:2]) + (f"; and {len(said) - 2} other things" if len(said) > 2 else "")


def table(model: Model, findings: list[Finding]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each batch norm, in the order of :data:`HEADINGS`."""
    levels = {finding.norm: finding.level for finding in reversed(findings)}
    for norm in model.norms:
        c, dialect = channels_of(norm), DIALECTS[norm.dialect]
        ranges = [""] * 5
        if c is not None:
            ranges = [f"{c.mean.size}", *map(_range, (c.mean, c.var, c.gamma, c.beta))]
        if norm.unnamed is not None:
            ranges[3:] = ["not said"] * 2
        options = (_said(norm, word) for word in (dialect.eps_word, dialect.momentum_word))
        yield (norm.name, *ranges, *options, levels.get(norm.name, ""))


def _said(norm: Norm, word: str) -> str:
    """Return an option of a layer as its file has it, in the sense of the file's framework."""
    if word not in norm.options:
        return "not said"
    value = norm.options[word]
    return f"{value}" if value is None else f"{value:g}"  # of PyTorch's momentum, None says something


def lines(findings: list[Finding]) -> Iterator[str]:
    """Yield a line for each finding; if many are of one kind, the first ones and the number of the others."""
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
    """Return a batch norm in JSON's types, with NaN and infinity as text."""
    options, state = ({k: _plain(v) for k, v in values.items()} for values in (norm.options, norm.state))
    return {"name": norm.name, "dialect": norm.dialect, "options": options, "state": state}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return value if isinstance(value, bool) else int(value)
    return float(value) if isinstance(value, float | np.floating) and np.isfinite(value) else str(value)


def _range(values: NDArray[np.float64]) -> str:
    known = values[~np.isnan(values)]
    parts = [] if known.size == values.size else ["nan"]
    if known.size:
        least, most = known.min(), known.max()
        parts.insert(0, f"{least:.2g}" if least == most else f"{least:.2g}..{most:.2g}")
    return ", ".join(parts)


def count_of(number: int, word: str) -> str:
    """Return a number with a word in the right form."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
