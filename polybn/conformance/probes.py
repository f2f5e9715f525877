"""What the calls behind conventions return, where the statistics of exact inputs are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance import counts, forms
from polybn.conformance.cases import Case, rows, statistics_dtype
from polybn.conformance.convention import UNSEEN
from polybn.conformance.lattice import lattice
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import changed
from polybn.conformance.runner import CallError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info
    from polybn.conformance.cases import Outcome

CLOSE = 1e-3
"""The relative difference that counts: rounding errors are far below it, differences of convention far above."""

ROUNDINGS = 32
"""The roundings to a narrow dtype that y may have suffered where it counts as the same."""


def plain_call(info: Info, **options: Any) -> Case:
    """Make a lattice call of five values: mean 2, biased variance 2, unbiased 2.5; old mean 8, old variance 4."""
    shape = served.fitted(info, (5, 3))
    dtype = "float32" if "float32" in info.dtypes else info.dtypes[0]
    made = lattice(1, dtype, 3, (5, *shape[2:]), 1, offset=0)
    wide = statistics_dtype(made.case.x)
    x = (made.case.x + made.case.x.dtype.type(2)).astype(made.case.x.dtype)
    old = {"running_mean": np.full(3, 8, wide), "running_var": np.full(3, 4, wide)}
    return changed(made.case, x=x, **old, **options)


def normalizes(case: Case, outcome: Outcome) -> bool:
    """Return whether y is normalized by the batch, or by the new running statistics.

    Where it is not, the batch itself may be read or summed wrongly, and its statistics say nothing of conventions.
    """
    return bool(normalized_by(case, outcome))


def normalized_by(case: Case, outcome: Outcome) -> set[str]:
    """Return the names of the statistics by which y may have been normalized."""
    close = max(0.02, ROUNDINGS * forms.format_of(case.x.dtype.name).stored)
    x, y = rows(case.x, 1), rows(outcome.y, 1)
    gamma, beta = (np.asarray(v, np.float64)[:, None] for v in (case.gamma, case.beta))
    pairs = {"batch": (x.mean(axis=1), x.var(axis=1))}
    if outcome.running_mean is not None and outcome.running_var is not None:
        pairs["running"] = (outcome.running_mean.astype(np.float64), outcome.running_var.astype(np.float64))
    found = set()
    for name, (mean, var) in pairs.items():
        right = gamma * (x - mean[:, None]) / np.sqrt(np.abs(var[:, None]) + case.eps) + beta
        if np.abs(y - right).max() <= close * np.abs(right).max():
            found.add(name)
    return found


def _vector(outcome: Outcome, name: str) -> Any:
    return getattr(outcome, name)


def single_value(adapter: Adapter, info: Info) -> str:
    """See what training on one value per channel gives."""
    case = plain_call(info)
    case = case._replace(x=case.x[:1].copy(), dy=case.dy[:1].copy())
    try:
        outcome = run(adapter, info, case, gradients=False)
    except CallError:
        return "error"
    assert case.beta is not None
    beta = case.beta.reshape((1, 3) + (1,) * (outcome.y.ndim - 2)).astype(outcome.y.dtype)
    by_running = "running" in (info.trains_by, info.tracks and trains_by(adapter, info))
    if not np.array_equal(outcome.y, beta) and not by_running:
        if not _normalizes_several(adapter, info):
            return UNSEEN
        return f"y = {outcome.y.ravel().tolist()} where beta is {case.beta.tolist()}"
    for name in ("running_mean", "running_var") if info.tracks else ():
        if not np.isfinite(_vector(outcome, name)).all():
            return f"{float(_vector(outcome, name)[0])} in {name}"
    return "beta"


def _normalizes_several(adapter: Adapter, info: Info) -> bool:
    """Return whether y is right for several values a channel, also where the first axis has the length 1."""
    whole = plain_call(info)
    shape = served.fitted(counts.deep(info), (1, 3, 4))
    calls = [whole, lattice(1, named_dtype(info), 3, (shape[0], *shape[2:]), 1).case]
    return all(normalizes(case, run(adapter, info, case, gradients=False)) for case in calls)


def empty(adapter: Adapter, info: Info) -> str:
    """See what training on no values does to the running statistics."""
    case = plain_call(info)
    try:
        outcome = run(adapter, info, case._replace(x=case.x[:0].copy(), dy=case.dy[:0].copy()), gradients=False)
    except CallError:
        return "error"
    names = ("running_mean", "running_var") if info.tracks else ()
    kept = all(np.array_equal(_vector(outcome, n), getattr(case, n)) for n in names)
    return "kept" if kept else "changed"


_TINY = {"float32": 2.0**-140, "float64": 2.0**-1060, "bfloat16": 2.0**-131}
"""Subnormal numbers; half of each is subnormal, too."""


def flushes(adapter: Adapter, info: Info) -> str:
    """See whether subnormal numbers are flushed to zero."""
    dtype = next((name for name in _TINY if name in info.dtypes), None)
    if dtype is None:
        return "yes" if info.flushes else "no"
    # Both weights are one half, as above. The normal number comes first, to see that the running mean is as expected.
    normal, tiny = 2.0**-90, _TINY[dtype]
    if _mean_of(adapter, info, dtype, normal) != normal / 2:
        return UNSEEN
    mean = _mean_of(adapter, info, dtype, tiny)
    return {tiny / 2: "no", 0.0: "yes"}.get(mean, f"a mean of {mean} for values {tiny}")


def _mean_of(adapter: Adapter, info: Info, dtype: str, value: float) -> float:
    """Return the running mean, which was 0, after training on equal values with both weights one half."""
    case = lattice(1, dtype, 3, (*_fitted_rest(info, 4),), 1).case
    x, wide = np.full_like(case.x, value), statistics_dtype(case.x)
    case = case._replace(x=x, momentum=0.5, eps=1e-5, running_mean=np.zeros(3, wide))
    return float(_vector(run(adapter, info, case, gradients=False), "running_mean")[0])


def _fitted_rest(info: Info, m: int) -> tuple[int, ...]:
    """Return a shape without channels, of m values, that the adapter serves."""
    shape = served.fitted(info, (m, 3))
    return (shape[0], *shape[2:])


def trains_by(adapter: Adapter, info: Info) -> str:
    """See which statistics normalize in training."""
    case = plain_call(info, momentum=0.5)
    near = normalized_by(case, run(adapter, info, case, gradients=False))
    return near.pop() if len(near) == 1 else UNSEEN


def named_dtype(info: Info) -> str:
    """Return float32 where it is declared, or else the first dtype."""
    return "float32" if "float32" in info.dtypes else info.dtypes[0]
