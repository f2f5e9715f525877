"""Files that are written and read as a whole.

After a crash, a written file has all of its old content or all of the new. Only regular files are read: opening a pipe
would block until some process writes to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

StrPath: TypeAlias = "str | os.PathLike[str]"

# A process id identifies a process on one host only, and in containers every process may have the same one. The name of
# a temporary file therefore holds the host and a random number per process, too.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_LIFE = secrets.token_hex(4)
_KINDS = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe"}
_TEMPORARY = re.compile(rf"\..+\.{_HOST}-([1-9][0-9]{{0,8}})-([0-9a-f]{{8}})\.polybn-tmp")


class UnfitFileError(OSError):
    """The path is not a regular file, or the file is larger than allowed."""


def read_whole(path: StrPath, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Parameters
    ----------
    path : path
        The file.
    most : int
        The largest number of bytes; no more are read.

    Returns
    -------
    bytes
        Its whole content.

    Raises
    ------
    UnfitFileError
        If it is a directory, a pipe or a device, or has more bytes.
    OSError
        The system's own error.

    Examples
    --------
    >>> read_whole("/", 100)
    Traceback (most recent call last):
    ...
    polybn.atomic.UnfitFileError: / must be a regular file; got a directory
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UnfitFileError(f"{os.fspath(path)} must have at most {most} bytes; got {size}")
        return file.read(most)


def open_regular(path: StrPath) -> BinaryIO:
    """Open a regular file to read, and nothing else: a pipe would wait."""
    # Without O_NONBLOCK, opening a pipe waits. Windows has no such flag, and opens files as text by default.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "a device")
            raise UnfitFileError(f"{os.fspath(path)} must be a regular file; got {kind}")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def write_atomic(path: StrPath, data: bytes) -> None:
    """Replace a file so that a crash, at any moment, leaves all of its old content or all of the new.

    The data go to a temporary file beside it, which is synced and renamed; then the directory is synced. Once this
    has returned, the new content outlasts a power cut. Temporary files that killed writers left there are removed.

    Parameters
    ----------
    path : path
        The file, in a directory that exists.
    data : bytes
        Its whole content.

    Raises
    ------
    OSError
        As it came from the system (disk full, no permission), with the path of the file, not of a temporary one. The
        file then has all of its old content, or all of the new if only the directory could not be synced.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_atomic(Path(directory, "config.json"), b"{}")
    ...     Path(directory, "config.json").read_text()
    '{}'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_LIFE}.polybn-tmp")
    with naming(path):
        _sweep(path.parent)
        file = temporary.open("xb")
        try:
            _write_durably(file, data)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path that a user knows into errors of the system, which name an internal path or none at all."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2  # set by a rename; if it were None, the message would show it
        raise


def make_directory(directory: Path) -> list[Path]:
    """Make a directory and its parents, and sync each into its own parent; return those that were made, outer first."""
    missing: list[Path] = []
    while not directory.is_dir():
        if directory.exists() and not directory.is_dir():  # asked again: another process may just have made it
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        missing.insert(0, directory)
        directory = directory.parent
    return [path for path in missing if _make(path)]


def _make(directory: Path) -> bool:
    """Make a directory, and sync it into its parent; False if another process made it first."""
    try:
        directory.mkdir()
    except FileExistsError:
        if not directory.is_dir():
            raise
        return False
    _sync_directory(directory.parent)
    return True


def _write_durably(file: BinaryIO, data: bytes) -> None:
    with file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    if sys.platform == "win32":  # where a directory cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the answer of file systems that do not sync directories
            raise
    finally:
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    for path in directory.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and _is_dead(int(match[1]), match[2]):
            with contextlib.suppress(OSError):  # it may be another user's
                path.unlink()


def _is_dead(pid: int, life: str) -> bool:
    if pid == os.getpid():
        return life != _LIFE
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
