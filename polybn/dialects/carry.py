"""Conversion of a source's arrays to a target's, through the neutral state, with notes on losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.dialects.neutral import Knowledge, Neutral, read, write
from polybn.dialects.record import ENDLESS, SCALARS
from polybn.dialects.said import least

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.dialects.dialect import Dialect
    from polybn.dialects.neutral import Arrays
    from polybn.dialects.record import Role
    from polybn.dialects.said import Options

NOTHING_LEFT = 2.0**-24
"""A weight that is lost beside 1 in float32."""


class Told(NamedTuple):
    """The facts that the caller gave beside the arrays."""

    values: int | None
    """The number of values per channel in a training batch."""
    steps: int | None
    options: Options


def carry(arrays: Arrays, here: Dialect, there: Dialect, told: Told) -> tuple[dict[Role, NDArray[Any]], list[str]]:
    """Return the target's arrays, and a sentence for each inexact step."""
    known = Knowledge(told.options.momentum, told.options.eps, told.options.fix_gamma, told.steps)
    state = read(arrays, here, known)
    dtype = _dtype(arrays)
    wanted = np.dtype(np.float32) if there.dtype == "float32" else dtype
    notes = [*_values(state), *_training(here, there), *_averages(here, there, state, known)]
    factor, words = _bessel(here, there, told.values)
    steps = state.steps if here.average != "plain" or known.steps is not None else None
    made = write(_filled(state._replace(var=state.var * factor), there), there, known, steps)
    if "count" in there.names and not there.debiased and ("count" not in there.optional or told.steps is not None):
        made["count"] = np.int64(0 if state.steps in (None, ENDLESS) else state.steps)
    notes += [*words, *_gamma(there, state), *_eps(there, state, known), *_counts(there, state, made)]
    if wanted.itemsize < dtype.itemsize:
        notes.append(f"Values are rounded from {dtype} to {wanted}, the dtype of {there.name}.")
    cast = {role: _cast(made[role], wanted) for role in there.names if role in made}
    beyond = [there.names[role] for role in cast if (np.isinf(cast[role]) & np.isfinite(made[role])).any()]
    if beyond:
        notes.append(f"{', '.join(beyond)} become infinite in part: {wanted} holds no values as large.")
    return cast, notes


def _dtype(arrays: Arrays) -> np.dtype[Any]:
    """Return the dtype that holds all vectors; float64 for integers, and for what is wider."""
    found = np.result_type(*(array.dtype for role, array in arrays.items() if role not in SCALARS)).newbyteorder("=")
    return np.dtype(np.float64) if found.kind in "biu" or found.itemsize > 8 else found


def _cast(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # a note says it
        return array.astype(dtype) if array.dtype == np.float64 else array


def _filled(state: Neutral, there: Dialect) -> Neutral:
    """Add a gamma of 1 and a beta of 0 if the target needs them."""
    together = there.affine == "together" and (state.gamma is None) != (state.beta is None)
    if there.affine == "always" or together:
        gamma = np.ones_like(state.mean) if state.gamma is None else state.gamma
        return state._replace(gamma=gamma, beta=np.zeros_like(state.mean) if state.beta is None else state.beta)
    return state


def _bessel(here: Dialect, there: Dialect, count: int | None) -> tuple[float, list[str]]:
    """Return the factor for the variance, and notes on what is not exact."""
    if here.running_variance == there.running_variance:
        return 1.0, []
    for dialect in (here, there):
        if dialect.running_variance == "unspecified":
            words = "inference is the same, and training on may keep another"
            return 1.0, [f"{dialect.name} does not say which variance it keeps: it is taken as it is; {words}."]
    if count is None:
        return 1.0, [
            f"{there.name} goes on with the {there.running_variance} variance where {here.name} kept the "
            f"{here.running_variance} one. Inference is the same; with the count of values per channel in a training "
            f"batch, the variance becomes the one that {there.name} would have kept."
        ]
    factor = (count - 1) / count if here.running_variance == "unbiased" else count / (count - 1)
    return factor, [
        f"The variance is multiplied by {factor:.6g}, for batches of {count} values: training goes on as it would have "
        f"in {there.name}, and inference changes by up to {abs(factor**-0.5 - 1):.2g} of the deviation from the mean."
    ]


def _averages(here: Dialect, there: Dialect, state: Neutral, known: Knowledge) -> list[str]:
    notes = []
    if "inverse root" in (here.stored, there.stored) and here.stored != there.stored:
        notes.append(
            "An average of inverse roots is not the inverse root of an average: inference is the same, and training on "
            "averages something else."
        )
    if there.stored == "sums" and known.momentum is None and state.steps != 0:
        notes.append(
            f"The factor is 1, as after one batch, because the momentum was not said: give options, or training on in "
            f"{there.name} forgets what came before."
        )
    if here.average == "debiased from 1" and known.momentum and state.steps and state.steps < ENDLESS:
        left = known.momentum**state.steps
        if left > NOTHING_LEFT:
            notes.append(
                f"The variance is too large by {left / (1 - left):.3g}, in {here.name} as in the result: it began at 1."
            )
    if here.debiased == there.debiased or state.steps in (None, 0, ENDLESS) or not (here.debiased or known.steps):
        return notes
    lacking = None if known.momentum is None else known.momentum ** (state.steps or 0)
    if lacking is None or lacking > NOTHING_LEFT:
        weight = "" if lacking is None else f", which still lack {lacking:.3g} of their weight,"
        notes.append(
            f"Averages of {state.steps} batches{weight} go on otherwise: {here.name} "
            f"{'divides' if here.debiased else 'does not divide'} by that weight, and {there.name} "
            f"{'does' if there.debiased else 'does not'}. Inference is the same."
        )
    return notes


def _training(here: Dialect, there: Dialect) -> list[str]:
    if here.normalizes_by == there.normalizes_by:
        return []
    by = {"batch": "the statistics of the batch", "running": "the running ones"}
    return [
        f"Training normalizes by {by[there.normalizes_by]} in {there.name}, by {by[here.normalizes_by]} in {here.name}."
    ]


def _gamma(there: Dialect, state: Neutral) -> list[str]:
    if there.fix_gamma and state.gamma is not None and not (state.gamma == 1).all():
        return [f"Make the operator with fix_gamma=False: if nothing is said, {there.name} takes gamma for 1."]
    return []


def _eps(there: Dialect, state: Neutral, known: Knowledge) -> list[str]:
    to = there.least_eps
    finite = state.var[np.isfinite(state.var)]
    if known.eps is None or known.eps >= to or not finite.size:
        return []
    eps: float = known.eps
    smallest = max(float(finite.min()), 0.0)
    if smallest + eps == 0:
        return [f"eps 0 becomes {least(there)}; where the variance is 0, results differ wholly."]
    change = 1 - float(((smallest + eps) / (smallest + to)) ** 0.5)
    return [f"eps {eps:g} becomes {least(there)}; inference changes by up to {change:.2g} of it."]


def _counts(there: Dialect, state: Neutral, made: dict[Role, Any]) -> list[str]:
    if "count" in made and not there.debiased and state.steps is None:
        word = there.names["count"]
        return [
            f"{word} is 0, because the source does not count batches. Only an average of all batches asks for it, in "
            "PyTorch momentum=None: for that, set it to their number, or the next batch replaces the statistics."
        ]
    return []


def _values(state: Neutral) -> list[str]:
    bad = int(np.count_nonzero(~((state.var >= 0) & np.isfinite(state.var) & np.isfinite(state.mean))))
    if not bad:
        return []
    of = f"{bad} of {state.var.size} channels"
    return [f"Statistics are NaN, infinite or negative in {of}; they are carried over as they are."]
