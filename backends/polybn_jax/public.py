"""The public functions in JAX's words, above the border: NumPy arrays and numbers become JAX arrays first.

:func:`polybn.batch_norm` itself converts nothing, so NumPy arrays go to NumPy. Where JAX's own tools hand in NumPy
arrays, as ``jax.test_util.check_grads`` does for its differences, take these.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import polybn
from polybn.pullback import Pullback
from polybn.spec import BatchNormResult, Moments
from polybn_jax.kernels import AxisName


def batch_norm(x: Any, *parameters: Any, axis_name: AxisName = None, **options: Any) -> BatchNormResult:
    """Normalize what JAX can turn into arrays.

    Parameters
    ----------
    x, *parameters, **options
        As in :func:`polybn.batch_norm`.
    axis_name : str or tuple of str, optional
        The mapped axes over which statistics are synchronised.

    Returns
    -------
    BatchNormResult

    Raises
    ------
    BackendError, ShapeError, DTypeError, DomainError
        As in :func:`polybn.batch_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn_jax.public import batch_norm
    >>> batch_norm(np.array([[1.0], [3.0]], np.float32), training=True, eps=0).y.tolist()
    [[-1.0], [1.0]]
    """
    return polybn.batch_norm(*_converted(x, *parameters), axis_name=axis_name, **_converted_options(options))


def batch_norm_vjp(
    x: Any, *parameters: Any, axis_name: AxisName = None, **options: Any
) -> tuple[BatchNormResult, Pullback]:
    """Normalize, and return the derivative as a function of the cotangent of ``y``.

    Parameters
    ----------
    x, *parameters, axis_name, **options
        As in :func:`batch_norm`.

    Returns
    -------
    BatchNormResult
    Pullback
        As :func:`polybn.batch_norm_vjp` returns it; it takes JAX arrays.

    Raises
    ------
    BackendError, ShapeError, DTypeError, DomainError
        As in :func:`polybn.batch_norm_vjp`.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn_jax.public import batch_norm_vjp
    >>> result, pullback = batch_norm_vjp(np.array([[1.0], [3.0]], np.float32), training=True)
    >>> pullback(result.y).x.shape
    (2, 1)
    """
    return polybn.batch_norm_vjp(*_converted(x, *parameters), axis_name=axis_name, **_converted_options(options))


def moments(x: Any, *, axis_name: AxisName = None, **options: Any) -> Moments:
    """Return per-channel count, mean and sum of squared deviations.

    Parameters
    ----------
    x, axis_name, **options
        As in :func:`polybn.moments` and :func:`batch_norm`.

    Returns
    -------
    Moments

    Raises
    ------
    BackendError, ShapeError, DTypeError
        As in :func:`polybn.moments`.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn_jax.public import moments
    >>> moments(np.array([[1.0], [3.0]], np.float32)).mean.tolist()
    [2.0]
    """
    return polybn.moments(*_converted(x), axis_name=axis_name, **_converted_options(options))


ARRAYS = ("gamma", "beta", "running_mean", "running_var", "where")


def _converted_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: _converted(value)[0] if name in ARRAYS else value for name, value in options.items()}


def _converted(*values: Any) -> list[jax.Array | None]:
    return [None if value is None else jnp.asarray(value) for value in values]
