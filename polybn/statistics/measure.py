"""Measurement of data sets: find the parts, measure them in one process or several, and merge them in order."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polybn.interrupts import held
from polybn.lenet.errors import DataIntegrityError
from polybn.spec import ShapeError
from polybn.statistics import arrays, images, zarr_stores
from polybn.statistics.accumulator import DAMAGE, Statistics
from polybn.statistics.histogram import Histogram
from polybn.statistics.parts import Kind, Layout, LeftOut, NotFinite, Part

ARRAYS = (".npy", ".npz")
"""The endings by which files of arrays are found in a folder."""
IDX = re.compile(r"[-.]idx[2-9](-|\.|$)")
"""What names of IDX files contain, with the rank: ``train-images-idx3-ubyte.gz``. Rank 1 is that of labels."""


class Measured(NamedTuple):
    """The results for a data set, or for a part of one."""

    statistics: Statistics
    histogram: Histogram
    left_out: list[LeftOut]
    """The files, or ranges of files, that could not be read."""
    not_finite: dict[str, None]
    """The names of files with NaN or infinity, each once, in order."""


Work: TypeAlias = Callable[[Part], Measured]
Spread: TypeAlias = Callable[[Work, list[Part]], Iterable[Measured]]
"""A function that applies the work to all parts, perhaps in parallel, and returns the results in the order of parts."""


def gather(paths: list[Path], layout: Layout, mode: str | None) -> list[Part]:
    """Return the parts of a data set at several places; one that cannot be read is left out with the reason."""
    found = list[Part]()
    for path in paths:
        kind = next((part.images for part in found if part.images), None)
        try:
            found += parts_of(path, layout, mode, kind)
        except OSError as error:
            if len(paths) == 1 or isinstance(error, FileNotFoundError):  # a name that is mistyped
                raise
            found.append(_unread(path, f"{error}"))
    return found


def parts_of(path: Path, layout: Layout, mode: str | None, kind: Kind | None = None) -> list[Part]:
    """Return the parts of a file, a folder or a store, in the order of names; images must be of a kind, if given."""
    if path.is_dir():
        store = zarr_stores.is_store(path)
        return zarr_stores.parts_of(path, layout) if store else _in_folder(path, layout, mode, kind)
    if path.exists() and not path.is_file():
        raise DataIntegrityError(f"polybn stats: {path} must be a file or a folder; got neither of them")
    found = arrays.parts_of(path, layout)
    if found is None and path.suffix.lower() in ARRAYS:
        raise DataIntegrityError(_no_arrays(path))
    return images.parts_of([path], mode, kind) if found is None else found


def _in_folder(folder: Path, layout: Layout, mode: str | None, kind: Kind | None) -> list[Part]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in images.SUFFIXES]
    found = [p for path in files if _is_named_array(path) for p in _array_parts(path, layout)]
    if not pictures and not found:
        raise DataIntegrityError(
            f"polybn stats: {folder} must hold images, .npy, .npz or IDX files, or be a Zarr store; "
            f"got {len(files):,} other files"
        )
    return found + (images.parts_of(pictures, mode, kind) if pictures else [])


def _is_named_array(path: Path) -> bool:
    return path.suffix.lower() in ARRAYS or IDX.search(path.name.lower()) is not None


def _array_parts(path: Path, layout: Layout) -> list[Part]:
    """Return the parts of an array among others: one that is damaged is named, and the others are measured."""
    try:
        found = arrays.parts_of(path, layout)
    except OSError as error:
        return [_unread(path, f"{error}")]
    return [_unread(path, _no_arrays(path))] if found is None else found


def _no_arrays(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    what = f"its first bytes are others ({start!r})" if start else "it is empty"
    return f"polybn stats: {path} must be a file of arrays; {what}"


def _unread(path: Path, error: str) -> Part:
    """Return a part of which nothing can be read; the reason does not repeat the name, which stands before it."""
    reason = error.removeprefix("polybn stats: ").removeprefix(f"{path} ")
    return Part(f"{path}", path.stat().st_size, partial(_leave_out, f"{path}", reason))


def _leave_out(name: str, reason: str) -> Iterator[LeftOut]:
    yield LeftOut(name, reason)


def measure(
    parts: list[Part],
    spread: Spread = map,
    *,
    histogram: bool = False,
    start: Statistics | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Measure all parts and merge them in order; no bit of the result depends on the processes that read.

    ``spread`` distributes the parts to readers; ``start`` is added to; ``progress`` gets the number of bytes of each
    part.
    """
    total = Measured(start or Statistics(axis=-1), Histogram(), [], {})
    work = partial(_measure_part, histogram=histogram)
    for part, found in zip(parts, spread(work, parts), strict=True):
        try:
            total.statistics.merge(found.statistics)
        except ShapeError as error:  # the number of channels differs
            total.left_out.append(LeftOut(part.name, f"{error}"))
        else:
            total.histogram.merge(found.histogram)
            total.not_finite.update(found.not_finite)
        total.left_out.extend(found.left_out)
        if progress is not None:
            progress(part.size)
    return total


def in_processes(work: Work, parts: list[Part], *, workers: int) -> Iterator[Measured]:
    """Let worker processes on this machine read."""
    # New processes, because a fork of a process with threads may hang.
    number = max(1, min(workers, len(parts)))
    pool = ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        with held():  # in which all processes are started
            results = pool.map(work, parts)
        yield from results
    except BrokenProcessPool as error:
        raise OSError(
            "polybn stats: a worker process must not end before its work; one did (if memory ran out, ask for fewer "
            "--workers)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def on_cluster(work: Work, parts: list[Part], *, address: str) -> Iterator[Measured]:
    """Let the workers of a Dask cluster read; they must see the files under the same names.

    Other workers read the parts of a lost worker again.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ImportError(
            f"polybn stats: --scheduler needs Dask: {sys.executable} -m pip install 'dask[distributed]'"
        ) from error
    connect: Any = Client
    try:
        client = connect(address, timeout=10)
    except (OSError, ValueError) as error:
        raise OSError(
            f"polybn stats: --scheduler must be the address of a Dask scheduler that answers; got {address} ({error})"
        ) from error
    with client:
        try:
            for future in client.map(work, parts, pure=False):
                yield future.result()
        except KilledWorker as error:
            raise OSError(
                f"polybn stats: a part must not bring workers down; one did, again and again ({error})"
            ) from error


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that the user started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure_part(part: Part, *, histogram: bool) -> Measured:
    """Measure a part, or skip it as a whole."""
    found = Measured(Statistics(axis=-1), Histogram(), [], {})
    try:
        for values in part.read():
            if isinstance(values, LeftOut):
                found.left_out.append(values)
                continue
            if isinstance(values, NotFinite):
                found.not_finite[values.name] = None
                continue
            wide = values.astype(np.float64) if values.dtype.kind == "f" else values
            found.statistics.update(wide)
            if histogram:
                found.histogram.update(wide)
    except DAMAGE as error:
        return Measured(Statistics(axis=-1), Histogram(), [LeftOut(part.name, f"{error}")], {})
    return found
