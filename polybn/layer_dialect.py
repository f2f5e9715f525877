"""The meaning of a layer's options in a dialect, and which of them were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.dialects import Dialect
    from polybn.spec import RunningVariance


class _Unsaid:
    """A default that equals its value, so that a dialect's default can replace an option that was not given."""


class _Number(_Unsaid, float):
    pass


class _Whole(_Unsaid, int):
    pass


class _Word(_Unsaid, str):
    pass


MOMENTUM: float = _Number(0.9)
EPS: float = _Number(1e-5)
AXIS: int = _Whole(1)
RUNNING_VARIANCE: RunningVariance = _Word("biased")  # type: ignore[assignment]


class Manner(NamedTuple):
    """The changes that a dialect makes to a layer, beside its options."""

    dialect: str | None = None
    """The name of the dialect, if momentum depends on the step."""
    mean: float = 0.0
    """The running mean before training."""
    var: float = 1.0
    """The running variance before training."""
    fix_gamma: bool = False
    """Whether gamma counts as 1, so that the layer has no gamma."""

    def momentum(self, momentum: float | None, updates: int) -> float:
        """Return the weight of the old value after a number of updates."""
        if momentum is None:
            return updates / (updates + 1)
        if self.dialect is None:
            return momentum
        from polybn.dialects.calls import debiased

        return debiased(momentum, updates + 1)


def said(value: Any) -> bool:
    """Return whether an option was given."""
    return not isinstance(value, _Unsaid)


def in_dialect(dialect: Dialect | str, options: dict[str, Any]) -> tuple[dict[str, Any], Manner]:
    """Return the given ``options`` in PolyBN's sense, and the other changes that the dialect makes to a layer."""
    from polybn.dialects import find
    from polybn.dialects.calls import arguments
    from polybn.dialects.record import CUMULATIVE, ENDLESS

    found = find(dialect, function="BatchNorm")
    if "running_variance" in options:
        raise DomainError(
            f"polybn.BatchNorm: running_variance must be left out beside a dialect; got "
            f"{options['running_variance']!r} ({found.name} keeps the {found.running_variance} variance)"
        )
    cumulative = "momentum" in options and options["momentum"] is None
    if cumulative and found.name not in CUMULATIVE:
        raise DomainError(
            f"polybn.BatchNorm: momentum must be a number in the dialect {found.name}; got None "
            f"(an average of all batches is known to {' and '.join(CUMULATIVE)} alone)"
        )
    given = {name: value for name, value in options.items() if not (cumulative and name == "momentum")}
    # The layer counts its steps itself, and a step so late shows the momentum unchanged.
    settled = arguments(found, given, ENDLESS if found.debiased else None, "BatchNorm")
    manner = Manner(found.name if found.debiased else None, found.initial_mean, found.initial_var, found.fix_gamma)
    return settled | ({"momentum": None} if cumulative else {}), manner
