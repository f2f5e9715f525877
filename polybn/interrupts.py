"""Ctrl-C, which a terminal sends to all processes of a command, is the business of the first of them alone."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back within this block, and from processes that are started in it for as long as they live.

    Otherwise it would find them importing their modules, before any code of theirs can ignore it.
    """
    if sys.platform == "win32":  # which has no signals to block
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing starts it once, and then lets Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
