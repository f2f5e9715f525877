"""A picture of a model's statistics: a box for each batch norm, layer after layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.inspection.channels import channels_of
from polybn.lenet import pictures

if TYPE_CHECKING:
    from polybn.inspection.findings import Finding
    from polybn.lenet.pictures import Target
    from polybn.model_files import Model

MOST_NAMES = 40
"""The largest number of layers whose names are shown."""
PANELS = ("variance", "|mean| / deviation", "|gamma|")
COLORS = {"error": "tab:red", "warning": "tab:orange"}


def draw(model: Model, findings: list[Finding], target: Target) -> None:
    """Draw three panels: variance, distance of the mean from 0 in deviations, and size of gamma, by layer.

    Parameters
    ----------
    model : Model
    findings : list of Finding
        Layers with errors are red, those with warnings orange.
    target : path or binary file
        ``.png``, ``.svg`` or ``.pdf``.
    """
    known = [c for c in map(channels_of, model.norms) if c is not None and c.mean.size]
    worst = {finding.norm: finding.level for finding in reversed(findings)}
    colors = [COLORS.get(worst.get(c.name, ""), "tab:blue") for c in known]
    figure = pictures.new_figure(figsize=(min(4 + 0.3 * len(known), 16), 8), layout="constrained")
    columns = ([c.var for c in known], [c.ratio for c in known], [np.abs(c.gamma) for c in known])
    for number, (title, values) in enumerate(zip(PANELS, columns, strict=True), 1):
        axes = figure.add_subplot(3, 1, number)
        axes.set_title(title, loc="left")
        _boxes(axes, values, colors)
        if number == 3 and len(known) <= MOST_NAMES:
            axes.set_xticks(range(1, len(known) + 1), [c.name for c in known], rotation=90)
        else:
            axes.set_xticks([])
    pictures.save(figure, target)


def _boxes(axes: Any, values: list[Any], colors: list[str]) -> None:
    """Draw the range of values as a line and the middle half as a box; a log axis shows only positive values."""
    axes.set_yscale("log")
    for place, (column, color) in enumerate(zip(values, colors, strict=True), 1):
        shown = column[np.isfinite(column) & (column > 0)]
        if shown.size:
            low, q1, middle, q3, high = np.quantile(shown, (0, 0.25, 0.5, 0.75, 1))
            axes.vlines(place, low, high, color=color, linewidth=1)
            axes.vlines(place, q1, q3, color=color, linewidth=5, alpha=0.6)
            axes.plot([place], [middle], "_", color="black")
