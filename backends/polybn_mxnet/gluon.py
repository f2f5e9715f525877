"""Batch norm as a Gluon block: the specification in place of ``gluon.nn.BatchNorm``.

On arrays the block calls :func:`polybn.batch_norm`. In a symbol, which ``hybridize`` makes of a block, it is the
operator ``polybn_batch_norm``: a symbol cannot contain a recorded Python function, but it can contain an
``mxnet.operator.CustomOp``, which MXNet calls in a thread of its own when the inputs are computed. Both run the same
code and give the same bits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from polybn.arguments import Arrays, Known, Options, check_batch_norm, check_moments, dtype_name
from polybn.functional import batch_norm
from polybn.spec import Arguments, Array, Description, RunningVariance
from polybn_mxnet import arrays, tape
from polybn_mxnet.batch_norm import form_for
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.derivatives import pull

OPERATOR = "polybn_batch_norm"
_REQUESTS = {"null": tape.NULL, "write": tape.WRITE, "inplace": tape.WRITE, "add": tape.ADD}


class BatchNorm(mx.gluon.HybridBlock):
    """Batch normalization by :mod:`polybn.spec`, with the options and parameter names of ``gluon.nn.BatchNorm``.

    Parameters saved by one block can be loaded into the other. Apart from the numbers, the differences are: running
    statistics change once, in the forward pass of training, and never in ``backward``; with ``scale=False`` no array
    is overwritten; float16 input has float32 statistics; and a bad call raises the specification's errors.

    Parameters
    ----------
    axis : int, default 1
        The channel axis.
    momentum : float, default 0.9
        Weight of the old running statistics.
    epsilon : float, default 1e-5
    center : bool, default True
        Whether ``beta`` is used and trained; if not, it never changes.
    scale : bool, default True
        Whether ``gamma`` is used and trained; if not, it never changes.
    use_global_stats : bool, default False
        Normalize by the running statistics also in training, and do not update them.
    beta_initializer, gamma_initializer, running_mean_initializer, running_variance_initializer : str or Initializer
        The initializers; the defaults give 0, 1, 0 and 1.
    in_channels : int, default 0
        Number of channels; 0 means that of the first input.
    running_variance : {"biased", "unbiased"}, default "biased"
        The variance that ``running_var`` is updated with (clause S4).
    **kwargs
        ``prefix`` and ``params`` of a Gluon block.

    Raises
    ------
    DTypeError, DomainError
        If the specification does not allow an option. Calls raise the errors of :func:`polybn.batch_norm`; within a
        hybridized network MXNet prints their messages, and raises MXNetError.

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
        any_batch = Arrays(Description((2, 0), "float32"))
        check_batch_norm("gluon.BatchNorm", any_batch, Options(True, momentum, epsilon, 1, running_variance))
        super().__init__(**kwargs)
        self._axis, self._scale, self._center, self._frozen = axis, bool(scale), bool(center), bool(use_global_stats)
        self._options = dict[str, Any](
            axis=axis, momentum=float(momentum), eps=float(epsilon), running_variance=running_variance
        )

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
        """Cast parameters and statistics to float64, or to float32 for all smaller dtypes (clause S6)."""
        super().cast("float64" if dtype_name(dtype) in ("float64", "double", "float") else "float32")

    def forward(self, x: Array) -> Array:
        """Normalize ``x``, shape ``(N, C, ...)``; within ``autograd.record()`` by the statistics of the batch."""
        what = arrays.inspect(x)
        if what is not None:  # before Gluon infers the number of channels, whose errors say less
            check_moments("gluon.BatchNorm", Arrays(what), self._axis)
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
                arrays.overwrite(old, new)
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


class _Operator(mx.operator.CustomOp):
    """The operator at one place of a graph; MXNet makes another if a forward pass starts before the last backward."""

    def __init__(self, flags: list[bool], options: Options) -> None:
        super().__init__()
        self._scale, self._center, self._frozen = flags
        self._options = options
        self._known: dict[bool, Known] = {}

    def forward(
        self, is_train: bool, req: list[str], in_data: list[Array], out_data: list[Array], aux: list[Array]
    ) -> None:
        """Write ``y``, and in training the running statistics."""
        training = bool(is_train) and not self._frozen
        arguments = self._arguments(in_data, aux, training)
        y = out_data[0] if _REQUESTS[req[0]] == tape.WRITE else arrays.empty(in_data[0])
        *running, self._residuals = form_for(y).forward(arguments, y)
        self._training = training
        if y is not out_data[0]:
            self.assign(out_data[0], req[0], y)
        for host, array in zip(running, aux, strict=True):
            if training and host is not None:
                arrays.write(host, array)

    def backward(
        self, req: list[str], out_grad: list[Array], in_data: list[Array], out_data: list[Array],
        in_grad: list[Array], aux: list[Array],
    ) -> None:  # fmt: skip
        """Write the gradients (S13); parameters that are not used have gradient 0."""
        arguments, wanted = self._arguments(in_data, aux, self._training), {}
        for name, array, request in zip(("x", "gamma", "beta"), in_grad, req, strict=True):
            if getattr(arguments, name) is None:
                self.assign(array, request, 0)
            elif request != "null":
                wanted[name] = array, _REQUESTS[request]
        tape.write_gradients(partial(pull, arguments, self._residuals), out_grad, wanted)

    def _arguments(self, in_data: list[Array], aux: list[Array], training: bool) -> Arguments:
        x, gamma, beta = in_data
        given = Arrays(x, gamma if self._scale else None, beta if self._center else None, *aux)
        options = self._options._replace(training=training)
        if training not in self._known:  # shapes and dtypes are those that MXNet made the operator for
            what = Arrays(*(None if array is None else arrays.describe(array) for array in given))
            self._known[training] = check_batch_norm("gluon.BatchNorm", what, options)
        return Arguments._make(("gluon.BatchNorm", *given, *self._known[training], {}))


class _Properties(mx.operator.CustomOpProp):
    """The properties that MXNet asks for before the operator runs. MXNet passes all options as strings."""

    def __init__(
        self, scale: str, center: str, frozen: str, axis: str, momentum: str, eps: str, running_variance: str
    ) -> None:
        super().__init__(need_top_grad=True)
        self._flags = [flag == "True" for flag in (scale, center, frozen)]
        self._options = Options(True, float(momentum), float(eps), int(axis), running_variance)

    def list_arguments(self) -> list[str]:
        """Name the inputs."""
        return ["data", "gamma", "beta"]

    def list_auxiliary_states(self) -> list[str]:
        """Name the arrays that a forward pass changes."""
        return ["running_mean", "running_var"]

    def infer_shape(self, in_shape: list[list[int]]) -> tuple[list[list[int]], ...]:
        """Give every vector the length of the channel axis."""
        channels = [in_shape[0][self._options.axis]]
        return [in_shape[0], channels, channels], [in_shape[0]], [channels, channels]

    def infer_type(self, in_type: list[Any]) -> tuple[list[Any], ...]:
        """Give ``y`` the type of ``x``, and the vectors that of the statistics (S6)."""
        vector = np.float64 if in_type[0] == np.float64 else np.float32
        return [in_type[0], vector, vector], [in_type[0]], [vector, vector]

    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> _Operator:
        """Make the operator for inputs of these shapes and types."""
        return _Operator(self._flags, self._options)


mx.operator.register(OPERATOR)(_Properties)
