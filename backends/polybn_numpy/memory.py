"""Memory for large results: what dropped results left, or else new memory.

The system clears each page of new memory on its first use, which takes longer than batch norm itself; a loop that
drops its results would pay for that in each round. So the memory of a large result is kept when the last array that
refers to it is gone, for the next result of that size.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 4 << 20
"""Bytes from which a result's memory is kept. Smaller pieces are cheap to allocate."""

LIMIT = 512 << 20
"""The most bytes that are kept."""


class Memory:
    """A piece of memory. Unlike arrays, two pieces are equal only if they are one."""

    def __init__(self, size: int) -> None:
        self.size, self.array = size, np.empty(size, np.uint8)


class Store:
    """Pieces of memory that no array uses.

    An array may be dropped at any moment and in any thread, also by the garbage collector within these methods. So no
    lock is held, and each step is one operation of a deque, which nothing interrupts.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.kept = limit, deque[Memory]()

    def take(self, size: int) -> Memory:
        """Return the piece of this size that was kept last, as a part of it may still be in the cache, or a new one."""
        for memory in reversed(tuple(self.kept)):
            if memory.size == size:
                try:
                    self.kept.remove(memory)
                except ValueError:  # another thread took it
                    continue
                return memory
        try:
            return Memory(size)
        except MemoryError:
            self.kept.clear()
            return Memory(size)

    def keep(self, memory: Memory) -> None:
        """Keep a piece, and let the oldest pieces go while all together exceed the limit."""
        if memory.size > self.limit:
            return
        self.kept.append(memory)
        while sum(piece.size for piece in tuple(self.kept)) > self.limit:
            try:
                self.kept.popleft()
            except IndexError:  # another thread was faster
                return


class _Lease:
    """What arrays refer to, directly or through other arrays, while they use a piece of memory."""

    def __init__(self, memory: Memory, store: Store) -> None:
        self._memory, self._store = memory, store
        self.__array_interface__ = memory.array.__array_interface__

    def __del__(self) -> None:
        self._store.keep(self._memory)


_store = Store(LIMIT)


def empty_like(like: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in the shape and memory order of another, as NumPy's function does, its values undefined."""
    size = like.size * dtype.itemsize
    if size < LARGE:
        return np.empty_like(like, dtype, subok=False)
    made = np.asarray(_Lease(_store.take(size), _store)).view(dtype)
    if like.flags.c_contiguous:
        return made.reshape(like.shape)
    axes = sorted(range(like.ndim), key=lambda k: -abs(like.strides[k]))  # from the longest steps to the shortest
    return made.reshape([like.shape[k] for k in axes]).transpose(np.argsort(axes))
