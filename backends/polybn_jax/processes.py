"""Forked processes: a child has none of the threads that JAX computes with, and would wait for them without end."""

from __future__ import annotations

import os
import sys

from polybn.spec import BackendError

_orphans: set[int] = set()
"""This process, if it was forked from one in which JAX had started."""


def check_process(function: str) -> None:
    """Refuse to compute where JAX would hang."""
    if _orphans:
        raise BackendError(
            f"polybn.{function}: JAX must be started in the process that uses it; got a child that was forked after "
            "JAX had started (make processes by multiprocessing.get_context('spawn'), or fork before the first array)"
        )


def _remember() -> None:
    # Private, so it may be gone: then every child that has inherited this module is refused.
    bridge = sys.modules.get("jax._src.xla_bridge")
    if getattr(bridge, "backends_are_initialized", lambda: True)():
        _orphans.add(os.getpid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)
