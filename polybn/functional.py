"""The public functions: what each one means, the checks of clause S14, and the hand-over to the arrays' backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn import returned
from polybn.admission import admit, describe
from polybn.arguments import Arrays, check_fold, check_merge_moments, check_moments, check_record, describe_arrays
from polybn.dispatch import backend_of, backend_of_all
from polybn.options import check_own, check_untraced
from polybn.pullback import Pullback
from polybn.spec import Affine, Arguments, Moments, traits_of

if TYPE_CHECKING:
    from polybn.spec import Array, BatchNormResult, RunningVariance


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
    **own: Any,
) -> BatchNormResult:
    """Normalize each channel to mean 0 and variance 1, then scale by gamma and shift by beta.

    ``y = (x - mean) / sqrt(variance + eps) * gamma + beta``, with the mean and the biased variance of the
    batch in training, and the running statistics in inference. No argument is changed.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        float16, bfloat16, float32 or float64, rank 2 or more, from any installed backend; C lies at ``axis``.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None means 1 and 0. float32, or float64 for float64 ``x``; so are the running statistics.
    running_mean, running_var : array, shape (C,), optional
        Both or neither in training; both in inference.
    training : bool
        True: normalize with the batch's statistics and return updated running statistics.
        False: normalize with the running statistics and return copies of them.
    momentum : float, default 0.9
        Weight of the OLD running value, in [0, 1]. PyTorch's momentum is 1 minus this.
    eps : float, default 1e-5
        Added to the variance, inside the root. 0, or at least the smallest normal number.
    axis : int, default 1
        The channel axis; negative counts from the end.
    running_variance : {"biased", "unbiased"}
        Whether ``running_var`` takes in ``v`` (Keras, Flax, ONNX, MXNet) or ``v * m / (m - 1)`` (PyTorch).
    where : array of bool, optional
        Broadcasts to the shape of ``x``; False deletes a value from the statistics and gives 0 in ``y``.
    **own
        Keywords of one library only: ``out=`` for NumPy arrays, ``axis_name=`` for JAX arrays.

    Returns
    -------
    BatchNormResult
        ``y`` with shape and dtype of ``x``; ``running_mean`` and ``running_var``, None if none were given.

    Raises
    ------
    BackendError
        If the arguments are not arrays, all of one backend.
    ShapeError, DTypeError, DomainError
        If an argument breaks the rule that the message states (clause S14).

    Notes
    -----
    The rule is :mod:`polybn.spec`, clauses S1 to S12; the operation is from Ioffe and Szegedy, "Batch
    normalization: accelerating deep network training by reducing internal covariate shift", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> x = np.array([[10000.0], [10001.0], [10002.0], [10003.0]], dtype=np.float32)
    >>> polybn.batch_norm(x, training=True, eps=0).y.ravel()
    array([-1.3416407 , -0.44721356,  0.44721356,  1.3416407 ], dtype=float32)
    """
    arrays = (x, gamma, beta, running_mean, running_var, where)
    options = (training, momentum, eps, axis, running_variance)
    backend, arguments = admit("batch_norm", arrays, options, own)
    return returned.check_forward("batch_norm", backend, backend.forward(arguments, differentiable=False))[0]


def batch_norm_vjp(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis: int = 1,
    running_variance: RunningVariance = "biased",
    where: Array | None = None,
    **own: Any,
) -> tuple[BatchNormResult, Pullback]:
    """Normalize, and return the derivative as a function of the cotangent of ``y``.

    Parameters
    ----------
    x, gamma, beta, running_mean, running_var, training, momentum, eps, axis, running_variance, where, **own
        As in :func:`polybn.batch_norm`.

    Returns
    -------
    BatchNormResult
        What :func:`polybn.batch_norm` returns.
    Pullback
        ``pullback(dy)``, with ``dy`` in shape and dtype of ``y``, returns :class:`polybn.Gradients`: ``x``;
        ``gamma`` and ``beta`` where they were given; in inference ``running_mean`` and ``running_var``, too.

    Raises
    ------
    BackendError, ShapeError, DTypeError, DomainError
        As in :func:`polybn.batch_norm`; the pullback checks ``dy`` in the same way.

    Notes
    -----
    Formulas: clause S13 of :mod:`polybn.spec`. Nothing divides by gamma.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> x = np.array([[1.0], [2.0], [3.0], [6.0]])
    >>> result, pullback = polybn.batch_norm_vjp(x, np.ones(1), training=True, eps=0)
    >>> gradients = pullback(np.array([[1.0], [0.0], [0.0], [0.0]]))
    >>> gradients.x.round(4).ravel().tolist()
    [0.2482, -0.21, -0.1336, 0.0955]
    """
    arrays = (x, gamma, beta, running_mean, running_var, where)
    options = (training, momentum, eps, axis, running_variance)
    backend, arguments = admit("batch_norm_vjp", arrays, options, own)
    result, residuals = returned.check_forward(
        "batch_norm_vjp", backend, backend.forward(arguments, differentiable=True)
    )
    return result, Pullback(backend.name, arguments, residuals)


def moments(x: Array, *, axis: int = 1, where: Array | None = None, **own: Any) -> Moments:
    """Return per-channel count, mean and sum of squared deviations, in a form that merges.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        An array of a dtype that :func:`polybn.batch_norm` takes. Backends that declare it, such as NumPy, also take
        integers, whose moments are exact, rounded once to float64.
    axis : int, default 1
        The channel axis.
    where : array of bool, optional
        Broadcasts to the shape of ``x``; False deletes a value.
    **own
        As in :func:`polybn.batch_norm`.

    Returns
    -------
    Moments
        Arrays of shape ``(C,)``: ``count`` (integers), ``mean``, ``m2``, the biased variance times the count, and
        ``low``, what the mean lost when it was rounded.

    Raises
    ------
    BackendError, ShapeError, DTypeError
        As in :func:`polybn.batch_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> polybn.moments(np.array([[1.0], [2.0], [6.0]]))
    Moments(count=array([3]), mean=array([3.]), m2=array([14.]), low=array([0.]))
    >>> images = np.full((2, 28, 28, 3), 255, np.uint8)
    >>> polybn.moments(images, axis=-1).mean
    array([255., 255., 255.])
    """
    arrays = Arrays(x, where=where)
    backend = backend_of_all("moments", Arrays._fields, arrays)
    given, traits = describe("moments", backend, arrays), traits_of(backend)
    check_own("moments", own, traits.own)
    check_untraced("moments", traits.hint, {"axis": axis})
    known = check_moments("moments", given, axis, integers=traits.integers, instead=traits.instead_of_integers)
    made = backend.moments(Arguments._make(("moments", *arrays, *known, own)))
    return returned.check_vectors("moments", backend, "moments", made, Moments, known.channels, known.dtype)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two disjoint parts into those of the whole (clause S15).

    Associative up to rounding, which does not grow with the mean; an empty part changes nothing, to the bit. The base
    of synchronized, ghost and streaming statistics.

    Parameters
    ----------
    a, b : Moments
        Results of :func:`polybn.moments` for arrays of one backend, one number of channels and one dtype.

    Returns
    -------
    Moments

    Raises
    ------
    BackendError, ShapeError, DTypeError
        If the two are not of one backend, one number of channels and one dtype.

    Notes
    -----
    The formula is from Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> polybn.merge_moments(polybn.moments(x[:1]), polybn.moments(x[1:]))
    Moments(count=array([3]), mean=array([3.]), m2=array([14.]), low=array([0.]))
    """
    check_record("merge_moments", "a", a, Moments)
    check_record("merge_moments", "b", b, Moments)
    fields = {f"a.{name}": value for name, value in a._asdict().items()}
    fields |= {f"b.{name}": value for name, value in b._asdict().items()}
    backend = backend_of("merge_moments", **fields)
    described = describe_arrays("merge_moments", backend, fields, fields.values())
    mean = check_merge_moments(dict(zip(fields, described, strict=True)))
    made = backend.merge_moments(a, b)
    return returned.check_vectors("merge_moments", backend, "merge_moments", made, Moments, mean.shape[0], mean.dtype)


def fold(
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array,
    running_var: Array,
    *,
    eps: float = 1e-5,
) -> Affine:
    """Turn inference into one multiplication and one addition per value, ``y = scale * x + shift``.

    Parameters
    ----------
    gamma, beta : array, shape (C,), or None
    running_mean, running_var : array, shape (C,)
        float32 or float64, one dtype for all.
    eps : float, default 1e-5

    Returns
    -------
    Affine
        ``scale = gamma / sqrt(running_var + eps)`` and ``shift = beta - running_mean * scale``, shape ``(C,)``.

    Raises
    ------
    BackendError, ShapeError, DTypeError, DomainError
        As in :func:`polybn.batch_norm` in inference.

    Notes
    -----
    Folding trades accuracy for speed: where ``running_mean`` is large, ``scale * x`` and ``shift`` cancel.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> polybn.fold(None, None, np.array([3.0]), np.array([4.0]), eps=0)
    Affine(scale=array([0.5]), shift=array([-1.5]))
    """
    names, vectors = Arrays._fields[1:5], (gamma, beta, running_mean, running_var)
    backend = backend_of_all("fold", names, vectors)
    given = Arrays(None, *describe_arrays("fold", backend, names, vectors))
    check_untraced("fold", traits_of(backend).hint, {"eps": eps})
    known = check_fold(given, eps)
    made = backend.fold(Arguments._make(("fold", None, *vectors, None, *known, {})))
    return returned.check_vectors("fold", backend, "fold", made, Affine, known.channels, known.dtype)
