"""A state without the storage conventions of any framework."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.dialects.record import ENDLESS, FUNCTION
from polybn.spec import DomainError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from polybn.dialects.dialect import Dialect
    from polybn.dialects.record import Role

    Arrays = Mapping[Role, NDArray[Any]]
    Wide = NDArray[np.float64]


class Neutral(NamedTuple):
    """Parameters and statistics in float64, in the form for inference."""

    gamma: Wide | None
    beta: Wide | None
    mean: Wide
    var: Wide
    steps: int | None
    """The number of batches so far; None if unknown."""


class Knowledge(NamedTuple):
    """The known options of a layer in PolyBN's sense; None for unknown ones."""

    momentum: float | None
    eps: float | None
    fix_gamma: bool | None
    steps: int | None

    def need_momentum(self, dialect: Dialect) -> float:
        """Return the weight of the old value."""
        if self.momentum is None:
            raise DomainError(
                f"{FUNCTION}: options must have {dialect.momentum_word} here; got none "
                f"(the statistics of {dialect.name} are divided by what the first batches leave out)"
            )
        if self.momentum == 1:
            raise DomainError(
                f"{FUNCTION}: options must give the batch a weight above 0; got none (the statistics of {dialect.name} "
                "are divided by the weight of all batches)"
            )
        return self.momentum

    def need_eps(self, dialect: Dialect) -> float:
        """Return eps."""
        if self.eps is None:
            raise DomainError(
                f"{FUNCTION}: options must have eps here; got none ({dialect.name} stores 1 / sqrt(variance + eps))"
            )
        return self.eps


def read(arrays: Arrays, dialect: Dialect, known: Knowledge) -> Neutral:
    """Read a dialect's arrays as its inference uses them."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which becomes a quiet one
        wide = {role: array.astype(np.float64) for role, array in arrays.items()}
    mean, var, steps = _read_statistics(wide, dialect, known)
    gamma, beta = wide.get("gamma"), wide.get("beta")
    if gamma is not None and not (gamma == 1).all():
        if dialect.fix_gamma and known.fix_gamma is None:
            raise DomainError(
                f"{FUNCTION}: options must have fix_gamma where gamma is not 1; got none "
                f"({dialect.name} takes gamma for 1 if nothing is said; look how the operator was made)"
            )
        gamma = np.ones_like(gamma) if known.fix_gamma else gamma
    return Neutral(gamma, beta, mean, var, steps if known.steps is None else known.steps)


def _read_statistics(wide: Mapping[Role, Wide], dialect: Dialect, known: Knowledge) -> tuple[Wide, Wide, int | None]:
    count = int(wide["count"]) if "count" in wide else None
    if dialect.stored == "sums":
        factor = float(wide["factor"].item())
        scale = 0.0 if factor == 0 else 1 / factor
        return wide["running_mean"] * scale, wide["running_var"] * scale, _steps_of(factor, known)
    if dialect.average == "debiased from 1":
        whole = 1.0 if count == 0 else 1 - known.need_momentum(dialect) ** (count or 0)
        return wide["hidden_mean"] / whole, wide["hidden_var"] / whole, count
    if dialect.average == "first":
        count = 0 if wide["first"] else None
    var = wide["running_var"]
    if dialect.stored == "inverse root":
        with np.errstate(divide="ignore"):
            var = np.maximum(var**-2.0 - known.need_eps(dialect), 0)
    return wide["running_mean"], var, count


def _steps_of(factor: float, known: Knowledge) -> int | None:
    """Return the number of batches that gives a factor ``1 + rho + rho^2 + ...``, or None if it cannot be known."""
    if factor == 0:
        return 0
    if known.momentum is None:
        return None
    if known.momentum == 1:
        return min(round(factor), ENDLESS)
    left = 1 - factor * (1 - known.momentum)
    # A remainder within float32's rounding errors means that the initial value has no weight.
    return round(math.log(left) / math.log(known.momentum)) if left > 2.0**-20 and known.momentum > 0 else ENDLESS


def write(state: Neutral, dialect: Dialect, known: Knowledge, steps: int | None) -> dict[Role, Any]:
    """Store a state as a dialect does; ``steps=None`` gives the initial value no weight."""
    made: dict[Role, Any] = {"gamma": state.gamma, "beta": state.beta}
    made |= _write_statistics(state, dialect, known, steps)
    return {role: made[role] for role in dialect.names if made.get(role) is not None}


def _write_statistics(state: Neutral, dialect: Dialect, known: Knowledge, steps: int | None) -> dict[Role, Any]:
    mean, var = state.mean, state.var
    counter = np.int32(ENDLESS if steps is None else min(steps, ENDLESS))
    if dialect.stored == "sums":
        factor = _factor(known, steps)
        return {"running_mean": mean * factor, "running_var": var * factor, "factor": np.array([factor])}
    if dialect.average == "debiased from 1":
        whole = _whole(dialect, known, steps)
        return {"hidden_mean": mean * (whole or 1), "hidden_var": var * (whole or 1), "count": counter}
    plain: dict[Role, Any] = {"running_mean": mean, "running_var": var}
    if dialect.average == "debiased":
        whole = _whole(dialect, known, steps)
        hidden: dict[Role, Any] = {"hidden_mean": mean * whole, "hidden_var": var * whole}
        return plain | hidden | {"count": counter, "second_count": counter}
    if dialect.average == "first":
        return plain | {"first": np.bool_(steps == 0)}
    if dialect.stored == "inverse root":
        with np.errstate(divide="ignore", invalid="ignore"):
            plain["running_var"] = (var + known.need_eps(dialect)) ** -0.5
    return plain


def _whole(dialect: Dialect, known: Knowledge, steps: int | None) -> float:
    """Return the weight of all batches in an average, without its initial value."""
    return 1.0 if steps is None or steps >= ENDLESS else 1 - known.need_momentum(dialect) ** steps


def _factor(known: Knowledge, steps: int | None) -> float:
    """Return Caffe's factor: the sum of the weights of all batches, each rho times the weight of the next."""
    if steps == 0:
        return 0.0
    if known.momentum is None or known.momentum == 1:
        return float(steps or 1) if known.momentum == 1 else 1.0
    return (1 - (0.0 if steps is None else known.momentum**steps)) / (1 - known.momentum)
