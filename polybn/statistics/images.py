"""Folders of images, read in groups of files, each page as rows of pixels.

All images of a data set must have the channels and the type of values of the first one: bytes averaged with values of
16 bits would mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from polybn.lenet.errors import DataIntegrityError
from polybn.spec import DomainError
from polybn.statistics.pages import MODES, pages
from polybn.statistics.parts import LIMIT, Array, Kind, LeftOut, NotFinite, Part, noted

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm", ".jp2"}
)
GROUP = 64
"""The number of files in a part."""


def parts_of(paths: list[Path], mode: str | None, first: Kind | None = None) -> list[Part]:
    """Group image files; all must be of one kind, that of the first image if none is given."""
    if mode not in (None, *MODES):
        raise DomainError(
            f"polybn stats: --mode must be one of {', '.join(MODES)}; got {mode} (RGB has three channels, L one)"
        )
    kind = first or _first_kind(paths, mode)
    groups = [paths[low : low + GROUP] for low in range(0, len(paths), GROUP)]
    return [_part(group, mode, kind) for group in groups]


def _part(group: list[Path], mode: str | None, kind: Kind) -> Part:
    size = sum(path.stat().st_size for path in group)
    return Part(_name(group), size, partial(_read, group, mode, kind), kind.dtype, kind)


def _name(group: list[Path]) -> str:
    more = len(group) - 1
    return f"{group[0]} and {more} more" if more else f"{group[0]}"


def _first_kind(paths: list[Path], mode: str | None) -> Kind:
    """Return the kind of the first image that can be read."""
    reasons = []
    for path in paths:
        for page in pages(path, mode):
            if not isinstance(page, LeftOut):
                return _kind(page.pixels)
            reasons.append(": ".join(page))
    raise DataIntegrityError(f"polybn stats: one file must be an image that can be read; got none ({reasons[0]})")


def _kind(pixels: Array) -> Kind:
    return Kind(pixels.shape[1], pixels.dtype.name)


def _read(paths: list[Path], mode: str | None, kind: Kind) -> Iterator[Array | LeftOut | NotFinite]:
    waiting = list[Array]()
    for page in (page for path in paths for page in pages(path, mode)):
        if isinstance(page, LeftOut):
            yield page
            continue
        if reason := _unlike(_kind(page.pixels), kind):
            yield LeftOut(page.name, reason)
            continue
        for found in noted(page.name, page.pixels):
            if isinstance(found, NotFinite):
                yield found
        if sum(one.nbytes for one in waiting) > LIMIT // 4:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(page.pixels)
    if waiting:
        yield np.concatenate(waiting)


def _unlike(found: Kind, kind: Kind) -> str:
    """Say why an image does not belong to the others; an empty string if it does."""
    if found.dtype != kind.dtype:
        words = f"its values are {found.dtype}, those of the first image {kind.dtype}"
        return f"{words} (their ranges differ: measure the two sorts apart)"
    if found.channels != kind.channels:
        words = f"it has {found.channels} channels, the first image {kind.channels}"
        return words + (" (--mode RGB brings all to three)" if found.dtype == "uint8" else "")
    return ""
