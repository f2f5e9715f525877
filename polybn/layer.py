"""The small stateful layer over the pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.arguments import type_name
from polybn.dispatch import backend as find_backend
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from polybn.spec import Array, Pullback, RunningVariance

_NAMES = ("gamma", "beta", "running_mean", "running_var")


class BatchNorm:
    """Batch normalization that keeps its parameters and running statistics.

    Parameters
    ----------
    num_features : int
        Number of channels, C.
    momentum, eps, axis, running_variance
        As in :func:`polybn.batch_norm`.
    backend : str, default "numpy"
        The library whose arrays the layer holds and serves.
    dtype : {"float32", "float64"}
        Of parameters and statistics: float64 to serve float64 arrays, float32 for all others.

    Attributes
    ----------
    gamma, beta, running_mean, running_var : array, shape (C,)
        Start at 1, 0, 0 and 1. Assign to them as you please; the layer replaces its running statistics and
        never writes into them.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        For a number of features, a dtype or a backend that cannot be.

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
        momentum: float = 0.9,
        eps: float = 1e-5,
        axis: int = 1,
        running_variance: RunningVariance = "biased",
        backend: str = "numpy",
        dtype: str = "float32",
    ) -> None:
        import numpy as np

        if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 0:
            raise ShapeError(
                f"polybn.BatchNorm: num_features must be an int of 0 or more; got {num_features!r} "
                "(the number of channels)"
            )
        if dtype not in ("float32", "float64"):
            raise DTypeError(
                f"polybn.BatchNorm: dtype must be 'float32' or 'float64'; got {dtype!r} "
                "(of the statistics: half types only store values)"
            )
        self.num_features, self.momentum, self.eps, self.axis = num_features, momentum, eps, axis
        self.running_variance: RunningVariance = running_variance
        self._backend = find_backend(backend)
        self.gamma: Array = self._backend.asarray(np.ones(num_features, dtype))
        self.beta: Array = self._backend.asarray(np.zeros(num_features, dtype))
        self.running_mean: Array = self._backend.asarray(np.zeros(num_features, dtype))
        self.running_var: Array = self._backend.asarray(np.ones(num_features, dtype))

    def __call__(self, x: Array, *, training: bool, where: Array | None = None) -> Array:
        """Normalize ``x``; in training, take its statistics into the running ones.

        Parameters
        ----------
        x : array, shape (N, C, ...)
        training : bool
        where : array of bool, optional

        Returns
        -------
        array
            ``y``, shape and dtype of ``x``.

        Raises
        ------
        BackendError, ShapeError, DTypeError, DomainError
            As :func:`polybn.batch_norm`; the layer is then unchanged.
        """
        result = self._backend.batch_norm(x, *self._state(), training=training, where=where, **self._options())
        self.running_mean, self.running_var = result.running_mean, result.running_var
        return result.y

    def vjp(self, x: Array, *, training: bool, where: Array | None = None) -> tuple[Array, Pullback]:
        """Do as a call does, and return the pullback, too; see :func:`polybn.batch_norm_vjp`.

        Parameters
        ----------
        x : array, shape (N, C, ...)
        training : bool
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
            As :func:`polybn.batch_norm`; the layer is then unchanged.
        """
        result, pullback = self._backend.batch_norm_vjp(
            x, *self._state(), training=training, where=where, **self._options()
        )
        self.running_mean, self.running_var = result.running_mean, result.running_var
        return result.y, pullback

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copy parameters and running statistics to the host.

        Returns
        -------
        dict of str to ndarray, shape (C,)
            ``gamma``, ``beta``, ``running_mean`` and ``running_var``.
        """
        return {name: self._backend.to_numpy(getattr(self, name)) for name in _NAMES}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace all four arrays by copies of those in ``state``, or none of them.

        Parameters
        ----------
        state : mapping of str to ndarray, shape (C,)
            As :meth:`state_dict` returns it.

        Raises
        ------
        DomainError
            If names are missing or unknown.
        ShapeError, DTypeError
            If an array has another shape or dtype than the layer's.
        """
        import numpy as np

        if set(state) != set(_NAMES):
            raise DomainError(
                f"polybn.BatchNorm.load_state_dict: state must have the names {', '.join(_NAMES)}; "
                f"got {', '.join(sorted(state)) or 'none'} (nothing was loaded)"
            )
        for name, own in self.state_dict().items():
            given = state[name]
            if not isinstance(given, np.ndarray):
                raise DTypeError(
                    f"polybn.BatchNorm.load_state_dict: {name} must be a NumPy array; got {type_name(given)} "
                    "(as state_dict returns; nothing was loaded)"
                )
            if given.shape != own.shape:
                raise ShapeError(
                    f"polybn.BatchNorm.load_state_dict: {name} must have shape {own.shape}; got {given.shape} "
                    "(num_features fixes it; nothing was loaded)"
                )
            if given.dtype != own.dtype:
                raise DTypeError(
                    f"polybn.BatchNorm.load_state_dict: {name} must have dtype {own.dtype}; got {given.dtype} "
                    "(the layer's dtype; nothing was loaded)"
                )
        loaded = {name: self._backend.asarray(state[name]) for name in _NAMES}
        for name, value in loaded.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return (
            f"BatchNorm({self.num_features}, momentum={self.momentum}, eps={self.eps}, axis={self.axis}, "
            f"running_variance={self.running_variance!r}, backend={self._backend.name!r})"
        )

    def _state(self) -> tuple[Array, Array, Array, Array]:
        return self.gamma, self.beta, self.running_mean, self.running_var

    def _options(self) -> dict[str, Any]:
        return {
            "momentum": self.momentum, "eps": self.eps, "axis": self.axis, "running_variance": self.running_variance,
        }  # fmt: skip
