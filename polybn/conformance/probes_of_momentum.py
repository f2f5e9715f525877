"""What new running statistics are made of: the old value and the batch's, each with its weight."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance import counts
from polybn.conformance.cases import Case, statistics_dtype
from polybn.conformance.convention import UNSEEN
from polybn.conformance.lattice import lattice
from polybn.conformance.probes import CLOSE, named_dtype, normalizes, plain_call
from polybn.conformance.properties.compare import changed
from polybn.conformance.runner import run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

WORDS = {"running_mean": "the running mean", "running_var": "the running variance"}
PASSED = (0.75, 0.5)
"""The numbers that the library itself receives as momentum, whatever is declared."""
OLD = (4.0, 8.0, 12.0)
"""Old running values: the new ones lie on a line, and its slope is the weight of the old one."""
MOST = 0.999
"""The largest weight of the old value beside which the batch's can be seen."""


def momentum(adapter: Adapter, info: Info) -> str:
    """See which value momentum weighs."""
    case = _passing(info, plain_call(info), PASSED[0])
    outcome = run(adapter, info, case, gradients=False)
    assert outcome.running_mean is not None
    declarable = {"old": 6.5, "new": 3.5}
    mean = float(outcome.running_mean[0])
    seen = nearest(mean, declarable)
    if not normalizes(case, outcome):
        return seen if seen in declarable else UNSEEN
    fixed = {name: w for name in WORDS if (w := _whatever_is_passed(adapter, info, case, name)) is not None}
    if fixed:
        which = " and ".join(WORDS[name] for name in fixed)
        weight = next(iter(fixed.values()))
        return f"is not what is passed: the old value weighs {weight:.4g} in {which}, whatever is passed"
    other = nearest(_weight(adapter, info, case, "running_var"), {"old": PASSED[0], "new": 1 - PASSED[0]})
    if seen in declarable and other in declarable and other != seen:
        return f"weighs the {seen} value in the running mean and the {other} value in the running variance"
    return seen if seen in declarable else f"gives a new running mean of {seen}"


def running_variance(adapter: Adapter, info: Info) -> str:
    """See which variance the running variance takes in."""
    # With both weights one half, it does not matter which value momentum weighs. The lengths of the axes tell counts
    # that are taken for m apart.
    shape = counts.shape(info)
    made = lattice(1, named_dtype(info), shape[1], (shape[0], *shape[2:]), 1).case
    wide = statistics_dtype(made.x)
    old = {"running_mean": np.full(shape[1], 8, wide), "running_var": np.full(shape[1], 4, wide)}
    case = changed(made, momentum=0.5, eps=0.25, **old)
    outcome = run(adapter, info, case, gradients=False)
    assert outcome.running_var is not None
    new = float(outcome.running_var[0])
    declarable = {"biased": 2.0, "unbiased": 2 * counts.M / (counts.M - 1)}
    others = {
        "the standard deviation": 2**0.5,
        "the variance plus eps": 2 + case.eps,
        "1 / sqrt(variance + eps)": (2 + case.eps) ** -0.5,
        "the old value again": 4.0,
    }
    wrong = {f"the variance times {w}{note}": 2 * factor for w, (factor, note) in counts.factors(shape).items()}
    seen = nearest(2 * new - 4, declarable)
    if seen in declarable:
        return seen
    if not normalizes(case, outcome):
        return UNSEEN
    weight = _weight(adapter, info, case, "running_var")  # it may be another one than what is passed
    weight = weight if 0 <= weight <= MOST else 0.5
    return nearest((new - weight * 4) / (1 - weight), declarable | others, wrong)


def nearest(value: float, candidates: dict[str, float], rare: dict[str, float] | None = None) -> str:
    """Return the name of what a value is; what is rare is not listed if it is nothing that is known."""
    near = [name for name, of in (candidates | (rare or {})).items() if abs(value - of) <= CLOSE * abs(of)]
    return near[0] if near else f"{value:.6g} where {', '.join(f'{n} gives {v:g}' for n, v in candidates.items())}"


def _passing(info: Info, case: Case, passed: float) -> Case:
    """Return the case with the momentum for which the library itself receives a number."""
    return case._replace(momentum=passed if info.momentum == "old" else 1 - passed)


def _whatever_is_passed(adapter: Adapter, info: Info, case: Case, name: str) -> float | None:
    """Return the weight of the old value if it is the same for each momentum; else None."""
    first, second = (_weight(adapter, info, _passing(info, case, passed), name) for passed in PASSED)
    return first if abs(first - second) <= CLOSE and 0 <= first <= 1 else None


def _weight(adapter: Adapter, info: Info, case: Case, name: str) -> float:
    """Return the weight of the old value in a new running statistic; NaN if the new one is no weighted mean."""
    new = list[float]()
    for old in OLD:
        vector: dict[str, Any] = {name: np.full_like(getattr(case, name), old)}
        new.append(float(getattr(run(adapter, info, changed(case, **vector), gradients=False), name)[0]))
    slopes = [(b - a) / (OLD[1] - OLD[0]) for a, b in itertools.pairwise(new)]
    return sum(slopes) / 2 if abs(slopes[0] - slopes[1]) <= CLOSE else float("nan")
