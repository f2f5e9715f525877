"""One batch norm of a file in the terms of the specification: vectors by role, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.dialects import DIALECTS, POLYBN, convert
from polybn.dialects.said import to_old
from polybn.model_files.errors import of_layer
from polybn.spec import DomainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from polybn.dialects import Dialect
    from polybn.model_files import Norm

    Floats = NDArray[np.float64]


class Channels(NamedTuple):
    """The values for inference, and the facts in the file."""

    name: str
    dialect: Dialect
    gamma: Floats
    beta: Floats
    mean: Floats
    var: Floats
    eps: float
    """The eps in the file, or else the dialect's default."""
    eps_known: bool
    momentum: float | None
    """The weight of the old value; None if the file has no momentum."""
    batches: int | None
    """The number of batches so far, if the file counts them."""
    training: bool
    lacks: str

    @property
    def root(self) -> Floats:
        """The inverse root; NaN for a negative variance."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.var + self.eps) ** -0.5)

    @property
    def ratio(self) -> Floats:
        """The distance of the mean from 0 in standard deviations; infinite if these are 0."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.asarray(np.abs(self.mean) / np.sqrt(self.var))


def unknown(norm: Norm) -> str:
    """Return why the statistics of a batch norm cannot be told; empty if they can."""
    dialect = DIALECTS[norm.dialect]
    for word, needed, what in _needs(dialect):
        if needed and word not in norm.options:
            return f"{dialect.name} stores {what}, and the file does not say {word}"
    kept = ("running_mean", "running_var") if "running_mean" in dialect.names else ("hidden_mean", "hidden_var")
    return "" if all(_find(norm, dialect, role) is not None for role in kept) else norm.lacks


def _needs(dialect: Dialect) -> Iterator[tuple[str, bool, str]]:
    """Yield the options, whether a dialect's statistics can only be read with them, and what it stores then."""
    yield dialect.eps_word, dialect.stored == "inverse root", "1 / sqrt(variance + eps)"
    yield dialect.momentum_word, dialect.average == "debiased from 1", "averages times 1 minus a power of the momentum"


def channels_of(norm: Norm) -> Channels | None:
    """Return the channels of a batch norm, or None if its statistics are :func:`unknown`."""
    if unknown(norm):
        return None
    dialect = DIALECTS[norm.dialect]
    words = {dialect.eps_word: "eps", dialect.momentum_word: "momentum"}
    said = {words[word]: value for word, value in norm.options.items() if word in words}
    with of_layer("inspect", norm.name), np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        state = {role: array.astype(np.float64) for role, array in _neutral(norm, dialect).items()}
    size = state["running_mean"].size
    state = {"gamma": np.ones(size), "beta": np.zeros(size)} | state
    count = _find(norm, dialect, "count")
    return Channels(
        name=norm.name,
        dialect=dialect,
        gamma=state["gamma"],
        beta=state["beta"],
        mean=state["running_mean"],
        var=state["running_var"],
        eps=float(said.get("eps", dialect.eps)),
        eps_known="eps" in said,
        momentum=to_old(dialect, momentum) if (momentum := said.get("momentum")) is not None else None,
        batches=None if count is None else int(count.reshape(-1)[0]),
        training=norm.training,
        lacks=norm.lacks,
    )


def _find(norm: Norm, dialect: Dialect, role: Any) -> NDArray[Any] | None:
    return norm.state.get(dialect.names[role]) if role in dialect.names else None


def _neutral(norm: Norm, dialect: Dialect) -> dict[str, NDArray[Any]]:
    """Return a state under PolyBN's names; a state with missing arrays keeps the others."""
    options = {word: norm.options[word] for word, needed, _ in _needs(dialect) if needed}
    options |= {"fix_gamma": norm.options.get("fix_gamma", False)} if dialect.fix_gamma else {}
    try:
        return convert(norm.state, dialect, POLYBN, options=options).state
    except DomainError:
        if not norm.lacks:
            raise
        roles = {own: role for role, own in dialect.names.items()}
        return {roles[own]: array for own, array in norm.state.items()}
