"""Learning curves as pictures, checked by their pixels."""

from __future__ import annotations

import io
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from polybn.lenet import curves
from polybn.lenet.runs import Epoch

Picture = NDArray[np.int64]


def history(epochs: int, rate: float = 1.0) -> list[Epoch]:
    """Return a run whose loss falls and whose accuracies rise."""
    fallen = [math.exp(-rate * epoch / 4) for epoch in range(1, epochs + 1)]
    return [Epoch(i, 2 * f, 1 - f / 2, 0.9 - f / 2, 1.5) for i, f in enumerate(fallen, 1)]


class Shot(NamedTuple):
    """The pixels of a picture, and its figure."""

    picture: Picture
    figure: Figure

    def pixels(self, index: int, panel: int) -> tuple[Picture, Picture]:
        """Return rows and columns of the pixels in one of the three panels that have exactly the colour of a run."""
        box = self.figure.axes[panel].get_window_extent()
        top, bottom = (len(self.picture) - round(side) for side in (box.y1, box.y0))
        part = self.picture[top:bottom, round(box.x0) : round(box.x1)]
        colour = [int(curves.COLOURS[index][i : i + 2], 16) for i in (1, 3, 5)]
        rows, columns = np.nonzero((part == colour).all(axis=-1))
        return rows, columns


Camera = Callable[[dict[str, list[Epoch]]], Shot]


@pytest.fixture
def shoot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Camera:
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    def draw(runs: dict[str, list[Epoch]]) -> Shot:
        curves.draw(runs, tmp_path / "c.png")
        return Shot(np.rint(imread(tmp_path / "c.png")[..., :3] * 255).astype(np.int64), figures[-1])

    monkeypatch.setattr(Figure, "savefig", savefig)
    return draw


def test_the_file_is_a_whole_png(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    curves.draw({"a": history(3)}, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(struct.pack(">I", 0) + b"IEND" + bytes.fromhex("ae426082"))
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        curves.draw({"a": history(3)}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failure_half_way_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    curves.draw({"a": history(3)}, path)
    before = path.read_bytes()

    def broken(figure: Figure, target: Any, **options: Any) -> None:
        if isinstance(target, io.BytesIO):
            target.write(b"half a picture")
        else:
            Path(target).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        curves.draw({"a": history(4)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("runs", "rows"), [(1, 1), (4, 1), (5, 2), (30, 8)])
def test_the_size_leaves_room_for_every_name(shoot: Camera, runs: int, rows: int) -> None:
    picture = shoot({f"run {index}": history(3, 1 + index / 9) for index in range(runs)}).picture
    assert picture.shape == (480 + 30 * rows, 1440, 3)
    ink = (picture[490:] != 255).any(axis=(1, 2))  # the names, which must not be cut off at the bottom
    assert ink.any()
    assert not ink[-4:].any()


def test_each_panel_shows_each_run_and_its_direction(shoot: Camera) -> None:
    """Loss falls to the right, accuracies rise; the faster run has less loss and more accuracy."""
    shot = shoot({"slow": history(6, 0.5), "fast": history(6, 2)})
    for panel, falls in enumerate((True, False, False)):
        means = []
        for index in range(2):
            rows, columns = shot.pixels(index, panel)
            assert len(rows) > 200
            first, last = rows[columns < columns.min() + 5].mean(), rows[columns > columns.max() - 5].mean()
            assert (last > first) == falls
            means.append(rows[abs(columns - np.median(columns)) < 20].mean())
        assert (means[1] > means[0]) == falls


def test_unequal_lengths_end_where_they_end(shoot: Camera) -> None:
    """Epochs have equal distances: a run of half the length ends half way."""
    shot = shoot({"long": history(9), "short": history(5, 2), "one": history(1, 3)})
    for panel in range(3):
        columns = [shot.pixels(index, panel)[1] for index in range(3)]
        dot = np.ptp(columns[2])
        assert 3 <= dot <= 10
        assert abs(columns[2].min() - columns[0].min()) <= 1
        last, shorter = (column.max() - column.min() - dot for column in columns[:2])
        assert abs(shorter - last / 2) <= 2


def test_more_runs_than_colours_differ_in_their_lines(shoot: Camera) -> None:
    """The eighth run has the colour of the first, but is dashed, so that it has fewer pixels."""
    flat = [Epoch(i, 1.0, 0.5, 0.5, 1.0) for i in range(1, 9)]
    others = {str(index): [epoch._replace(loss=9.0 + index) for epoch in flat] for index in range(1, 7)}
    full, dashed = (
        len(shoot(runs).pixels(0, 0)[0]) for runs in ({"0": flat, **others}, {"0": flat[:1], **others, "7": flat})
    )
    assert 0.3 < dashed / full < 0.9


@pytest.mark.parametrize("name", ["_hidden", "$x_1$ and $", "a\\b%c", "runs/numpy-spec-0", "é"])
def test_names_are_shown_as_they_are(shoot: Camera, name: str) -> None:
    texts = shoot({name: history(2), "other": history(2)}).figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == [name, "other"]
    assert not any(text.get_parse_math() for text in texts)


def test_ticks_are_whole_epochs_and_true_percentages(shoot: Camera) -> None:
    shot = shoot({"a": [Epoch(i, 1.0, 0.5 + i / 20, 0.4 + i / 20, 1) for i in range(1, 6)]})  # ticks at 52.5% ...
    for axes in shot.figure.axes:
        assert all(label.get_text().isdigit() for label in axes.xaxis.get_ticklabels())
    for axes in shot.figure.axes[1:]:
        told = [float(label.get_text().removesuffix("%")) / 100 for label in axes.yaxis.get_ticklabels()]
        assert all(abs(a - b) < 1e-6 for a, b in zip(told, axes.yaxis.get_ticklocs(), strict=True))


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=f"need matplotlib: {sys.executable} -m pip install matplotlib$"):
        curves.draw({"a": history(2)}, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
