"""Draw images with their labels, and with the labels that a network gave them, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from polybn.lenet import pictures
from polybn.lenet.fashion_mnist import CLASSES
from polybn.spec import DomainError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from polybn.lenet.pictures import Target

Labels: TypeAlias = "NDArray[np.integer]"

_COLUMNS = 10
_SIDE = 28  # pixels of an image: the unit of the lengths below
_GAP = 7
_LINE = 6  # the distance between lines of text
_INCH = 40  # units per inch
_FONT = "DejaVu Sans"  # comes with matplotlib, and has the tick and the cross
_INK, _FAINT, _RIGHT, _WRONG = "#1a1a1a", "#6e6e6e", "#00698f", "#c43c00"


def draw(
    images: NDArray[np.uint8],
    labels: Labels,
    path: Target,
    *,
    title: str,
    predictions: Labels | None = None,
) -> None:
    """Draw a grid of images, ten to a row, each above the name of its class.

    Parameters
    ----------
    images : numpy.ndarray
        Shape ``(N, 1, 28, 28)``, uint8, N >= 1.
    labels : numpy.ndarray
        Shape ``(N,)``, integers: the true classes.
    path : path or binary file
        The picture to write, ``.png``, ``.svg`` or ``.pdf``; a binary file gets a PNG.
    title : str
        One line above the grid.
    predictions : numpy.ndarray, optional
        Shape ``(N,)``, integers: the classes that a network predicted. Then each image gets a tick or a cross, with
        both names where they differ, and a subtitle counts the right ones.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    DomainError
        If a label or a prediction is not a class, or the picture has another suffix.
    ImportError
        If matplotlib is not installed.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import io
    >>> from polybn import fashion_mnist
    >>> data, file = fashion_mnist.load("sample"), io.BytesIO()
    >>> draw(data.test_images[:20], data.test_labels[:20], file, title="Fashion-MNIST")
    >>> file.getvalue()[1:4]
    b'PNG'
    """
    _check(images, labels, predictions)
    pictures.check_target(path)
    figure = _figure(images, labels, title, predictions)
    pictures.save(figure, path, dpi=160, bbox_inches="tight", pad_inches=0.15)


def _check(images: NDArray[np.uint8], labels: Labels, predictions: Labels | None) -> None:
    where = "polybn.contact_sheet.draw"
    if images.ndim != 4 or images.shape[1:] != (1, _SIDE, _SIDE) or not len(images):
        raise ShapeError(f"{where}: images must have shape (N, 1, 28, 28), N >= 1; got {images.shape}")
    for name, indices in (("labels", labels), ("predictions", predictions)):
        if indices is not None and indices.shape != (len(images),):
            raise ShapeError(f"{where}: {name} must have shape ({len(images)},); got {indices.shape} (one per image)")
        if indices is not None and not set(indices.tolist()) <= set(range(len(CLASSES))):
            raise DomainError(
                f"{where}: {name} must lie in 0 to {len(CLASSES) - 1}; got {indices.min()} to {indices.max()}"
            )


def _figure(images: NDArray[np.uint8], labels: Labels, title: str, predictions: Labels | None) -> Figure:
    columns, row = min(_COLUMNS, len(images)), _SIDE + _GAP + _LINE * (1 if predictions is None else 2)
    corners = [(place % columns * (_SIDE + _GAP), place // columns * row) for place in range(len(images))]
    sheet = np.zeros((corners[-1][1] + _SIDE, columns * (_SIDE + _GAP) - _GAP), np.uint8)
    for image, (left, top) in zip(images[:, 0], corners, strict=True):
        sheet[top : top + _SIDE, left : left + _SIDE] = image
    height, width = sheet.shape
    figure = pictures.new_figure(figsize=(width / _INCH, height / _INCH), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest", extent=(0, width, height, 0))
    _write_title(axes, title, labels, predictions)
    for place, (left, top) in enumerate(corners):
        _write_caption(axes, left, top, int(labels[place]), None if predictions is None else int(predictions[place]))
    return figure


def _write_title(axes: Axes, title: str, labels: Labels, predictions: Labels | None) -> None:
    bottom = -_LINE
    if predictions is not None:
        score = f"{np.count_nonzero(labels == predictions):,} of {len(labels):,} right"
        axes.text(0, bottom, score, family=_FONT, fontsize=9, color=_FAINT)
        bottom -= 9
    axes.text(0, bottom, title, family=_FONT, fontsize=13, color=_INK, weight="bold")


def _write_caption(axes: Axes, left: int, top: int, label: int, prediction: int | None) -> None:
    from matplotlib.patches import Rectangle

    def write(line: int, text: str, color: str, weight: str = "normal") -> None:
        x, y = left + _SIDE / 2, top + _SIDE + 2 + line * _LINE
        axes.text(x, y, text, family=_FONT, fontsize=7, color=color, weight=weight, ha="center", va="top")

    if prediction is None:
        write(0, CLASSES[label], _INK)
    elif prediction == label:
        write(0, f"✓ {CLASSES[label]}", _RIGHT)
    else:
        write(0, f"✗ {CLASSES[prediction]}", _WRONG, "bold")
        write(1, f"is {CLASSES[label]}", _FAINT)
        side = _SIDE + 2
        axes.add_patch(Rectangle((left - 1, top - 1), side, side, fill=False, edgecolor=_WRONG, clip_on=False))
