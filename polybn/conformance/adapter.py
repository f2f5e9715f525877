"""What the kit asks of a batch norm: four methods, NumPy in, NumPy out, and a declaration of its conventions.

Nothing is guessed. What a library means by momentum, which variance it keeps, what it does with one value
per channel or with none, its adapter declares; the kit detects each of them from exact inputs, too, and a
declaration that does not match what was seen is a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


class Info(NamedTuple):
    """What an adapter declares; :func:`polybn.conformance.check` holds it to it."""

    name: str
    """For people: ``"PyTorch, channels last"``."""
    version: str
    """Of the library, with what else results depend on: ``"2.13.0, CPU"``."""
    momentum: Literal["old", "new"] = "old"
    """Which value the library's momentum weighs: the old running value (the specification), or the new one."""
    running_variance: Literal["biased", "unbiased"] = "biased"
    """What the running variance takes in."""
    single_value: Literal["beta", "error"] = "beta"
    """Training on one value per channel: the output is beta, or an error is raised."""
    empty: Literal["kept", "changed", "error"] = "kept"
    """Training on no values: running statistics are kept, or changed (NaN as a rule), or an error is raised."""
    dtypes: tuple[str, ...] = ("float32",)
    """Of x, among float16, bfloat16 (from ml_dtypes), float32 and float64. Parameters and statistics travel as float32,
    and as float64 with float64 x."""
    axes: Literal["any", "second"] = "any"
    """Whether any channel axis is served, or only axis 1."""
    ranks: tuple[int, ...] = (2, 3, 4, 5)
    """Of x."""
    tracks: bool = True
    """Whether ``train`` updates running statistics. Where not, it hands back any of the right shape, unread."""
    infers: bool = True
    """Whether ``infer`` is there."""
    differentiates: bool = True
    """Whether ``vjp`` is there."""
    flushes: bool = False
    """Whether subnormal numbers are flushed to zero."""
    compiles: bool = False
    """Whether each new shape is compiled, which takes long: random calls then have one of a few shapes and options."""
    max_kappa: float | None = None
    """For one-pass algorithms: the largest ``sqrt(1 + mean^2 / variance)`` at which results are meant to be right."""


class Adapter(Protocol):
    """One implementation of batch norm, as the kit sees it. ``momentum`` means what :class:`Info` declares."""

    def info(self) -> Info:
        """Declare name, version and conventions.

        Returns
        -------
        Info
        """

    def train(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        /,
        *,
        momentum: float,
        eps: float,
        axis: int,
    ) -> tuple[Array, Array, Array]:
        """Normalize by batch statistics; inputs stay unchanged.

        Parameters
        ----------
        x : ndarray, shape (N, C, ...)
            Of one of the dtypes and ranks that :meth:`info` declares.
        gamma, beta, running_mean, running_var : ndarray, shape (C,)
            float32, or float64 with float64 ``x``.
        momentum : float
            As the library means it.
        eps : float
            Added to the variance.
        axis : int
            The channel axis; always 1 where :meth:`info` declares ``axes="second"``.

        Returns
        -------
        y : ndarray, shape and dtype of x
        running_mean, running_var : ndarray, shape (C,)
            Updated.
        """

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, /, *, eps: float, axis: int
    ) -> Array:
        """Normalize by running statistics; arguments are as :meth:`train` has them.

        Returns
        -------
        ndarray, shape and dtype of x
        """

    def vjp(
        self, x: Array, gamma: Array, beta: Array, dy: Array, /, *, eps: float, axis: int
    ) -> tuple[Array, Array, Array]:
        """Differentiate ``sum(y * dy)`` in training mode; arguments are as :meth:`train` has them.

        Parameters
        ----------
        dy : ndarray, shape and dtype of x

        Returns
        -------
        ndarray, shape and dtype of x
            The gradient of ``x``.
        ndarray, shape (C,)
            That of ``gamma``.
        ndarray, shape (C,)
            That of ``beta``.
        """
