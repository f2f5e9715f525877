"""A picture of a data set: a histogram for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.lenet import pictures

if TYPE_CHECKING:
    from polybn.lenet.pictures import Target
    from polybn.statistics.accumulator import Statistics
    from polybn.statistics.histogram import Histogram

MOST_CHANNELS = 16
"""The largest number of panels that stay readable."""
COLOURS = {1: ("#555555",), 3: ("#c0392b", "#27803c", "#2c5fb3")}


def draw(statistics: Statistics, histogram: Histogram, target: Target, *, scale: float = 1.0) -> None:
    """Draw the histograms of the first channels, each with its mean and one standard deviation on both sides."""
    channels = min(len(statistics.count), MOST_CHANNELS)
    figure = pictures.new_figure(figsize=(7, 0.6 + 1.5 * channels), layout="constrained")
    panels = np.atleast_1d(figure.subplots(channels, 1, sharex=True))
    edges, colours = histogram.edges() / scale, COLOURS.get(channels, ("#2c5fb3",))
    for c, panel in enumerate(panels):
        colour, mean, std = colours[c % len(colours)], statistics.mean[c] / scale, statistics.std()[c] / scale
        counts = histogram.counts[c] if histogram.counts.size else np.zeros(len(edges) - 1)
        panel.stairs(counts, edges, fill=True, color=colour, alpha=0.75)
        panel.axvline(mean, color="black", linewidth=1)
        panel.axvspan(mean - std, mean + std, color="black", alpha=0.08, zorder=0)
        panel.set_ylabel(f"channel {c}")
        panel.set_title(f"mean {mean:.6g}, standard deviation {std:.6g}", fontsize=9, loc="right")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("value")
    pictures.save(figure, target)
