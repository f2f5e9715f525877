"""Arrays in Zarr stores, read chunk by chunk."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polybn.lenet.errors import DataIntegrityError
from polybn.statistics.arrays import pick
from polybn.statistics.parts import LIMIT, Array, Layout, NotFinite, Part, channels_last, check_dtype, noted

MARKS = ("zarr.json", ".zarray", ".zgroup")
"""The files by which a folder is recognized as a store."""


def is_store(path: Path) -> bool:
    """Return whether a folder is a store."""
    return any((path / mark).is_file() for mark in MARKS)


def parts_of(path: Path, layout: Layout) -> list[Part]:
    """Return the parts of an array in a store: one chunk each, or several small ones."""
    try:
        root = _zarr().open(path, mode="r")
        names = [] if hasattr(root, "chunks") else sorted(name for name, _ in root.arrays())
    except ImportError:
        raise
    except Exception as error:  # the exception depends on the version of Zarr
        raise DataIntegrityError(f"polybn stats: {path} must be a Zarr store; got {error}") from error
    name = None if hasattr(root, "chunks") else pick(f"{path}", names, layout.array)
    array = root if name is None else root[name]
    check_dtype(f"{path}", np.dtype(array.dtype))
    axis = layout.channel_axis(f"{path}", array.shape)
    steps = _steps(array, axis)
    found = []
    for index in _blocks(array.shape, steps):
        size = math.prod(part.stop - part.start for part in index) * array.dtype.itemsize
        words = ", ".join(f"{part.start}:{part.stop}" for part in index)
        found.append(Part(f"{path}[{words}]", size, partial(_read, path, name, index, axis), f"{array.dtype}"))
    return found


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"polybn stats: Zarr stores need zarr: {sys.executable} -m pip install zarr") from error
    return zarr


def _steps(array: Any, axis: int | None) -> list[int]:
    """Return the sizes of blocks: whole chunks, all channels, and several chunks along the first axis if they fit."""
    chunks = getattr(array, "shards", None) or array.chunks
    steps = [array.shape[k] if k == axis else min(step, array.shape[k]) for k, step in enumerate(chunks)]
    size = math.prod(steps) * array.dtype.itemsize
    first = next((k for k in range(len(steps)) if k != axis), None)
    if first is not None and size:
        steps[first] *= max(1, LIMIT // size)
    return steps


def _blocks(shape: tuple[int, ...], steps: list[int]) -> Iterator[tuple[slice, ...]]:
    ranges = [range(0, size, max(step, 1)) for size, step in zip(shape, steps, strict=True)]
    for lows in itertools.product(*ranges):
        ends = zip(lows, steps, shape, strict=True)
        yield tuple(slice(low, min(low + step, size)) for low, step, size in ends)


def _read(path: Path, name: str | None, index: tuple[slice, ...], axis: int | None) -> Iterator[Array | NotFinite]:
    root = _zarr().open(path, mode="r")
    values = np.asarray((root if name is None else root[name])[index])
    yield from noted(f"{path}", channels_last(values, axis))
