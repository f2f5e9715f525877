"""Several processes that share one run: all take the same steps, and the first one writes files."""

from __future__ import annotations

import re
from typing import NamedTuple

from polybn.dispatch import backend as find_backend
from polybn.spec import BackendError, DomainError


class Team(NamedTuple):
    """One process among those that share a run."""

    coordinator: str
    """Host and port at which the first process waits for the others."""
    processes: int
    """The number of processes."""
    process: int
    """The number of this process; the first is 0."""


def team_of(coordinator: str | None, processes: int | None, process: int | None) -> Team | None:
    """Check the three options, which must be given together or not at all."""
    given = coordinator, processes, process
    if coordinator is None or processes is None or process is None:
        if any(option is not None for option in given):
            raise DomainError(
                f"polybn train: --coordinator, --processes and --process must be given together; got {given} "
                "(the same first two for all processes, and for each its number, from 0)"
            )
        return None
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise DomainError(
            f"polybn train: --coordinator must be HOST:PORT; got {coordinator!r} (a free port of process 0's host)"
        )
    if not 0 <= process < processes:
        raise DomainError(
            f"polybn train: --process must lie in 0 to {processes - 1}; got {process} (one for each of --processes)"
        )
    return Team(coordinator, processes, process)


def join(backend: str, team: Team | None) -> None:
    """Connect to the other processes before the backend computes anything; do nothing without a team."""
    if team is None:
        return
    meet = getattr(find_backend(backend), "join_processes", None)
    if meet is None:
        raise BackendError(
            f"polybn train: backend must train in several processes for --coordinator; got {backend!r} (jax does)"
        )
    meet(**team._asdict())


def writes(backend: str) -> bool:
    """Return whether this process writes the run, because it is the first or the only one."""
    is_first = getattr(find_backend(backend), "is_first_process", None)
    return is_first is None or bool(is_first())
