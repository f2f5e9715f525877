"""The small stateful layer over the pure functions."""

from __future__ import annotations

import operator
import os
import threading
from typing import TYPE_CHECKING, Any

from polybn.arguments import dtype_name
from polybn.dispatch import backend as find_backend
from polybn.functional import batch_norm, batch_norm_vjp, merge_moments, moments
from polybn.layer_dialect import AXIS, EPS, MOMENTUM, RUNNING_VARIANCE, Manner, in_dialect, said
from polybn.layer_state import NAMES, check_lasting, check_state
from polybn.options import check_axis, check_eps, check_flag, check_momentum, check_running_variance
from polybn.spec import DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from polybn.dialects import Dialect
    from polybn.pullback import Pullback
    from polybn.spec import Array, Backend, BatchNormResult, RunningVariance


class BatchNorm:
    """Batch normalization that keeps its parameters and running statistics.

    Parameters
    ----------
    num_features : int
        Number of channels, C.
    dialect : Dialect or str, optional
        The framework whose words these are, such as ``"pytorch"``: outputs and state are then as there. ``momentum``,
        ``eps`` and ``axis`` are the framework's own if left out, and ``momentum`` has the sense that it has there.
        The names are those of :data:`polybn.dialects.DIALECTS`.
    momentum : float or None, default 0.9
        As in :func:`polybn.batch_norm`. None averages over all batches since the last reset, each with the same
        weight: after n of them the momentum is ``n / (n + 1)``.
    eps, axis, running_variance
        As in :func:`polybn.batch_norm`.
    scale, shift, track : bool, default True
        Whether there is a gamma, a beta, and running statistics. Without the last, only training works. In a dialect
        that takes gamma for 1, there is none.
    backend : str, default "numpy"
        The library whose arrays the layer holds and serves.
    dtype : {"float32", "float64"}
        Dtype of parameters and statistics: float64 to serve float64 arrays, float32 for all others.

    Attributes
    ----------
    gamma, beta, running_mean, running_var : array, shape (C,), or None
        Start at 1, 0, 0 and 1. Assign to them as you please; the layer replaces its running statistics and
        never writes into them.
    updates : int
        Number of training calls since the layer was made, loaded or reset.

    Raises
    ------
    ShapeError, DTypeError, DomainError, BackendError
        If the number of features, an option, the dtype or the backend is not allowed.

    Notes
    -----
    Threads may share a layer: training calls wait for each other, so no update is lost; the order of the updates is
    that of the calls. A layer copies and pickles.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> layer = polybn.BatchNorm(2)
    >>> y = layer(np.array([[1, 10], [3, 30]], dtype=np.float32), training=True)
    >>> y.round(3).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> layer.running_mean.tolist()
    [0.20000000298023224, 2.0]
    """

    def __init__(
        self,
        num_features: int,
        *,
        dialect: Dialect | str | None = None,
        momentum: float | None = MOMENTUM,
        eps: float = EPS,
        axis: int = AXIS,
        running_variance: RunningVariance = RUNNING_VARIANCE,
        scale: bool = True,
        shift: bool = True,
        track: bool = True,
        backend: str = "numpy",
        dtype: str = "float32",
    ) -> None:
        for name, flag in {"scale": scale, "shift": shift, "track": track}.items():
            check_flag("BatchNorm", name, flag, "whether the layer has gamma, beta, running statistics")
        self.num_features, self._dtype = _features(num_features), _dtype(dtype)
        options: Any = {"momentum": momentum, "eps": eps, "axis": axis, "running_variance": running_variance}
        self._manner = Manner()
        if dialect is not None:
            options, self._manner = in_dialect(dialect, {name: v for name, v in options.items() if said(v)})
        self.momentum, self.eps, self.axis, running_variance = _settled(**options, dtype=self._dtype)
        self.running_variance: RunningVariance = running_variance
        self._name = find_backend(backend).name
        self._lock = os.getpid(), threading.RLock()
        self.gamma: Array | None = self._filled(1) if scale and not self._manner.fix_gamma else None
        self.beta: Array | None = self._filled(0) if shift else None
        self.running_mean: Array | None = self._filled(self._manner.mean) if track else None
        self.running_var: Array | None = self._filled(self._manner.var) if track else None
        self.updates = 0

    def __call__(self, x: Array, *, training: bool, where: Array | None = None) -> Array:
        """Normalize ``x``; in training, update the running statistics.

        Parameters
        ----------
        x : array, shape (N, C, ...)
        training : bool
            False normalizes with the running statistics and changes nothing: a frozen layer.
        where : array of bool, optional
            Broadcasts to the shape of ``x``.

        Returns
        -------
        array
            ``y``, shape and dtype of ``x``.

        Raises
        ------
        BackendError, ShapeError, DTypeError, DomainError
            As in :func:`polybn.batch_norm`, and in training inside a transformation, such as JAX's ``jit``, whose
            arrays end with it; the layer is then unchanged.
        """
        with self._guard():
            result = batch_norm(x, *self._state(), training=training, where=where, **self._options())
            self._keep(result, training)
        return result.y

    def vjp(self, x: Array, *, training: bool, where: Array | None = None) -> tuple[Array, Pullback]:
        """Normalize as a call does, and return the pullback, too; see :func:`polybn.batch_norm_vjp`.

        Parameters
        ----------
        x : array, shape (N, C, ...)
        training : bool
            False differentiates the frozen layer, with the running statistics as constants of the batch.
        where : array of bool, optional
            Broadcasts to the shape of ``x``.

        Returns
        -------
        array
            ``y``, shape and dtype of ``x``.
        Pullback
            Maps a cotangent of ``y`` to :class:`polybn.Gradients`.

        Raises
        ------
        BackendError, ShapeError, DTypeError, DomainError
            As in :func:`polybn.batch_norm`, and in training inside a transformation, such as JAX's ``jit``, whose
            arrays end with it; the layer is then unchanged.
        """
        with self._guard():
            result, pullback = batch_norm_vjp(x, *self._state(), training=training, where=where, **self._options())
            self._keep(result, training)
        return result.y, pullback

    def reset(self) -> None:
        """Set the running statistics back to mean 0 and variance 1, as if nothing had been seen; parameters stay."""
        with self._guard():
            if self.running_mean is not None:
                self._replace(running_mean=self._filled(self._manner.mean), running_var=self._filled(self._manner.var))
            self.updates = 0

    def recalibrate(self, batches: Iterable[Array]) -> None:
        """Replace the running statistics by those of a whole data set, put together from its batches.

        Mean and variance are those of all values together, whatever the sizes of the batches and their order: their
        moments are merged (S15), which an average of batch statistics only approximates.

        Parameters
        ----------
        batches : iterable of array, shape (N, C, ...)
            At least one.

        Raises
        ------
        ShapeError
            If there is no batch, or one does not have C channels.
        BackendError, DTypeError
            As in :func:`polybn.moments`.

        Examples
        --------
        >>> import numpy as np
        >>> import polybn
        >>> layer = polybn.BatchNorm(1)
        >>> layer.recalibrate(np.array(x, np.float32)[:, None] for x in ([1, 2], [6]))
        >>> layer.running_mean.tolist(), layer.running_var.round(3).tolist()
        ([3.0], [4.667])
        """
        total = None
        for batch in batches:
            part = moments(batch, axis=self.axis)
            if tuple(part.mean.shape) != (self.num_features,):
                raise ShapeError(
                    f"polybn.BatchNorm.recalibrate: a batch must have {self.num_features} channels; got shape "
                    f"{tuple(batch.shape)} with channel axis {self.axis} (nothing was changed)"
                )
            total = part if total is None else merge_moments(total, part)
        if total is None:
            raise ShapeError(
                "polybn.BatchNorm.recalibrate: batches must have one array or more; got none (nothing was changed)"
            )
        with self._guard():
            variance = total.variance(unbiased=self.running_variance == "unbiased")
            self._replace(running_mean=total.mean, running_var=variance)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copy parameters and running statistics to the host.

        Returns
        -------
        dict of str to ndarray, shape (C,)
            ``gamma``, ``beta``, ``running_mean`` and ``running_var``, those that the layer has; ``updates``, an
            integer, where the momentum depends on it: where it is None, and in dialects that debias.
        """
        import numpy as np

        arrays = dict(zip(NAMES, self._state(), strict=True))
        state = {name: self._backend.to_numpy(array) for name, array in arrays.items() if array is not None}
        depends = self.momentum is None or self._manner.dialect is not None
        return state | {"updates": np.array(self.updates)} if depends else state

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace all arrays by copies of those in ``state``, or none of them.

        Parameters
        ----------
        state : mapping of str to ndarray, shape (C,)
            As :meth:`state_dict` returns it.

        Raises
        ------
        DomainError
            If names are missing or unknown, or a running variance is negative, NaN or infinite.
        ShapeError, DTypeError
            If an array has another shape or dtype than the layer's.
        """
        checked = check_state(state, self.state_dict())
        updates = int(checked.pop("updates", 0))
        loaded = {name: self._backend.asarray(value) for name, value in checked.items()}
        with self._guard():
            self._replace(**loaded)
            self.updates = updates

    def __repr__(self) -> str:
        absent = {"scale": self.gamma, "shift": self.beta, "track": self.running_mean}
        without = "".join(f"{word}=False, " for word, array in absent.items() if array is None)
        dialect = "" if self._manner.dialect is None else f"dialect={self._manner.dialect!r}, "
        variance = "" if dialect else f"running_variance={self.running_variance!r}, "
        return (
            f"BatchNorm({self.num_features}, {dialect}momentum={self.momentum}, eps={self.eps}, axis={self.axis}, "
            f"{variance}{without}backend={self._name!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=(os.getpid(), threading.RLock()))

    @property
    def _backend(self) -> Backend:
        return find_backend(self._name)

    def _guard(self) -> AbstractContextManager[Any]:
        # After a fork during another thread's call, the child's copy of the lock would never be released.
        if self._lock[0] != os.getpid():
            self._lock = os.getpid(), threading.RLock()
        return self._lock[1]

    def _filled(self, value: float) -> Array:
        import numpy as np

        return self._backend.asarray(np.full(self.num_features, value, self._dtype))

    def _keep(self, result: BatchNormResult, training: bool) -> None:
        if training:
            self._replace(running_mean=result.running_mean, running_var=result.running_var)
            self.updates += 1

    def _replace(self, **arrays: Array | None) -> None:
        """Take all of these arrays, or none where one would not outlive the call."""
        backend = self._backend
        for name, array in arrays.items():
            check_lasting(backend, name, getattr(self, name), array)
        vars(self).update(arrays)

    def _state(self) -> tuple[Array | None, Array | None, Array | None, Array | None]:
        return self.gamma, self.beta, self.running_mean, self.running_var

    def _options(self) -> dict[str, Any]:
        return {
            "momentum": self._manner.momentum(self.momentum, self.updates),
            "eps": self.eps,
            "axis": self.axis,
            "running_variance": self.running_variance,
        }


def _settled(
    momentum: Any, eps: Any, axis: Any, running_variance: Any, dtype: str
) -> tuple[float | None, float, int, RunningVariance]:
    """Check the options of a layer; return them in plain types."""
    if momentum is not None:
        check_momentum("BatchNorm", momentum)
    check_eps("BatchNorm", eps, dtype)
    check_running_variance("BatchNorm", running_variance)
    return momentum, eps, check_axis("BatchNorm", axis), running_variance


def _features(num_features: Any) -> int:
    try:
        if not isinstance(num_features, bool) and operator.index(num_features) >= 0:
            return operator.index(num_features)
    except TypeError:
        pass
    raise ShapeError(
        f"polybn.BatchNorm: num_features must be an int of 0 or more; got {num_features!r} (the number of channels)"
    )


def _dtype(dtype: Any) -> str:
    try:
        name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    except TypeError:  # a list, which has no hash and names no dtype
        name = ""
    if name not in ("float32", "float64"):
        raise DTypeError(
            f"polybn.BatchNorm: dtype must be 'float32' or 'float64'; got {dtype!r} "
            "(of the statistics: half types only store values)"
        )
    return name
