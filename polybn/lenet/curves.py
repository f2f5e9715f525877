"""Learning curves of runs as a picture, to compare how fast they learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polybn.lenet import pictures

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from polybn.lenet.runs import Epoch

# Okabe and Ito's palette, which people with any colour vision can tell apart; line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
COLUMNS = 4


def draw(runs: Mapping[str, Sequence[Epoch]], path: str | os.PathLike[str]) -> None:
    """Draw training loss, training accuracy and test accuracy of runs, given by name, side by side."""
    pictures.check_target(path)
    legend_rows = math.ceil(len(runs) / COLUMNS)
    figure = pictures.new_figure(figsize=(12, 4 + 0.25 * legend_rows), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"loss": "training loss (nats)", "train_accuracy": "training accuracy", "test_accuracy": "test accuracy"}
    for axes, (field, title) in zip(panels, titles.items(), strict=True):
        lines = [_curve(axes, epochs, field, index) for index, epochs in enumerate(runs.values())]
        _label(axes, title, percent=field != "loss")
    panels[0].set_ylim(bottom=0)
    legend = figure.legend(lines, map(str, range(len(runs))), loc="outside lower left", ncols=COLUMNS, frameon=False)
    for text, name in zip(legend.get_texts(), runs, strict=True):
        text.set(text=name, parse_math=False)  # as a label, "_a" would be hidden and "$a$" typeset as mathematics
    pictures.save(figure, path)


def _label(axes: Axes, title: str, *, percent: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _curve(axes: Axes, epochs: Sequence[Epoch], field: str, index: int) -> Line2D:
    (line,) = axes.plot(
        [epoch.epoch for epoch in epochs],
        [getattr(epoch, field) for epoch in epochs],
        color=COLOURS[index % len(COLOURS)],
        linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
        marker="o",
        markersize=4,
    )
    return line
