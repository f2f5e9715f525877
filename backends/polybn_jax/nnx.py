"""Batch normalization as a Flax NNX module, with the numerics of :func:`polybn.batch_norm`.

It needs Flax; importing :mod:`polybn_jax` does not import it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from polybn.spec import BackendError, DomainError, DTypeError, RunningVariance, ShapeError
from polybn_jax.kernels import AxisName
from polybn_jax.public import batch_norm


class BatchNorm(nnx.Module):
    """Stands in for ``flax.nnx.BatchNorm``: the same words mean the same, and its state loads here.

    What would mean something else is refused, and the error says what to use. ``where`` takes the place of ``mask``:
    deleted places are 0 in the output (S12), where Flax normalizes them, too. ``param_dtype`` must be ``stats_dtype``:
    parameters and statistics have one dtype (S6). Only the input is converted to ``dtype``, so there is no
    ``promote_dtype``. Statistics are synchronised over whole axes, so there are no ``axis_index_groups``.

    Parameters
    ----------
    num_features : int
        Number of channels, C.
    use_running_average : bool or None, default False
        Inference instead of training; ``model.eval()`` and ``model.train()`` set it. None leaves it to each call.
    axis : int, default -1
        The channel axis.
    momentum : float, default 0.99
        Weight of the OLD running value.
    epsilon : float, default 1e-5
        Added to the variance, inside the root.
    stats_dtype : dtype, default float32
        Of parameters and statistics: float64 for float64 inputs.
    dtype : dtype, optional
        The input is converted to it first, and the output has it; by default the input stays as it is.
    param_dtype : dtype, optional
        The same as ``stats_dtype``.
    use_bias, use_scale : bool, default True
        Whether there is a beta, and a gamma.
    bias_init, scale_init : initializer
        Zeros and ones by default.
    axis_name : str or tuple of str, optional
        The mapped axes over which statistics are synchronised, weighted by what each device holds.
    axis_index_groups, promote_dtype : None
        Not served; an error says what to use.
    use_fast_variance : bool
        Makes no difference: there is one variance, and it is accurate (S2).
    running_variance : {"biased", "unbiased"}
        What ``var`` takes in; Flax takes in the biased variance.
    rngs : flax.nnx.Rngs
        Where the initializers get their key.
    bias_metadata, scale_metadata : mapping
        Metadata of the parameters.

    Attributes
    ----------
    mean, var : flax.nnx.BatchStat, shape (C,)
    scale, bias : flax.nnx.Param, shape (C,), or None

    Raises
    ------
    DTypeError, DomainError
        If an option of Flax's is given that is not served here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from polybn_jax.nnx import BatchNorm
    >>> layer = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0, 10.0], [3.0, 30.0]])).round(3).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> layer.mean[...].round(3).tolist()
    [0.20000000298023224, 2.0]
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        stats_dtype: Any = jnp.float32,
        dtype: Any = None,
        param_dtype: Any = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),  # noqa: B008  # a pure function
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),  # noqa: B008
        axis_name: AxisName = None,
        axis_index_groups: None = None,
        use_fast_variance: bool = True,  # noqa: ARG002  # a choice that there is not
        promote_dtype: None = None,
        running_variance: RunningVariance = "biased",
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        _check_flaxs_own(stats_dtype, param_dtype, axis_index_groups, promote_dtype)
        shape = (num_features,)
        self.mean = nnx.BatchStat(jnp.zeros(shape, stats_dtype))
        self.var = nnx.BatchStat(jnp.ones(shape, stats_dtype))
        # In Flax's order, for equal keys: scale, then bias.
        self.scale = _param(scale_init, rngs, shape, stats_dtype, scale_metadata) if use_scale else nnx.data(None)
        self.bias = _param(bias_init, rngs, shape, stats_dtype, bias_metadata) if use_bias else nnx.data(None)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.axis_name = axis_name
        self.running_variance = running_variance

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        where: jax.Array | None = None,
        mask: None = None,
    ) -> jax.Array:
        """Normalize; in training, update ``mean`` and ``var``.

        Parameters
        ----------
        x : array
            Its channel axis at ``axis``. NumPy arrays are converted, here and in restored states.
        use_running_average : bool, optional
            Takes precedence over the attribute.
        where : array of bool, optional
            As in :func:`polybn.batch_norm`.
        mask : None
            Flax's word, with another meaning; an error says so.

        Returns
        -------
        array
            In shape and dtype of ``x``, or in ``dtype``.

        Raises
        ------
        ShapeError, DTypeError, DomainError, BackendError
            As :func:`polybn.batch_norm`, in the words of this module.
        """
        inference = self.use_running_average if use_running_average is None else use_running_average
        _check_flaxs_call(inference, mask)
        x = x if self.dtype is None else jnp.asarray(x, self.dtype)
        training = not inference
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        statistics = self.mean[...], self.var[...]
        with _in_flaxs_words():
            y, mean, var = batch_norm(x, scale, bias, *statistics, training=training, where=where, **self._options())
        if training:
            _set(self.mean, mean)
            _set(self.var, var)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set what ``flax.nnx.view`` changes in a copy of a model; Flax calls this.

        Parameters
        ----------
        use_running_average : bool, optional
            The new value; None leaves the old one.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _options(self) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "eps": self.epsilon,
            "axis": self.axis,
            "running_variance": self.running_variance,
            "axis_name": self.axis_name,
        }


def _check_flaxs_own(stats_dtype: Any, param_dtype: Any, axis_index_groups: Any, promote_dtype: Any) -> None:
    """Refuse options of Flax's that mean nothing here."""
    if param_dtype is not None and jnp.dtype(param_dtype) != jnp.dtype(stats_dtype):
        raise DTypeError(
            f"polybn_jax.nnx.BatchNorm: param_dtype must be stats_dtype, {jnp.dtype(stats_dtype)}; got "
            f"{jnp.dtype(param_dtype)} (parameters and statistics have one dtype: float32, or for float64 inputs "
            "stats_dtype=jnp.float64)"
        )
    if axis_index_groups is not None:
        raise DomainError(
            f"polybn_jax.nnx.BatchNorm: axis_index_groups must be None; got {axis_index_groups!r} (statistics are "
            "synchronised over whole axes: divide the axis of the mesh in two, groups and members, and give "
            "axis_name='members')"
        )
    if promote_dtype is not None:
        raise DomainError(
            f"polybn_jax.nnx.BatchNorm: promote_dtype must be None; got {promote_dtype!r} (dtype= converts the input, "
            "and statistics are computed in float32 or wider in any case)"
        )


def _check_flaxs_call(inference: bool | None, mask: Any) -> None:
    """Refuse a call that Flax understands in another way, or refuses, too."""
    if inference is None:
        raise DTypeError(
            "polybn_jax.nnx.BatchNorm: use_running_average must be True or False; got None (neither the layer nor the "
            "call has it: layer(x, use_running_average=True), or model.eval() and model.train())"
        )
    if mask is not None:
        raise DomainError(
            "polybn_jax.nnx.BatchNorm: mask must be None; got an array (layer(x, where=mask) takes the same "
            "statistics; its output is 0 where the mask is False, and Flax's is normalized there, too)"
        )


def _param(
    init: nnx.Initializer, rngs: nnx.Rngs, shape: tuple[int, ...], dtype: Any, metadata: Mapping[str, Any]
) -> nnx.Param[Any]:
    return nnx.Param(init(rngs.params(), shape, dtype), **metadata)


_WORDS = {
    "polybn.batch_norm": "polybn_jax.nnx.BatchNorm", "gamma": "scale", "beta": "bias", "running_mean": "mean",
    "running_var": "var", "eps": "epsilon", "training=False": "use_running_average=True",
}  # fmt: skip


@contextmanager
def _in_flaxs_words() -> Iterator[None]:
    """Name arguments in errors as the module's users know them."""
    try:
        yield
    except (ShapeError, DTypeError, DomainError, BackendError) as error:
        pattern = "|".join(rf"\b{re.escape(word)}\b" for word in _WORDS)
        raise type(error)(re.sub(pattern, lambda found: _WORDS[found[0]], str(error))) from None


def _set(statistic: nnx.BatchStat, value: jax.Array) -> None:
    """Replace a statistic; not by ``[...] = value``, which writes into a NumPy array that a state was restored from."""
    if hasattr(type(statistic), "set_value"):
        statistic.set_value(value)
    else:  # Flax 0.12.0
        statistic.value = value
