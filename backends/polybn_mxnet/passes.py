"""Which form of the passes serves which array."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from polybn_mxnet import rows

try:
    from polybn_mxnet import fused
except ImportError:  # Numba is not installed
    fused = None  # type: ignore[assignment]


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polybn.spec import Array
    from polybn_mxnet.case import Case
    from polybn_mxnet.memory import Host
    from polybn_mxnet.statistics import Statistics


class Passes(Protocol):
    """The work that grows with the number of values; see :class:`polybn_mxnet.rows.Rows`."""

    def mask(self, where: Array | None, shape: tuple[int, ...], case: Case) -> tuple[Any, Host]: ...
    @property
    def train(self) -> Callable[..., rows.Trained | None] | None: ...
    def measure(self, x: Array, case: Case, exponent: Host, kept: Any, counts: Host) -> tuple[Host, Host, Host]: ...
    def largest(self, x: Array, case: Case, kept: Any) -> Host: ...
    def normalize(
        self, x: Array, case: Case, s: Statistics, gamma: Host | None, beta: Host | None, kept: Any, out: Array
    ) -> Any: ...
    def sums(self, dy: Array, xhat: Any, case: Case, kept: Any) -> tuple[Host, Host]: ...
    def project(
        self, dy: Array, xhat: Any, case: Case, means: tuple[Host, Host], slopes: tuple[Host, Host], kept: Any,
        out: Array,
    ) -> None: ...  # fmt: skip
    def pull(
        self, dy: Array, xhat: Any, case: Case, counts: Host, training: bool, slopes: tuple[Host, Host],
        kept: Any, out: Array | None,
    ) -> tuple[Host, Host]: ...  # fmt: skip


_forced: ContextVar[Passes | None] = ContextVar("polybn_mxnet_passes", default=None)


def choose(case: Case, where: Array | None) -> Passes:
    """Return MXNet's operators for devices, and the host's own code where the host sees the memory."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if not case.x.on_host:
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
