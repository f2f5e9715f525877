"""Download files of known size and SHA-256, over https only, with retries.

A file is verified in memory before anything is written, so it must fit into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin

from polybn.atomic import make_directory, write_atomic
from polybn.lenet.errors import DataIntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import requests
    from rich.progress import Progress

ALLOWED = "https://"
"""The required start of every URL, also of the target of a redirect."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each new attempt after a temporary failure."""
TIMEOUT = (5.0, 30.0)
"""Seconds to wait for a connection, and for more bytes."""


class Wanted(NamedTuple):
    """A file to download."""

    name: str
    """The name of the file, and the end of its URL."""
    size: int
    """The size of the file in bytes."""
    sha256: str
    """The SHA-256 of its bytes, in hexadecimal."""


def fill(directory: Path, files: Sequence[Wanted], mirrors: Sequence[str], *, progress: bool = False) -> None:
    """Download the files that a directory lacks, each from the first mirror that serves the right bytes.

    A file with another digest is replaced. If no mirror serves a file, a
    :class:`~polybn.lenet.errors.DataIntegrityError` says what happened at each one.
    """
    make_directory(directory)
    missing = [file for file in files if not _is_there(directory / file.name, file)]
    with _bar(sum(file.size for file in missing), shown=progress) as advance:
        for file in missing:
            write_atomic(directory / file.name, _from_first(mirrors, file, advance))


def _is_there(path: Path, file: Wanted) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def _from_first(mirrors: Sequence[str], file: Wanted, advance: Callable[[int], None]) -> bytes:
    faults = []
    for mirror in mirrors:
        try:
            return fetch(mirror + file.name, file.size, file.sha256, advance)
        except DataIntegrityError as error:
            faults.append(str(error))
    raise DataIntegrityError("; ".join(faults))


def fetch(url: str, size: int, sha256: str, advance: Callable[[int], None] = lambda _: None) -> bytes:
    """Download one file into memory; no more than ``size`` bytes are read.

    A temporary failure is retried; a refusal or other bytes are not, and are a
    :class:`~polybn.lenet.errors.DataIntegrityError`. ``advance`` is called with the number of bytes received, and with
    a negative number for bytes that are thrown away.
    """
    content = _Bounded(size, advance)
    try:
        _persist(url, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        if digest != sha256:
            raise DataIntegrityError(f"have SHA-256 {sha256}; got {digest}")
    except DataIntegrityError as error:
        content.clear()
        raise DataIntegrityError(f"{url} must {error}") from error
    return content.getvalue()


def _persist(url: str, content: _Bounded) -> None:
    import requests

    pauses = iter(PAUSES)
    while True:
        try:
            return _receive(url, content)
        except requests.RequestException as error:
            pause = next(pauses, None) if _may_pass(error) else None
            if pause is None:
                raise DataIntegrityError(f"serve {content.size:,} bytes; got {_describe(error)}") from error
        content.clear()
        time.sleep(pause)


def _receive(url: str, content: _Bounded) -> None:
    import pooch  # type: ignore[import-untyped]
    import requests

    def admit(response: requests.Response, **_: object) -> None:
        opened.callback(response.close)
        if response.is_redirect:
            _check(urljoin(response.url, response.headers["location"]))

    _check(url)
    with contextlib.ExitStack() as opened:
        # No compression in transit, because the digest is that of the stored bytes.
        headers = {"Accept-Encoding": "identity"}
        get = pooch.HTTPDownloader(chunk_size=1 << 16, timeout=TIMEOUT, headers=headers, hooks={"response": admit})
        get(url, content, None)
    if content.tell() < content.size:
        raise requests.ConnectionError(f"the line ended after {content.tell():,}")


def _check(url: str) -> None:
    if not url.startswith(ALLOWED):
        raise DataIntegrityError(f"be served from {ALLOWED} and nowhere else; got {url}")


def _may_pass(error: requests.RequestException) -> bool:
    """Return whether another attempt may help: not with a wrong address, nor without a network."""
    import requests
    import urllib3

    if error.response is not None:
        return error.response.status_code >= 500
    unreachable = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(_cause(error), unreachable)


def _describe(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    cause = str(_cause(error)).split("): ", 1)[-1]  # urllib3 begins with a repr of the connection
    return f"{type(error).__name__}: {cause}"


def _cause(error: requests.RequestException) -> object:
    first = error.args[0] if error.args else error
    return getattr(first, "reason", first)


class _Bounded(io.BytesIO):
    """A file in memory that refuses more bytes than its size, and reports each write."""

    def __init__(self, size: int, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.size = size
        self.advance = advance

    def write(self, chunk: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(chunk) > self.size:
            raise DataIntegrityError(f"serve {self.size:,} bytes; got more")
        self.advance(len(chunk))
        return super().write(chunk)

    def clear(self) -> None:
        self.advance(-self.tell())
        self.seek(0)
        self.truncate()


@contextlib.contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    progress = _progress() if shown else None
    if progress is None:
        yield lambda _: None
        return
    with progress:
        task = progress.add_task("Fashion-MNIST", total=total)
        yield lambda size: progress.advance(task, size)


def _progress() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
