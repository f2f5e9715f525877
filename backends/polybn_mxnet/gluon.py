"""Batch norm as a Gluon block: the specification where ``gluon.nn.BatchNorm`` stood.

On arrays the block is :func:`polybn_mxnet.batch_norm`. In a symbol, which is what ``hybridize`` makes of a block, it
is the operator ``polybn_batch_norm``: a recorded Python function cannot be part of a symbol, an
``mxnet.operator.CustomOp`` can. Both run the same code and give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn.arguments import check_batch_norm, check_moments, dtype_name
from polybn.spec import Array, RunningVariance
from polybn_mxnet import memory
from polybn_mxnet.batch_norm import batch_norm
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.operator import OPERATOR


class BatchNorm(mx.gluon.HybridBlock):
    """Batch normalization by :mod:`polybn.spec`, with the words and the parameter names of ``gluon.nn.BatchNorm``.

    Parameters saved by either block load into the other. What differs, besides the numbers: running statistics
    change in the forward pass of training, once, and never in ``backward``; with ``scale=False`` no array is
    overwritten; float16 input has float32 statistics; and a bad call raises the specification's errors.

    Parameters
    ----------
    axis : int, default 1
        The channel axis.
    momentum : float, default 0.9
        Weight of the old running statistics.
    epsilon : float, default 1e-5
    center : bool, default True
        Whether ``beta`` is added and trained; without, it stays as it is and is not used.
    scale : bool, default True
        Whether ``gamma`` multiplies and is trained; without, it stays as it is and is not used.
    use_global_stats : bool, default False
        Normalize by the running statistics in training, too, and leave them as they are.
    beta_initializer, gamma_initializer, running_mean_initializer, running_variance_initializer : str or Initializer
        By default 0, 1, 0 and 1.
    in_channels : int, default 0
        0 leaves it to the first input.
    running_variance : {"biased", "unbiased"}, default "biased"
        What ``running_var`` takes in (clause S4).
    **kwargs
        ``prefix`` and ``params`` of a Gluon block.

    Raises
    ------
    DTypeError, DomainError
        If an option is none that the specification allows. Calls raise as :func:`polybn.batch_norm`; within a
        hybridized network MXNet prints these words, and raises MXNetError.

    Examples
    --------
    >>> from polybn_mxnet.compat import mxnet as mx
    >>> from polybn_mxnet.gluon import BatchNorm
    >>> norm = BatchNorm()
    >>> norm.initialize()
    >>> with mx.autograd.record():
    ...     y = norm(mx.nd.array([[1.0], [3.0]]))
    >>> y.asnumpy().round(4).ravel().tolist()
    [-1.0, 1.0]
    >>> norm.running_mean.data().asnumpy().round(4).tolist()
    [0.2]
    """

    def __init__(
        self,
        axis: int = 1,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        use_global_stats: bool = False,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        running_mean_initializer: Any = "zeros",
        running_variance_initializer: Any = "ones",
        in_channels: int = 0,
        running_variance: RunningVariance = "biased",
        **kwargs: Any,
    ) -> None:
        check_batch_norm(  # the options, on behalf of batches to come
            "gluon.BatchNorm", np.empty((2, 0), np.float32), None, None, None, None,
            training=True, momentum=momentum, eps=epsilon, axis=1, running_variance=running_variance, where=None,
        )  # fmt: skip
        super().__init__(**kwargs)
        self._axis, self._scale, self._center, self._frozen = axis, bool(scale), bool(center), bool(use_global_stats)
        self._options: dict[str, Any] = {
            "axis": axis, "momentum": float(momentum), "eps": float(epsilon), "running_variance": running_variance,
        }  # fmt: skip

        def parameter(name: str, init: Any, trained: bool) -> Any:
            return self.params.get(
                name, grad_req="write" if trained else "null", shape=(in_channels,), init=init,
                allow_deferred_init=True, differentiable=trained,
            )  # fmt: skip

        self.gamma = parameter("gamma", gamma_initializer, self._scale)
        self.beta = parameter("beta", beta_initializer, self._center)
        self.running_mean = parameter("running_mean", running_mean_initializer, False)
        self.running_var = parameter("running_var", running_variance_initializer, False)

    def cast(self, dtype: Any) -> None:
        """Cast parameters and statistics; below float32 they stay float32 (clause S6)."""
        super().cast("float64" if dtype_name(dtype) in ("float64", "double", "float") else "float32")

    def forward(self, x: Array) -> Array:
        """Normalize ``x``, shape ``(N, C, ...)``; within ``autograd.record()`` by its own statistics."""
        if memory.is_array(x):  # before Gluon asks a symbol for the number of channels, whose errors say less
            check_moments("gluon.BatchNorm", memory.described(x), axis=self._axis, where=None)
        return super().forward(x)

    def hybrid_forward(self, F: Any, x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any) -> Any:
        """Normalize an array, or a symbol."""
        if F is mx.sym:
            return self._symbol(x, gamma, beta, running_mean, running_var)
        training = mx.autograd.is_training() and not self._frozen
        result = batch_norm(
            x, gamma if self._scale else None, beta if self._center else None, running_mean, running_var,
            training=training, **self._options,
        )  # fmt: skip
        if training:
            for old, new in zip((running_mean, running_var), result[1:], strict=True):
                memory.overwrite(old, new)
        return result.y

    def _symbol(self, *inputs: Any) -> Any:
        symbols = [symbol.as_nd_ndarray() for symbol in inputs]
        y = mx.sym.Custom(
            *symbols, op_type=OPERATOR, scale=self._scale, center=self._center, frozen=self._frozen, **self._options
        )
        return y.as_np_ndarray() if mx.util.is_np_array() else y

    def __repr__(self) -> str:
        options = {"scale": self._scale, "center": self._center, "use_global_stats": self._frozen, **self._options}
        words = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"BatchNorm({words}, in_channels={self.gamma.shape[0] or None})"
