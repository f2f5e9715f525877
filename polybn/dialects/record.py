"""The facts of a dialect: the conventions of one implementation of batch norm in one framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal[
    "gamma", "beta", "running_mean", "running_var", "hidden_mean", "hidden_var", "count", "second_count", "factor",
    "first",
]  # fmt: skip
"""The roles of the arrays of a state, independent of their names in a framework."""

SCALARS: tuple[Role, ...] = ("count", "second_count", "factor", "first")
"""The roles with one value for all channels."""
FUNCTION = "polybn.dialects.convert"
CUMULATIVE = ("polybn", "pytorch", "pytorch_sync")
"""The dialects in which a momentum of None averages over all batches alike."""
FIXING = ("mxnet_native", "mxnet_cudnn", "gluon")
"""The dialects of one operator, which may be told to take gamma for 1; Gluon's own word for that is scale=False."""
ENDLESS = 2**30
"""A number of batches after which the initial value has no weight, and which a 32-bit counter can still exceed."""
ABOVE_0 = 5e-324
"""The smallest positive number, as ``least_eps`` of frameworks that accept any positive eps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """The conventions of one implementation of batch norm. The defaults are those of the specification, S1 to S12."""

    name: str
    """The key in :data:`polybn.dialects.DIALECTS`."""
    title: str
    """The framework and its layer or function, as users write them."""
    names: Mapping[Role, str]
    """The framework's name for each array of the state."""
    source: str
    """The source of these facts: an address, or a module with its version."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Other sources for single facts, by the name of the field."""
    momentum_weighs: Literal["old", "new"] = "old"
    """The value that momentum weighs: the old running value, or the batch's."""
    momentum: float | None = 0.9
    """The default momentum of a layer in the framework's own sense; None if there is no default."""
    momentum_word: str = "momentum"
    """What the framework calls it."""
    eps: float = 1e-5
    """The default eps of a layer."""
    eps_word: str = "eps"
    """What the framework calls it."""
    least_eps: float = 0.0
    """The smallest eps that the framework accepts."""
    running_variance: Literal["biased", "unbiased", "unspecified"] = "biased"
    """The batch variance in the update of the running variance, divided by m or by m - 1."""
    normalizes_by: Literal["batch", "running"] = "batch"
    """The statistics that normalize in training: the batch's, or the running ones after their update."""
    average: Literal["plain", "first", "debiased", "debiased from 1"] = "plain"
    """How running statistics begin: at their initial values; with the first batch's; at 0, divided by the weight that
    the batches have so far; or divided in the same way although the variance begins at 1."""
    stored: Literal["variance", "inverse root", "sums"] = "variance"
    """The stored form: the variance; ``1 / sqrt(variance + eps)``; or weighted sums with their divisor."""
    initial_mean: float = 0.0
    """The running mean before any training."""
    initial_var: float = 1.0
    """The running variance before any training."""
    dtype: Literal["float32", "layer", "input"] = "layer"
    """The dtype of the state: always float32, the layer's, or the input's."""
    changes_in: Literal["forward", "backward"] = "forward"
    """The pass that changes the running statistics."""
    single_value: Literal["beta", "error", "nan", "unknown"] = "beta"
    """The result of training on one value per channel: y is beta, an error, or a state of NaN."""
    empty: Literal["kept", "changed", "error", "unknown"] = "unknown"
    """The effect of training on no values on the running statistics."""
    fix_gamma: bool = False
    """Whether by default gamma counts as 1, whatever the state holds."""
    affine: Literal["together", "apart", "always"] = "apart"
    """Whether gamma and beta can be switched off: only both together, each by itself, or never."""
    affine_words: tuple[str, ...] = ()
    """What the framework calls the switches of gamma and of beta, which may be one; none if they cannot be said."""
    optional: frozenset[Role] = frozenset()
    """The arrays that not every state needs, such as a number of updates on which no momentum depends."""
    axis: int = 1
    """The default or only channel axis."""
    any_axis: bool = False
    """Whether the channel axis may be chosen."""
    remark: str = ""
    """Other facts for its users."""

    @property
    def debiased(self) -> bool:
        """Whether the running statistics are divided by the weight of all batches so far."""
        return self.average in ("debiased", "debiased from 1")

    @property
    def may_lack(self) -> frozenset[Role]:
        """The roles of the arrays that may be missing in a state."""
        affine: tuple[Role, ...] = () if self.affine == "always" else ("gamma", "beta")
        return frozenset((*affine, *(() if self.debiased else ("count",))))
