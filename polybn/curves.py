"""Learning curves of runs, as a picture: how fast each one learns, on one look."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from polybn.checkpoints import write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from polybn.training import Epoch

# Okabe and Ito's palette, which people with any colour vision can tell apart; line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def draw(runs: Mapping[str, Sequence[Epoch]], path: str | os.PathLike[str]) -> None:
    """Draw training loss, training accuracy and test accuracy of several runs side by side.

    Parameters
    ----------
    runs : mapping of str to sequence of Epoch
        Finished epochs by the name to show.
    path : path
        The PNG to write; it is replaced as a whole.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError as error:
        raise ImportError('polybn: pictures need matplotlib: pip install "polybn[plot]"') from error

    figure = Figure(figsize=(12, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"loss": "training loss (nats)", "train_accuracy": "training accuracy", "test_accuracy": "test accuracy"}
    for axes, (field, title) in zip(panels, titles.items(), strict=True):
        for index, (name, epochs) in enumerate(runs.items()):
            _curve(axes, epochs, field, name, index)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if field != "loss":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    write_atomic(path, png.getvalue())


def _curve(axes: Axes, epochs: Sequence[Epoch], field: str, name: str, index: int) -> None:
    axes.plot(
        [epoch.epoch for epoch in epochs],
        [getattr(epoch, field) for epoch in epochs],
        color=COLOURS[index % len(COLOURS)],
        linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
        marker="o",
        markersize=4,
        label=name,
    )
