"""One owner for a directory: a lock that ends with its process, however the process ends.

The lock is held by the operating system; the file's existence and content mean nothing. After ``kill -9`` or a power
cut the file is still there, but it is not locked. Its text tells people who holds the lock. On NFS, ``flock`` also
excludes processes on other hosts. If a file system has no locks at all, there is a warning and training goes on.
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
        """Return whether the path still leads to the locked file: not if the directory was moved or removed."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Delete the file. A process that has already opened it will see that it is no longer in place."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[Lock]:
    """Hold the lock of a file, which is created if necessary, within this block; RunInUseError if it is taken.

    Threads of one process exclude each other, too. A forked child shares the lock until it ends.
    """
    while True:
        with _opened(path) as descriptor:
            _lock(path, descriptor)
            lock = Lock(path, descriptor)
            if not lock.is_in_place():  # the previous owner removed the file after it was opened here
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
    if sys.platform == "win32":  # Windows has no flock
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
    with contextlib.suppress(OSError):  # such as a full disk: the text is only for people
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
