"""Files that are replaced as a whole: after a crash, all of the old content or all of the new."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import sys
from pathlib import Path
from typing import BinaryIO, TypeAlias

StrPath: TypeAlias = "str | os.PathLike[str]"

# Whether a pid is alive can be told on its own host only; and in a container every process may have the same one.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_LIFE = secrets.token_hex(4)
_TEMPORARY = re.compile(rf"\..+\.{_HOST}-([1-9][0-9]{{0,8}})-([0-9a-f]{{8}})\.polybn-tmp")


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
        As it came from the system (disk full, no permission). The file then has all of its old content, or all of the
        new if only the directory could not be synced.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_atomic(Path(directory, "config.json"), b"{}")
    ...     Path(directory, "config.json").read_text()
    '{}'
    """
    path = Path(path)
    _sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_LIFE}.polybn-tmp")
    file = temporary.open("xb")
    try:
        _write_durably(file, data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, and sync each into its own parent."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


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
