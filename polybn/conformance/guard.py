"""Protection from side effects of an adapter: it may never return, end the process, or print."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO, cast

MOST = 80
"""Number of characters of a printed line that a report shows."""


class OutOfTime(BaseException):
    """The time of a check is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` after so many seconds; only in the main thread, and where the system has an alarm.

    It cannot interrupt an adapter that hangs in compiled code; the command line checks in a child process and ends
    that process.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again every 5 s, in case an adapter catches it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, cast("signal.Handlers", before))


class Printed:
    """A file that keeps the first line written to it."""

    def __init__(self) -> None:
        self.first = ""

    def write(self, text: str) -> int:
        """Keep the first line."""
        self.first = self.first or text.strip().partition("\n")[0][:MOST]
        return len(text)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


@contextlib.contextmanager
def silenced(printed: Printed) -> Iterator[None]:
    """Redirect what Python code prints to ``printed``."""
    file = cast("TextIO", printed)
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def plain(text: str) -> str:
    """Replace control characters by their codes, so that an adapter's name or message cannot control a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
