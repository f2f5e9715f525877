"""Copy arrays of any rank, strides and dtype to channel rows and back, a block of channels at a time.

Rows are always contiguous and in the order of clause S1, so the memory layout of the caller's array affects
only the time of the copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from polybn_numpy.kernels import Column, Mask, Rows

# The number of values in a block. Its rows, 4 MB in float32, stay in the last-level cache during the dozen passes over
# them, and a pass is long enough that two threads rarely wait for the interpreter lock. Smaller blocks were measured to
# be slower, with one thread and with two.
BLOCK = 1 << 20


def channels_first(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """View ``array`` with its channel axis in front."""
    return np.moveaxis(array, axis, 0)


def mask_rows(where: NDArray[np.bool_] | None, shape: tuple[int, ...], axis: int) -> NDArray[np.bool_] | None:
    """View ``where`` in the whole shape of ``x`` with the channel axis in front, without a copy."""
    return None if where is None else channels_first(np.broadcast_to(where, shape), axis)


def count_kept(kept: NDArray[np.bool_] | None, channels: int, count: int) -> NDArray[np.int64]:
    """Return the number of values that take part, per channel."""
    if kept is None:
        return np.full(channels, count, np.int64)
    return np.asarray(np.count_nonzero(kept, axis=tuple(range(1, kept.ndim))), np.int64)


def gather(first: NDArray[Any], block: slice, dtype: DTypeLike, kept: Mask | None = None) -> Rows:
    """Copy channels ``block`` of a channels-first view into rows, with 0 in deleted places."""
    part = first[block]
    rows = np.empty((part.shape[0], math.prod(part.shape[1:])), dtype)
    np.copyto(rows.reshape(part.shape), part)
    if kept is not None:
        np.copyto(rows, 0, where=~kept)
    return rows


def gather_mask(first: NDArray[np.bool_] | None, block: slice) -> Mask | None:
    """Copy a block of the mask into rows."""
    return None if first is None else gather(first, block, np.bool_)


def scatter(rows: Rows, first: NDArray[Any], block: slice) -> None:
    """Copy rows back into channels ``block`` of a channels-first view, rounding to its dtype."""
    part = first[block]
    np.copyto(part, rows.reshape(part.shape), casting="same_kind")


def column(values: NDArray[Any] | None, block: slice) -> Column | None:
    """Take a block of a per-channel vector as a column; None stays None."""
    return None if values is None else values[block, None]


def for_each_block(work: Callable[[slice], None], channels: int, count: int) -> None:
    """Call ``work`` on every block of channels, on two threads if there are several blocks.

    Floating-point warnings are off in it, because the specification defines results that overflow or are NaN.
    """
    blocks = list(_split(channels, count))
    failures = list[BaseException]()

    def do(some: list[slice]) -> None:
        with np.errstate(all="ignore"):
            for block in some:
                work(block)

    def help_out() -> None:
        try:
            do(blocks[1::2])
        except BaseException as error:
            failures.append(error)

    if len(blocks) == 1:
        do(blocks)
        return
    # A thread for each call, not a pool: a forked child has no threads, and a pool ends before the last threads do.
    helper = Thread(target=help_out, name="polybn-numpy")
    try:
        helper.start()
    except RuntimeError:  # Python ends, or the system has no thread left
        help_out()
    try:
        do(blocks[::2])
    finally:
        if helper.ident is not None:
            helper.join()
    if failures:
        raise failures[0]


def _split(channels: int, count: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(count, 1))
    return (slice(low, min(low + step, channels)) for low in range(0, channels, step))
