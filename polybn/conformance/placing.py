"""Where the channels of a case lie when it reaches an adapter that serves the last axis only, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info
    from polybn.conformance.cases import Array, Case


def placed(info: Info, case: Case, *, as_is: bool = False) -> Case:
    """Return the case with its channels where the adapter serves them; ``as_is`` makes views, not copies."""
    last = case.x.ndim - 1
    if info.axes != "last" or case.axis != 1 or last == 1:
        return case
    if not as_is:
        return case.moved(last)
    x = np.moveaxis(case.x, 1, last)
    dy = x if case.dy is case.x else np.moveaxis(case.dy, 1, last)
    return case._replace(x=x, dy=dy, axis=last)


def put_back(array: Array | None, given: Case, case: Case) -> Array | None:
    """Move the channels of a result back to where the case has them."""
    if array is None or given.axis == case.axis:
        return array
    return np.ascontiguousarray(np.moveaxis(array, given.axis, case.axis))
