"""Whether the same call gives different results: then no difference between other calls has a cause to be named."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from polybn.conformance.cases import Outcome, equal
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import close
from polybn.conformance.runner import CallError, KitAdapterError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

TIMES = 100
"""How often the calls are repeated: a fault in one call of twenty is then seen nearly always."""
SECONDS = 2.0
"""After this time, the calls are not repeated any more."""


def varies(adapter: Adapter, info: Info) -> bool:
    """Repeat calls, and return whether a result changes by more than roundings; sums in any order vary by these."""
    training = served.plain(info, 1, info.dtypes[0], (7, 3, 5))
    calls = [training, training._replace(training=False)][: 1 + info.infers]
    until = time.monotonic() + SECONDS
    try:
        first = [run(adapter, info, call) for call in calls]
        for _ in range(TIMES):
            if not all(_alike(run(adapter, info, call), seen) for call, seen in zip(calls, first, strict=True)):
                return True
            if time.monotonic() > until:
                break
    except (CallError, KitAdapterError):  # what raises is told as that
        return False
    return False


def _alike(got: Outcome, expected: Outcome) -> bool:
    return all(equal(a, b) or close(a, b) for a, b in zip(got, expected, strict=True))
