"""Pictures of the data: their texts are right, and nothing covers anything else."""

from __future__ import annotations

import io
import itertools
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from numpy.typing import NDArray

from polybn.lenet import contact_sheet, fashion_mnist
from polybn.lenet.contact_sheet import draw
from polybn.lenet.fashion_mnist import CLASSES
from polybn.spec import DomainError, ShapeError

DATA = fashion_mnist.load("sample")
IMAGES, LABELS = DATA.test_images, DATA.test_labels


def texts(images: NDArray[np.uint8], labels: NDArray[np.uint8], predictions: NDArray[np.uint8] | None) -> list[str]:
    figure = contact_sheet._figure(images, labels, "Title", predictions)
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_image_is_above_the_name_of_its_class() -> None:
    assert texts(IMAGES[:23], LABELS[:23], None) == ["Title", *(CLASSES[label] for label in LABELS[:23])]


def test_right_and_wrong_differ_in_words() -> None:
    labels = np.array([9, 2, 1], np.uint8)
    predictions = np.array([9, 6, 1], np.uint8)
    written = texts(IMAGES[:3], labels, predictions)
    assert written == ["2 of 3 right", "Title", "✓ Ankle boot", "✗ Shirt", "is Pullover", "✓ Trouser"]


def test_the_pixels_are_the_images() -> None:
    """Every pixel of every image is in its place, as four by four pixels of the picture, to one level of grey."""
    figure = contact_sheet._figure(IMAGES[:12], LABELS[:12], "Title", None)
    figure.set_dpi(4 * 40)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    picture = np.asarray(canvas.buffer_rgba(), np.int64)[..., :3]  # type: ignore[no-untyped-call]
    for place, image in enumerate(IMAGES[:12, 0]):
        left, top = place % 10 * 35 * 4, place // 10 * 41 * 4
        tile = picture[top : top + 112, left : left + 112]
        assert abs(tile - (255 - image.repeat(4, axis=0).repeat(4, axis=1)[..., None])).max() <= 1


@pytest.mark.parametrize("count", [1, 3, 10, 34])
@pytest.mark.parametrize("predicted", [False, True])
def test_nothing_covers_anything_else(count: int, predicted: bool) -> None:
    """Texts and images do not overlap, even if each name is the longest one, and wrong."""
    labels = np.full(count, CLASSES.index("Ankle boot"), np.uint8)
    predictions = np.full(count, CLASSES.index("T-shirt/top"), np.uint8) if predicted else None
    figure = contact_sheet._figure(IMAGES[:count], labels, "Title", predictions)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    to_screen = figure.axes[0].transData
    columns, pitch = min(10, count), 35
    row = 41 if predictions is None else 47
    tiles = [to_screen.transform([[x, y + 28], [x + 28, y]]).ravel() for x, y in
             ((place % columns * pitch, place // columns * row) for place in range(count))]  # fmt: skip
    boxes = [text.get_window_extent().extents for text in figure.axes[0].texts] + tiles
    assert len(boxes) == count * (3 if predicted else 2) + (2 if predicted else 1)
    for (left, low, right, high), (left2, low2, right2, high2) in itertools.combinations(boxes, 2):
        assert right <= left2 or right2 <= left or high <= low2 or high2 <= low


def test_a_long_title_is_not_cut_off() -> None:
    def width(title: str) -> int:
        file = io.BytesIO()
        draw(IMAGES[:1], LABELS[:1], file, title=title)
        return int(imread(io.BytesIO(file.getvalue())).shape[1])

    assert width("W" * 60) > 2 * width("W" * 20) > 2 * width("W")


@pytest.mark.parametrize(
    ("images", "labels", "predictions", "words"),
    [
        (IMAGES[:3, 0], LABELS[:3], None, r"images must have shape \(N, 1, 28, 28\), N >= 1; got \(3, 28, 28\)"),
        (IMAGES[:0], LABELS[:0], None, r"images must have shape .* got \(0, 1, 28, 28\)"),
        (IMAGES[:3], LABELS[:4], None, r"labels must have shape \(3,\); got \(4,\)"),
        (IMAGES[:3], LABELS[:3], LABELS[:2], r"predictions must have shape \(3,\); got \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], predictions: NDArray[np.uint8] | None, words: str
) -> None:
    with pytest.raises(ShapeError, match=words):
        draw(images, labels, io.BytesIO(), title="", predictions=predictions)


@pytest.mark.parametrize("index", [-1, 10])
def test_a_label_that_names_no_class(index: int) -> None:
    with pytest.raises(DomainError, match=f"predictions must lie in 0 to 9; got {min(index, 0)} to {max(index, 0)}"):
        draw(IMAGES[:2], LABELS[:2], io.BytesIO(), title="", predictions=np.array([0, index]))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=f"need matplotlib: {sys.executable} -m pip install matplotlib$"):
        draw(IMAGES[:2], LABELS[:2], io.BytesIO(), title="")
