"""From paths to statistics: find the parts, measure them in one process or several, and put them together in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polybn.lenet.errors import DataIntegrityError
from polybn.spec import ShapeError
from polybn.statistics import arrays, images, zarr_stores
from polybn.statistics.accumulator import Statistics
from polybn.statistics.histogram import Histogram
from polybn.statistics.parts import Layout, LeftOut, Part


class Measured(NamedTuple):
    """What was found in a data set, or in a part of it."""

    statistics: Statistics
    histogram: Histogram
    left_out: list[LeftOut]
    """What could not be read."""


def parts_of(path: Path, layout: Layout, mode: str | None) -> list[Part]:
    """Return the parts of a file, a folder or a store, in an order that the names decide."""
    if path.is_dir():
        return zarr_stores.parts_of(path, layout) if zarr_stores.is_store(path) else _in_folder(path, layout, mode)
    if path.exists() and not path.is_file():
        raise DataIntegrityError(f"polybn stats: {path} must be a file or a folder; got neither of them")
    found = arrays.parts_of(path, layout)
    return images.parts_of([path], mode) if found is None else found


def _in_folder(folder: Path, layout: Layout, mode: str | None) -> list[Part]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in images.SUFFIXES]
    found = [part for path in files if path.suffix in (".npy", ".npz") for part in arrays.parts_of(path, layout) or ()]
    if not pictures and not found:
        raise DataIntegrityError(
            f"polybn stats: {folder} must hold images, .npy or .npz files, or be a Zarr store; "
            f"got {len(files):,} other files"
        )
    return found + (images.parts_of(pictures, mode) if pictures else [])


def measure(
    parts: list[Part], *, workers: int = 0, histogram: bool = False, progress: Callable[[int], None] | None = None
) -> Measured:
    """Measure all parts; the result does not depend on the number of worker processes, to the bit.

    With 0 workers, this process reads. ``progress`` is told of the bytes of each part.
    """
    total = Measured(Statistics(axis=-1), Histogram(), [])
    work = partial(_measure_part, histogram=histogram)
    for part, found in zip(parts, _each(work, parts, workers), strict=True):
        try:
            total.statistics.merge(found.statistics)
        except ShapeError as error:  # it has other channels
            total.left_out.append(LeftOut(part.name, f"{error}"))
        else:
            total.histogram.merge(found.histogram)
            total.left_out.extend(found.left_out)
        if progress is not None:
            progress(part.size)
    return total


def _each(work: Callable[[Part], Measured], parts: list[Part], workers: int) -> Iterable[Measured]:
    return _in_processes(work, parts, min(workers, len(parts))) if workers else map(work, parts)


def _in_processes(work: Callable[[Part], Measured], parts: list[Part], workers: int) -> Iterator[Measured]:
    # New processes rather than forks: a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        yield from pool.map(work, parts)
    except BrokenProcessPool as error:
        raise OSError(
            "polybn stats: a worker process must not end before its work; one did (if memory ran out, ask for fewer "
            "--workers)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that the user has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure_part(part: Part, *, histogram: bool) -> Measured:
    """Measure a part, or leave it out as a whole."""
    found = Measured(Statistics(axis=-1), Histogram(), [])
    try:
        for values in part.read():
            if isinstance(values, LeftOut):
                found.left_out.append(values)
                continue
            wide = values.astype(np.float64) if values.dtype.kind == "f" else values
            found.statistics.update(wide)
            if histogram:
                found.histogram.update(wide)
    except (*arrays.DAMAGE, OSError) as error:
        return Measured(Statistics(axis=-1), Histogram(), [LeftOut(part.name, f"{error}")])
    return found
