"""Processes that train together: how they meet, and what a user reads when one of them is gone."""

from __future__ import annotations

import atexit
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from polybn.spec import BackendError

MEETING, HEARTBEAT, PARTING = 120, 10, 10
"""Seconds: for all to meet, until a silent process counts as gone, and for all to part at the end."""


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Meet the other processes; JAX must not have made an array yet."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limits = {
        "initialization_timeout": MEETING,
        "heartbeat_timeout_seconds": HEARTBEAT,
        "shutdown_timeout_seconds": PARTING,
    }
    known = inspect.signature(jax.distributed.initialize).parameters  # JAX before 0.10 has not all of them
    limits = {name: seconds for name, seconds in limits.items() if name in known}
    try:
        jax.distributed.initialize(coordinator, processes, process, **limits)
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"polybn.train: all {processes} processes must meet at {coordinator} within {MEETING} seconds; got "
            f"{_line(error)} (start each with its own --process and the same other options)"
        ) from error


def is_first_process() -> bool:
    """Tell whether this is the process that writes, or the only one."""
    return bool(jax.process_index() == 0)


@contextmanager
def together() -> Iterator[None]:
    """Say what has happened where an exchange with other processes fails."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        atexit.register(_leave)
        raise BackendError(
            f"polybn.train: all {jax.process_count()} processes must run until the end; got {_line(error)} "
            "(one has ended or cannot be reached: start all of them again, with --resume)"
        ) from error


def _leave() -> None:
    """End at once: JAX would first wait for the process that is gone, and then abort with a core dump."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
