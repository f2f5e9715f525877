"""The facts of a dialect: what one framework, on one path through it, means by the words of batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal[
    "gamma", "beta", "running_mean", "running_var", "hidden_mean", "hidden_var", "count", "second_count", "factor",
    "first",
]  # fmt: skip
"""What an array of a state is for, whatever a framework calls it."""

ABOVE_0 = 5e-324
"""The least number above 0, as the least eps of those who take any that is positive."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What one framework means by the words of batch norm. The defaults are the specification's own, S1 to S12."""

    name: str
    """The key in :data:`polybn.dialects.DIALECTS`."""
    title: str
    """The framework, and the layer or function, as its users write it."""
    names: Mapping[Role, str]
    """What the framework calls each array of the state."""
    source: str
    """Where these facts are said: an address or a module, and its version."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """For single facts, by the name of the field, where another place says them."""
    momentum_weighs: Literal["old", "new"] = "old"
    """The value that momentum weighs: the old running value, or the batch's."""
    momentum: float | None = 0.9
    """The momentum that a layer has if nothing is said, in the framework's own sense; None if it must be said."""
    momentum_word: str = "momentum"
    """What the framework calls it."""
    eps: float = 1e-5
    """The eps that a layer has if nothing is said."""
    eps_word: str = "eps"
    """What the framework calls it."""
    least_eps: float = 0.0
    """The least eps that the framework takes."""
    running_variance: Literal["biased", "unbiased", "unspecified"] = "biased"
    """The batch variance that the running variance takes in: over m, or over m - 1 values."""
    normalizes_by: Literal["batch", "running"] = "batch"
    """The statistics that training normalizes by: the batch's, or the running ones after their update."""
    average: Literal["plain", "first", "debiased", "debiased from 1"] = "plain"
    """How running statistics begin: at their initial values; with the first batch's; at 0, divided by the weight that
    the batches have so far; or divided in the same way although the variance begins at 1."""
    stored: Literal["variance", "inverse root", "sums"] = "variance"
    """What the state holds: the variance; ``1 / sqrt(variance + eps)``; or weighted sums, and what divides them."""
    initial_mean: float = 0.0
    """The running mean before any training."""
    initial_var: float = 1.0
    """The running variance before any training."""
    dtype: Literal["float32", "layer", "input"] = "layer"
    """The dtype of the state: always float32, the one that the layer is made with, or that of the input."""
    changes_in: Literal["forward", "backward"] = "forward"
    """The pass that changes the running statistics."""
    single_value: Literal["beta", "error", "nan", "unknown"] = "beta"
    """What training on one value per channel does: returns beta, raises an error, or leaves a state that is NaN."""
    empty: Literal["kept", "changed", "error", "unknown"] = "unknown"
    """What training on no values does to the running statistics."""
    fix_gamma: bool = False
    """Whether gamma is taken for 1, whatever the state holds, if nothing is said."""
    affine: Literal["together", "apart", "always"] = "apart"
    """Whether gamma and beta are there or not together, each for itself, or always."""
    optional: frozenset[Role] = frozenset()
    """What a state has only where it matters: a layer's number of updates, if its momentum depends on it."""
    axis: int = 1
    """The channel axis if nothing is said, or if there is no choice."""
    any_axis: bool = False
    """Whether the channel axis may be chosen."""
    remark: str = ""
    """What else its users should know."""

    @property
    def debiased(self) -> bool:
        """Whether the running statistics are divided by what their beginning leaves out."""
        return self.average in ("debiased", "debiased from 1")

    @property
    def may_lack(self) -> frozenset[Role]:
        """Roles of the arrays that a state may lack."""
        affine: tuple[Role, ...] = () if self.affine == "always" else ("gamma", "beta")
        return frozenset((*affine, *(() if self.debiased else ("count",))))
