"""Folders of images, read by Pillow in groups of files, each image as rows of pixels."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from polybn.lenet.errors import DataIntegrityError
from polybn.statistics.parts import LIMIT, Array, LeftOut, Part

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm", ".jp2"}
)
GROUP = 64
"""The number of files in a part."""


def parts_of(paths: list[Path], mode: str | None) -> list[Part]:
    """Group image files; all must have the number of channels of the first."""
    channels = _first_channels(paths, mode)
    groups = [paths[low : low + GROUP] for low in range(0, len(paths), GROUP)]
    return [
        Part(f"{group[0]}", sum(path.stat().st_size for path in group), partial(_read, group, mode, channels))
        for group in groups
    ]


def _first_channels(paths: list[Path], mode: str | None) -> int:
    """Return the number of channels of the first image that can be read."""
    reasons = []
    for path in paths:
        try:
            return int(_pixels(path, mode).shape[1])
        except ImportError:
            raise
        except Exception as error:  # a decoder of damaged bytes may raise anything
            reasons.append(f"{path}: {error}")
    raise DataIntegrityError(f"polybn stats: one file must be an image that can be read; got none ({reasons[0]})")


def _read(paths: list[Path], mode: str | None, channels: int) -> Iterator[Array | LeftOut]:
    waiting = list[Array]()
    for path in paths:
        try:
            pixels = _pixels(path, mode)
        except Exception as error:  # a decoder of damaged bytes may raise anything
            yield LeftOut(f"{path}", f"{error}")
            continue
        if pixels.shape[1] != channels:
            words = f"it has {pixels.shape[1]} channels, the first image {channels} (--mode RGB brings all to three)"
            yield LeftOut(f"{path}", words)
            continue
        if sum(one.nbytes for one in waiting) > LIMIT // 4:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield np.concatenate(waiting)


def _pixels(path: Path, mode: str | None) -> Array:
    """Decode an image to shape ``(pixels, channels)``; a palette becomes its colours."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"polybn stats: images need Pillow: {sys.executable} -m pip install pillow") from error
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # about unusual metadata, on which no pixel depends
        natural = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB", "PA": "RGBA"}
        wanted = mode or natural.get(image.mode, image.mode)
        pixels: Array = np.asarray(image if image.mode == wanted else image.convert(wanted))
    return pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
