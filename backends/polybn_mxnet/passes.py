"""Which form of the passes serves which array."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from polybn_mxnet import memory, rows

try:
    from polybn_mxnet import fused
except ImportError:  # Numba is not installed
    fused = None  # type: ignore[assignment]


if TYPE_CHECKING:
    from collections.abc import Iterator

    from polybn.arguments import Problem
    from polybn.spec import Array
    from polybn_mxnet.memory import Host
    from polybn_mxnet.statistics import Statistics


class Passes(Protocol):
    """The work that grows with the number of values; see :class:`polybn_mxnet.rows.Rows`."""

    def mask(self, where: Array | None, shape: tuple[int, ...], problem: Problem) -> tuple[Any, Host]: ...
    def measure(
        self, x: Array, problem: Problem, exponent: Host, kept: Any, counts: Host
    ) -> tuple[Host, Host, Host]: ...
    def largest(self, x: Array, problem: Problem, kept: Any) -> Host: ...
    def normalize(
        self, x: Array, problem: Problem, s: Statistics, gamma: Host | None, beta: Host | None, kept: Any, out: Array
    ) -> Any: ...
    def sums(self, dy: Array, xhat: Any, problem: Problem, kept: Any) -> tuple[Host, Host]: ...
    def project(
        self, dy: Array, xhat: Any, problem: Problem, means: tuple[Host, Host] | None, slopes: tuple[Host, Host],
        kept: Any, out: Array,
    ) -> None: ...  # fmt: skip


_forced: ContextVar[Passes | None] = ContextVar("polybn_mxnet_passes", default=None)


def choose(x: Array, where: Array | None) -> Passes:
    """Return MXNet's operators for devices, and the host's own code where the host sees the memory."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if not memory.on_host(x):
        return rows.DEVICE
    return rows.HOST if fused is None or where is not None else fused


@contextlib.contextmanager
def operators_only() -> Iterator[None]:
    """Compute by MXNet's operators within this block, on the CPU, too: the form that devices run."""
    token = _forced.set(rows.DEVICE)
    try:
        yield
    finally:
        _forced.reset(token)
