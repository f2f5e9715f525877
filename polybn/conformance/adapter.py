"""What the kit asks of a batch norm: four methods, NumPy in, NumPy out, and a declaration of its conventions.

The adapter declares what its library means by momentum, which variance it keeps, and what it does with one value per
channel or with none. The kit also detects each convention from inputs with exact answers; a declaration that does not
match what was seen is a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


class Info(NamedTuple):
    """What an adapter declares; :func:`polybn.conformance.check` tests whether it is true."""

    name: str
    """The name for people: ``"PyTorch, channels last"``."""
    version: str
    """The version of the library, and what else results depend on: ``"2.13.0, CPU"``."""
    momentum: Literal["old", "new"] = "old"
    """The value that the library's momentum weighs: the old running value (the specification), or the new one."""
    running_variance: Literal["biased", "unbiased"] = "biased"
    """The variance of the batch that ``running_var`` is updated with."""
    single_value: Literal["beta", "error"] = "beta"
    """Training on one value per channel returns beta, or raises an error."""
    empty: Literal["kept", "changed", "error"] = "kept"
    """Training on no values keeps the running statistics, changes them (usually to NaN), or raises an error."""
    dtypes: tuple[str, ...] = ("float32",)
    """The dtypes of x, among float16, bfloat16 (from ml_dtypes), float32 and float64. Parameters and statistics travel
    as float32, and as float64 with float64 x."""
    axes: Literal["any", "second", "last"] = "any"
    """Any channel axis is served, or axis 1 only, or the last axis only."""
    ranks: tuple[int, ...] = (2, 3, 4, 5)
    """The ranks of x."""
    tracks: bool = True
    """Whether ``train`` updates running statistics. If not, it returns any two of the right shape; they are ignored."""
    infers: bool = True
    """Whether the method ``infer`` exists."""
    differentiates: bool = True
    """Whether the method ``vjp`` exists."""
    flushes: bool = False
    """Whether subnormal numbers are flushed to zero."""
    compiles: bool = False
    """Whether each new shape is compiled, which is slow: random calls then use only a few shapes and options."""
    max_kappa: float | None = None
    """For one-pass algorithms: the largest ``sqrt(1 + mean^2 / variance)`` at which results are meant to be right."""
    trains_by: Literal["batch", "running"] = "batch"
    """Training normalizes by the statistics of the batch (the specification), or by the updated running ones."""
    differentiates_inference: bool = False
    """Whether the method ``infer_vjp`` exists, the derivative of a frozen batch norm."""
    dialect: str = ""
    """The name of a dialect, such as ``"pytorch"``: of ``momentum``, ``running_variance``, ``single_value``, ``empty``
    and ``trains_by``, those that are left at their defaults are then declared as :mod:`polybn.dialects` has them."""
    of_backend: bool = False
    """Whether it is a backend of PolyBN, which follows the specification: it declares only what its ``Traits`` hold."""


class Adapter(Protocol):
    """One implementation of batch norm, as the kit sees it. ``momentum`` means what :class:`Info` declares."""

    def info(self) -> Info:
        """Declare name, version and conventions; the same each time.

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
            One of the dtypes and ranks that :meth:`info` declares.
        gamma, beta, running_mean, running_var : ndarray, shape (C,)
            float32, or float64 with float64 ``x``.
        momentum : float
            The weight of the value that :meth:`info` declares, the old or the new one.
        eps : float
            Added to the variance.
        axis : int
            The channel axis, not negative where :meth:`info` declares ``axes``: always 1 with ``"second"``, and
            ``x.ndim - 1`` with ``"last"``.

        Returns
        -------
        y : ndarray, shape and dtype of x
        running_mean, running_var : ndarray, shape (C,)
            The updated statistics.
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
            The gradient of ``gamma``.
        ndarray, shape (C,)
            The gradient of ``beta``.
        """

    # One more method is optional: def infer_vjp(self, x, gamma, beta, running_mean, running_var, dy, /, *, eps, axis)
    # returns the gradients of x, gamma and beta in inference. An adapter that has it declares differentiates_inference.
