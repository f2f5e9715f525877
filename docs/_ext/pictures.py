"""The pictures of the documentation, drawn from the records in docs/results when it is built.

Each picture is drawn twice, for light and for dark pages, on a transparent ground and narrow enough for a phone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from docs._ext import bench, dask_scaling
from polybn.bench.pictures import growth, roofline
from polybn.conformance.peers import short

RESULTS = Path(__file__).parents[1] / "results"
WIDTH = 5.4  # inches of 72 points: letters of 9 points stay readable on a screen that is 390 pixels wide


class Theme(NamedTuple):
    """The colours for light or for dark pages: Okabe and Ito's hues, distinct for people with any colour vision."""

    name: str
    ink: str
    faint: str
    colours: tuple[str, ...]


LIGHT = Theme("light", "#1f2328", "#9aa1a9", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07A00"))
DARK = Theme("dark", "#d7dade", "#7d858f", ("#56B4E9", "#FF8A3D", "#2FC89B", "#E59AC6", "#F0C04A"))


def peers(theme: Theme) -> Figure:
    """Draw each library's largest error of y, family by family, over PolyBN's on NumPy."""
    record = _load("peers.json")
    rows = [
        (short(p["name"]), errors)
        for p in record["peers"]
        for layout, errors in p["errors"].items()
        if "C, H" in layout
    ]
    families = list(rows[0][1])
    own = next(errors for name, errors in rows if name == "PolyBN, numpy")
    height = math.ceil(len(rows) / 3)
    figure = Figure(figsize=(WIDTH, 1.4 * height + 0.9), layout="constrained")
    panels = figure.subplots(height, 3, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes, (name, errors) in zip(panels, rows, strict=False):
        _errors(axes, list(own.values()), theme.faint, "-")
        _errors(
            axes, [errors[family] for family in families], theme.colours[0 if name.startswith("PolyBN") else 1], "o"
        )
        axes.set_title(name, fontsize=8, loc="left")
        axes.set_xticks(range(len(families)), families, rotation=90)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    return figure


def disagreement(theme: Theme) -> Figure:
    """Draw each library's result for one wave over the exact result."""
    record = _load("disagreement.json")
    exact, rows = record["exact"], [row for row in record["libraries"] if row["y"]]
    height = math.ceil(len(rows) / 2)
    figure = Figure(figsize=(WIDTH, 1.35 * height + 0.4), layout="constrained")
    panels = figure.subplots(height, 2, sharex=True, squeeze=False).ravel().tolist()
    for axes, row in zip(panels, rows, strict=False):
        axes.plot(exact, color=theme.faint, linewidth=3)
        axes.plot([float(v) for v in row["y"]], ".", markersize=3, color=theme.colours[1])
        axes.set_title(f"{short(row['name'])}: {said(row['error'])}", fontsize=8, loc="left")
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    return figure


def curves(theme: Theme) -> Figure:
    """Draw LeNet's learning curves with and without batch norm, and the curves that the notebook of 2018 printed."""
    runs = {"with": _lines("lenet-numpy-spec"), "without": _lines("lenet-numpy-none")}
    runs |= {f"2018, {name}": epochs for name, epochs in _load("notebook-2018.json")["runs"].items()}
    fields = {"loss": "training loss (nats)", "train_accuracy": "training accuracy", "test_accuracy": "test accuracy"}
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    for axes, (field, title) in zip(figure.subplots(3, 1, sharex=True), fields.items(), strict=True):
        for (name, epochs), colour, style in zip(runs.items(), theme.colours, ("-", "--", ":", "-."), strict=False):
            axes.plot(
                [e["epoch"] for e in epochs], [e[field] for e in epochs], style, marker=".", color=colour, label=name
            )
        axes.set_title(title, fontsize=9, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if field != "loss":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("epoch")
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def disagreement_table() -> str:
    """List the libraries in the picture of the wave, with versions and errors, and the libraries that could not run."""
    record = _load("disagreement.json")
    lines = ["| library | version | largest error of y |", "| --- | --- | --- |"]
    lines += [f"| {r['name']} | {r['version']} | {said(r['error'])} |" for r in record["libraries"] if r["y"]]
    absent = [row["name"] for row in record["libraries"] if not row["y"]]
    missing = f" Not installed on that day: {', '.join(absent)}." if absent else ""
    return "\n".join([*lines, "", f"Recorded {record['date']}.{missing}"]) + "\n"


def runs_table() -> str:
    """List the recorded trainings of LeNet, ``lenet-BACKEND-NORM.jsonl``, and the notebook's."""
    words = {"spec": "PolyBN's", "native": "the library's own", "none": "none"}
    runs = {}
    for path in sorted(RESULTS.glob("lenet-*.jsonl"), key=lambda path: (path.stem.endswith("none"), path.stem)):
        _, backend, norm = path.stem.split("-")
        runs[f"{backend} | {words[norm]}"] = _lines(path.stem)
    runs |= {f"the notebook of 2018 | {name}": epochs for name, epochs in _load("notebook-2018.json")["runs"].items()}
    lines = [
        "| on | batch norm | loss, epoch 1 | loss, epoch 10 | train acc | test acc |",
        "| --- | --- " + "| ---: " * 4 + "|",
    ]
    for name, (first, *_, last) in runs.items():
        figures = [f"{first['loss']:.4f}", f"{last['loss']:.4f}"]
        figures += [f"{last[field]:.3f}" for field in ("train_accuracy", "test_accuracy")]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "peers": peers,
    "disagreement": disagreement,
    "curves": curves,
    "dask-scaling": dask_scaling.picture,
    "roofline": lambda _: bench.picture(roofline),
    "growth": lambda _: bench.picture(growth),
}


def draw(folder: Path) -> None:
    """Draw every picture for every theme, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in (LIGHT, DARK):
        style: dict[Any, Any] = {
            "text.color": theme.ink, "axes.edgecolor": theme.faint, "axes.labelcolor": theme.ink,
            "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.titlecolor": theme.ink,
            "axes.facecolor": "none", "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "grid.color": theme.faint, "grid.alpha": 0.3, "font.size": 8.5, "svg.hashsalt": "polybn",
        }  # fmt: skip
        with mpl.rc_context(style):
            for name, make in PICTURES.items():
                make(theme).savefig(folder / f"{name}-{theme.name}.svg", metadata={"Date": None})


def said(error: float | str) -> str:
    """Format an error with one digit, as ``"nan"`` or as ``"0"``."""
    return "nan" if math.isnan(float(error)) else "0" if float(error) == 0 else f"{float(error):.0e}"


def _errors(axes: Axes, errors: Sequence[float | str], colour: str, marker: str) -> None:
    """Plot errors on a scale from "exact" at the bottom to "not a number" at the top."""
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 1e4)
    axes.yaxis.set_major_locator(FixedLocator([1e-8, 1e-4, 1, 1e3]))
    axes.set_yticks([1e-8, 1e-4, 1, 1e3], ["exact", "1e-4", "1", "nan"])
    axes.yaxis.set_minor_locator(NullLocator())
    heights = [_height(error) for error in errors]
    axes.plot(heights, marker, color=colour, markersize=4, linewidth=2)


def _height(error: float | str) -> float:
    if isinstance(error, str) or math.isnan(error):
        return 1e3
    return max(error, 1e-8)


def _load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _lines(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
