"""Protection from what an adapter may do beside its work: take forever, end the process, print."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO, cast

MOST = 80
"""Characters of a printed line that a report repeats."""


class OutOfTime(BaseException):
    """The time of a check is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` after so many seconds, where the system has an alarm clock, in the main thread.

    An adapter that never returns to Python's interpreter is out of its reach; the command line, which checks in a
    process of its own, ends that process.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # and again, if an adapter catches it
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
        """Take in some text."""
        self.first = self.first or text.strip().partition("\n")[0][:MOST]
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


@contextlib.contextmanager
def silenced(printed: Printed) -> Iterator[None]:
    """Let what Python code prints go to ``printed``."""
    file = cast("TextIO", printed)
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def plain(text: str) -> str:
    """Show control characters by their codes: no adapter's name or message moves a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
