"""One owner for a directory: a lock that ends with its process, however that ends.

The operating system holds the lock, not the file's existence or its content: after ``kill -9`` or a power cut the file
is still there, and nobody holds it. The file says who holds it, for people. ``flock`` also excludes processes on other
hosts where the directory is on NFS. Where a file system has no locks at all, a warning says so and the work goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from polybn.atomic import naming
from polybn.lenet.errors import RunInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAKEN = {errno.EAGAIN, errno.EACCES}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to the locked file; it does not once the directory was moved or removed."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Delete the file. Whoever has opened it already will find that it is not in place."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[Lock]:
    """Hold the lock of a file, which is made if need be, within this block; refuse at once where another has it.

    Threads of one process exclude each other, too. A forked child shares the lock until it ends.
    """
    while True:
        with _opened(path) as descriptor:
            _lock(path, descriptor)
            lock = Lock(path, descriptor)
            if not lock.is_in_place():  # its last owner removed it after it was opened here
                continue
            _write(descriptor, f"process {os.getpid()} on {socket.gethostname()}")
            try:
                yield lock
            finally:
                _write(descriptor, "")
            return


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    with naming(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    if sys.platform == "win32":  # which has no flock
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise RunInUseError(
                f"polybn: {path.parent} must be a directory in which nobody trains; got one in use by {owner} "
                "(wait until it ends, or choose another directory)"
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"polybn: {path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second "
            "process from training there, too",
            stacklevel=2,
        )


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the words are for people, the lock needs none
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
