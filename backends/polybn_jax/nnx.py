"""Batch normalization as a Flax NNX module, with the numerics of :func:`polybn.batch_norm`.

It needs Flax; importing :mod:`polybn_jax` does not import it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from polybn.spec import BackendError, DomainError, DTypeError, RunningVariance, ShapeError
from polybn_jax.kernels import AxisName
from polybn_jax.public import batch_norm


class BatchNorm(nnx.Module):
    """Stands in for ``flax.nnx.BatchNorm``: the same words mean the same, and its state loads here.

    What means something else has another word, or none. ``where`` in place of ``mask``: deleted places are 0 in the
    output (S12), where Flax normalizes them, too. ``stats_dtype`` in place of ``param_dtype``: float64 for float64
    inputs, for parameters and statistics. There is no ``dtype`` and no ``promote_dtype``, for the output has the dtype
    of the input (S6), no ``use_fast_variance``, for there is one variance (S2), and no ``axis_index_groups``.

    Parameters
    ----------
    num_features : int
        Number of channels, C.
    use_running_average : bool, default False
        Inference instead of training; ``model.eval()`` and ``model.train()`` set it.
    axis : int, default -1
        The channel axis.
    momentum : float, default 0.99
        Weight of the OLD running value.
    epsilon : float, default 1e-5
        Added to the variance, inside the root.
    stats_dtype : dtype, default float32
        Of parameters and statistics.
    use_bias, use_scale : bool, default True
        Whether there is a beta, and a gamma.
    bias_init, scale_init : initializer
        Zeros and ones by default.
    axis_name : str or tuple of str, optional
        The mapped axes over which statistics are synchronised, weighted by what each device holds.
    running_variance : {"biased", "unbiased"}
        What ``var`` takes in; Flax takes in the biased variance.
    rngs : flax.nnx.Rngs
        Where the initializers get their key.

    Attributes
    ----------
    mean, var : flax.nnx.BatchStat, shape (C,)
    scale, bias : flax.nnx.Param, shape (C,), or None

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
        use_running_average: bool = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        stats_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),  # noqa: B008  # a pure function
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),  # noqa: B008
        axis_name: AxisName = None,
        running_variance: RunningVariance = "biased",
        rngs: nnx.Rngs,
    ) -> None:
        shape = (num_features,)
        self.mean = nnx.BatchStat(jnp.zeros(shape, stats_dtype))
        self.var = nnx.BatchStat(jnp.ones(shape, stats_dtype))
        # In Flax's order, for equal keys: scale, then bias.
        self.scale = nnx.Param(scale_init(rngs.params(), shape, stats_dtype)) if use_scale else nnx.data(None)
        self.bias = nnx.Param(bias_init(rngs.params(), shape, stats_dtype)) if use_bias else nnx.data(None)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.running_variance = running_variance

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, where: jax.Array | None = None
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

        Returns
        -------
        array
            In shape and dtype of ``x``.

        Raises
        ------
        ShapeError, DTypeError, DomainError, BackendError
            As :func:`polybn.batch_norm`, in the words of this module.
        """
        training = not (self.use_running_average if use_running_average is None else use_running_average)
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
