"""The contract: what batch normalization means here, clause by clause.

Everything in PolyBN answers to this file. It holds prose, result types, error classes and the
protocol of a backend; it runs no array code and imports no array library. The argument checks that go with
clause S14 are in :mod:`polybn.arguments`.

Notation. ``x`` has shape ``(N, C, ...)``, or the channel axis elsewhere; a channel has ``m``
values ``x_i``; ``u`` is the unit roundoff of the arithmetic; ``rho`` is the momentum;
``kappa = sqrt(1 + mean^2 / variance)`` measures how far a channel sits from zero.

**S1 Axes.** Statistics are taken over every axis but the channel axis: ``m = x.size / C`` values
per channel. ``x`` has rank 2 or more, any strides, and its channel axis at ``axis`` (default 1;
negative counts from the end). The order in which a channel's values enter a sum is their order in
``x`` read row by row with the channel axis left out, so that memory layout cannot change a bit.

**S2 Statistics.** The *kappa-free* form, in float32 or wider::

    m1    = mean(x)                           rounded, and known exactly from here on
    d_i   = x_i - m1
    delta = mean(d)                           the rounding error of m1, measured
    v     = max(mean(d * d) - delta^2, 0)     the biased variance
    mean  = m1 + delta

``m1`` is a floating-point number, so its own rounding error can be measured and removed: the
error of ``v`` and of ``d - delta`` does not grow with ``kappa``. The textbook ``E[x^2] - E[x]^2``
loses ``kappa^2`` and goes negative; the plain two-pass form loses ``kappa``.

**S3 Output.** ``y_i = ((d_i - delta) * r) * gamma + beta`` with ``r = 1 / sqrt(v + eps)``: eps
lies inside the root. ``gamma=None`` means 1 and ``beta=None`` means 0, with the multiplication
and the addition left out. ``eps`` is a Python number, applied in the type of the statistics. It may be 0, and
then ``r = 0`` wherever ``v = 0``.

**S4 Running statistics.** ``new = rho * old + (1 - rho) * batch``: ``momentum`` is the weight of
the OLD value (Keras, Flax, ONNX, MXNet; PyTorch's momentum is ``1 - rho``). ``running_mean`` takes
the mean; ``running_var`` takes ``v`` (``running_variance="biased"``: Keras, Flax, ONNX, MXNet on CPU) or
``v * m / (m - 1)`` (``"unbiased"``: PyTorch). ``rho = 1`` keeps the old value and ``rho = 0`` takes the
batch's, exactly. Output is normalized by the batch's own statistics, never by the updated ones.

**S5 Inference.** ``training=False`` uses the running statistics in place of the batch's,
``y = ((x - running_mean) * r) * gamma + beta``, and hands them back unchanged.

**S6 Types.** ``y`` has the dtype of ``x``. Parameters and statistics are float32, or float64 when ``x``
is float64. float16 and bfloat16 store values and never compute.

=====================  =========================================  =========================
dtype of ``x``         ``gamma beta running_mean running_var``    arithmetic, at least in
=====================  =========================================  =========================
float16, bfloat16      float32                                    float32
float32                float32                                    float32
float64                float64                                    float64
=====================  =========================================  =========================

**S7 Purity.** No input is written; no output shares memory with an input; the same call gives
the same bits; running statistics change once, in the forward pass, and never in a backward pass.

**S8 Constant channels.** A channel of equal finite values gives, exactly, ``v = 0``, ``xhat = 0``, ``y = beta`` and
``dgamma = 0``. Its ``dx`` is what S13 says with ``r = 1 / sqrt(eps)``, and 0 if ``eps = 0``.

**S9 NaN and infinity** in ``x`` stay in their channel; every other channel is, to the bit, what it would be
without them. In training that channel's ``y``, ``dx``, ``dgamma`` and running statistics are NaN throughout, even where
``gamma`` is 0; ``dbeta`` does not depend on ``x``.

**S10 Range.** Finite input is never finite and wrong. Sums, squares and products on the way may leave the range of a
dtype where the result does not: ``y``, the running statistics and the derivatives of S13 are then as accurate as
anywhere else, in training and in inference. A result that lies outside the range is infinity of its sign, such as a
variance too large for its dtype in ``running_var``. How a backend does it is its own affair: in a wider type, or from
``x * 2^-k`` and ``dy * 2^-l``, which is exact; but ``r`` comes from eps as it is given, never from a scaled eps that
has vanished. Libraries that flush subnormal numbers do so here, too.

**S11 Degenerate shapes.** With ``m = 1`` the output is ``beta``, and training warns with
:class:`SingleValueWarning`; ``running_variance="unbiased"`` is then an error.
``N = 0`` or ``C = 0`` (``m = 0``) gives an empty ``y``, running statistics unchanged, zero gradients, no warning.

**S12 where.** A boolean array that broadcasts to the shape of ``x``, True for the values that take part.
The result is exactly as if the others were deleted, NaN among them included: each channel has its own
``m``. In the deleted places ``y`` and ``dx`` are 0, and ``dy`` is not read. A channel with nothing
left keeps its running statistics; one with a single value left is an error for ``"unbiased"``.

**S13 Derivatives.** With ``g = dy``, ``xhat = (d - delta) * r`` and means over the channel::

    dbeta  = sum(g)
    dgamma = sum(g * xhat)
    dx     = gamma * r * (g - mean(g) - xhat * mean(g * xhat))       training
    dx     = gamma * r * g                                           inference
    drunning_mean = -gamma * r * sum(g)                              inference
    drunning_var  = -gamma * r^2 * sum(g * xhat) / 2                 inference

Running statistics carry no gradient in training. Nothing divides by ``gamma``, so ``gamma = 0`` is
no special case. Where ``r = 0`` by S3, ``dx = 0``. The second order is the derivative of these five lines, through
the library's own differentiation where it has one, else through ``pullback.vjp``.

**S14 Errors.** A bad call raises before any work is done and changes nothing. The class and the
words are the same on every backend: ``polybn.<function>: <argument> must <rule>; got <value> (<what
fixes the rule>)``. One exception: where the host would have to wait for a device to see a bad *value*
(never a shape or dtype), a backend may answer it with NaN in the results of its channel: CuPy does, and
JAX under tracing skips the same checks.

**S15 Moments.** ``moments`` returns ``(count, mean, m2, low)`` per channel: ``m2 = v * m``, and ``low`` is what the
mean lost when it was rounded to its dtype, so that ``mean + low`` is as good as ``m1 + delta`` of S2. ``merge_moments``
combines two of them: counts add exactly, an empty part changes nothing, to the bit, and for parts a, b, the larger one
first, with ``D = (mean_b - mean_a) + (low_b - low_a)``::

    mean + low = mean_a + low_a + D * n_b / n        m2 = m2_a + m2_b + D^2 * n_a * n_b / n

Uneven parts are weighted by their counts. A merge is kappa-free, as S2 is: it adds to the error of ``mean + low`` a few
``u`` of the standard deviation and ``u^2`` of the mean, and to that of ``m2`` a few ``u`` of ``m2``. In a part whose
``low`` is None, it counts as 0; the rounding of that part's mean is then an error of the whole, to first order in
``u * kappa``. A backend may let ``moments`` take integers, too: sums are then exact, whatever their size, and ``mean``,
``low`` and ``m2`` are the float64 numbers next to the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = Any
"""An array of whichever library the backend serves; all arrays of one call are of one library."""

RunningVariance: TypeAlias = Literal["biased", "unbiased"]


class ShapeError(ValueError):
    """A shape or an axis does not fit."""


class DTypeError(TypeError):
    """A dtype, or the Python type of an option, is not one that the specification allows."""


class BackendError(TypeError):
    """No backend serves these arrays, or they belong to several, or the named one cannot run."""


class DomainError(ValueError):
    """A value lies outside the set on which the specification defines a result."""


class SingleValueWarning(UserWarning):
    """A batch norm trains on one value per channel: the output is beta, whatever the input (S11)."""


class BatchNormResult(NamedTuple):
    """What :func:`polybn.batch_norm` returns."""

    y: Array
    """Normalized values, shape and dtype of ``x``."""
    running_mean: Array | None
    """Shape ``(C,)``; None if none was given."""
    running_var: Array | None
    """Shape ``(C,)``; None if none was given."""


class Gradients(NamedTuple):
    """Cotangents of the arguments of :func:`polybn.batch_norm`; None for an argument that was None."""

    x: Array
    gamma: Array | None
    beta: Array | None
    running_mean: Array | None = None
    """Inference only; in training the running statistics carry no gradient (S13)."""
    running_var: Array | None = None


class SecondGradients(NamedTuple):
    """Cotangents of the arguments of a pullback: of ``dy``, and of what the forward call was given."""

    dy: Array
    x: Array
    gamma: Array | None
    running_mean: Array | None = None
    running_var: Array | None = None


class Moments(NamedTuple):
    """Per-channel statistics that merge: see clause S15. Each field has shape ``(C,)``."""

    count: Array
    """Number of values; integers."""
    mean: Array
    m2: Array
    """Sum of squared deviations from the mean: ``variance * count``."""
    low: Array = None
    """What the mean lost when it was rounded to its dtype, so that ``mean + low`` is more exact; None stands for 0."""

    def variance(self, *, unbiased: bool = False) -> Array:
        """Return the variance per channel in the dtype of the mean; 0 where there are too few values.

        Parameters
        ----------
        unbiased : bool, default False
            Divide by ``count - 1`` instead of ``count``.

        Returns
        -------
        array, shape (C,)

        Examples
        --------
        >>> import numpy as np
        >>> import polybn
        >>> polybn.moments(np.array([[1.0], [2.0], [6.0]])).variance(unbiased=True).tolist()
        [7.0]
        """
        divisor = _cast(self.count - 1 if unbiased else self.count, self.mean.dtype)
        return self.m2 / (divisor + _cast(divisor <= 0, divisor.dtype) * (1 - divisor))

    def std(self, *, unbiased: bool = False) -> Array:
        """Return the standard deviation, the root of :meth:`variance`.

        Parameters
        ----------
        unbiased : bool, default False
            As in :meth:`variance`.

        Returns
        -------
        array, shape (C,)

        Examples
        --------
        >>> import numpy as np
        >>> import polybn
        >>> polybn.moments(np.array([[1.0], [2.0], [6.0]])).std(unbiased=True).round(3).tolist()
        [2.646]
        """
        return self.variance(unbiased=unbiased) ** 0.5


def _cast(array: Array, dtype: Any) -> Array:
    """Convert by the word that the array's library has: a method, or a function of the Array API standard."""
    if hasattr(array, "astype"):
        return array.astype(dtype)
    return array.to(dtype) if hasattr(array, "to") else array.__array_namespace__().astype(array, dtype)


class Affine(NamedTuple):
    """Inference as one multiplication and one addition, ``y = scale * x + shift``. Each has shape ``(C,)``."""

    scale: Array
    shift: Array


class Arguments(NamedTuple):
    """The arguments of one call after the checks, and what follows from them."""

    function: str
    """Name of the public function, for error messages."""
    x: Array
    """None for ``fold``, which has no such argument."""
    gamma: Array
    """Scale per channel; None if it was not given, and so for the four fields below."""
    beta: Array
    running_mean: Array
    """Running mean per channel; in inference neither it nor the running variance is None."""
    running_var: Array
    where: Array
    """Mask of the values that take part; it broadcasts to the shape of ``x``."""
    training: bool
    momentum: float
    eps: float
    unbiased: bool
    """Whether the running variance takes in ``v * m / (m - 1)``."""
    axis: int
    """Channel axis, counted from the front."""
    channels: int
    m: int
    """Number of values per channel before ``where`` deletes some."""
    dtype: str
    """Dtype of parameters and statistics."""
    own: Mapping[str, Any] = {}
    """Keywords that only this backend knows; see :class:`Traits`."""


class Description(NamedTuple):
    """What the argument checks look at in an array; its values are not touched."""

    shape: tuple[int, ...]
    dtype: str
    """Name of the dtype in NumPy's words, such as ``"float32"``."""
    device: Hashable = None
    """Where the array is, in a form that an error can show; None if the library itself sees to devices."""


@dataclass(frozen=True)
class Traits:
    """What a backend says of itself beyond the protocol. A module without ``traits`` has these defaults."""

    library: str = ""
    """The library's name as its users write it, ``"NumPy"``, for messages; the backend's name if left empty."""
    flushes_subnormals: bool = False
    """Whether the library replaces subnormal numbers by 0, at least on some of its devices."""
    jit: Callable[..., Any] | None = None
    """Compiles a function of arrays for each shape; called as ``jit(function, static_argnames=...)``."""
    devices: Callable[[], Mapping[str, Callable[[], AbstractContextManager[Any]]]] | None = None
    """Lists the devices that the library sees, ``"cpu"``, ``"gpu:0"``, each with a context manager that makes it the
    default. None if the library has no such choice."""
    several_devices: bool = False
    """Whether ``compile`` takes ``devices``, a number of devices to train on."""
    native_norm: bool = False
    """Whether the library has a batch norm of its own, which ``compile`` then offers as ``"native"``."""
    variants: Mapping[str, Callable[[], AbstractContextManager[Any]]] = field(default_factory=dict)
    """Context managers by name: inside of each, another implementation serves all calls. The kit grades each."""
    integers: bool = False
    """Whether ``moments`` takes arrays of integers, and returns what S15 says of them."""
    instead_of_integers: str = ""
    """What to do with integers where ``moments`` takes none, in the words of the library's users."""
    sees_values: bool = True
    """Whether a bad value is an error; False where the host would have to wait, and NaN comes out instead (S14)."""
    own: frozenset[str] = frozenset()
    """The backend's own keywords of ``batch_norm``, ``batch_norm_vjp`` and ``moments``, such as ``axis_name``."""
    own_of_pullback: frozenset[str] = frozenset()
    """The backend's own keywords of a pullback."""
    hint: Callable[[Any], str] | None = None
    """Says what a value of the library is that is refused, such as a sparse array, or a traced one as an option, and
    what makes it plain; an empty string if its type says all, and of other values. Error messages show it."""
    fleeting: Callable[[Any], str] | None = None
    """Says of an array that ends with the transformation that traces the program, such as one of JAX's ``jit``, what to
    use there in place of a layer, which would keep it; an empty string of any other. Error messages show it."""
    signature: Callable[[tuple[Any, ...]], Hashable] | None = None
    """Returns what the descriptions of a call's arrays follow from, such as their types, shapes and dtypes, or None if
    :meth:`Backend.inspect` would refuse one; calls of one signature are checked once. To be given where it takes less
    time than to describe each array, which is done without it."""
    joins: str = ""
    """The own keyword that joins ``x`` with values on other devices, so that its shape alone does not fix ``m``."""


class Backend(Protocol):
    """What a backend module provides. Modules fit it; nothing inherits from it.

    The public functions check every argument once (clause S14) and hand over what has been checked, so a
    backend checks values only: :func:`polybn.arguments.fail_variance` and
    :func:`polybn.arguments.fail_single_value` hold the words.
    """

    @property
    def name(self) -> str:
        """The name of its entry point: the root module of the arrays that it serves."""

    @property
    def traits(self) -> Traits:
        """What the backend can do beyond this protocol."""

    def why_not(self) -> str | None:
        """Return None if a computation ran here and its result came back, else the reason why not."""

    def describe(self) -> Mapping[str, str]:
        """Say what a bug report needs: versions of the library, and under ``"device"`` the device."""

    def inspect(self, value: Any, /) -> Description | None:
        """Describe an array of the library; return None for all else, such as subclasses with other meanings."""

    def asarray(self, host: NDArray[Any], /) -> Array:
        """Copy a NumPy array to the default device; its dtype is one that clause S6 names, an integer type or bool."""

    def to_numpy(self, array: Array, /) -> NDArray[Any]:
        """Copy an array of this backend to the host."""

    def forward(self, arguments: Arguments, *, differentiable: bool) -> tuple[BatchNormResult, Any]:
        """Normalize (S1 to S12); return the result and what :meth:`backward` needs beside the arguments.

        Where ``differentiable`` is False, :meth:`backward` will not be called and the second result may be None.
        """

    def backward(self, arguments: Arguments, residuals: Any, dy: Array) -> Gradients:
        """Map a cotangent of ``y`` to those of the arguments (S13); it takes the keywords that the traits declare."""

    def double_backward(
        self, arguments: Arguments, residuals: Any, dy: Array, cotangents: Gradients
    ) -> SecondGradients:
        """Differentiate :meth:`backward`; a cotangent that is None stands for 0. A backend may leave this out."""

    def moments(self, arguments: Arguments) -> Moments:
        """Measure ``x`` (S15); of the arguments ``x``, ``where`` and what is known of their shapes are filled in."""

    def merge_moments(self, a: Moments, b: Moments) -> Moments:
        """Combine two parts (S15)."""

    def fold(self, arguments: Arguments) -> Affine:
        """Turn inference into ``scale * x + shift``; ``x`` is None."""


def traits_of(backend: Backend) -> Traits:
    """Return the traits that a backend declares, or the defaults if it declares none."""
    traits = getattr(backend, "traits", None)
    if traits is None:
        return _DEFAULTS
    if not isinstance(traits, Traits):
        raise BackendError(
            f"polybn.backend: traits of the backend {backend.name!r} must be a polybn.spec.Traits; got "
            f"{type(traits).__qualname__} (its fields are the keywords of Traits; leave traits out for the defaults)"
        )
    return traits


_DEFAULTS = Traits()
