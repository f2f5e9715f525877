"""Count, mean, variance, smallest and largest value per channel, for values in parts."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.atomic import read_whole, write_atomic
from polybn.dispatch import backend_of
from polybn.functional import merge_moments, moments
from polybn.options import check_axis, type_name
from polybn.spec import DomainError, DTypeError, Moments, ShapeError
from polybn.statistics.extremes import extremes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.atomic import StrPath
    from polybn.spec import Array

FIELDS = {"count": "int64", "mean": "float64", "m2": "float64", "low": "float64", "min": "float64", "max": "float64"}
"""The arrays of a saved file, and their dtypes."""
MOST_BYTES = 1 << 28
DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""The exceptions that damaged files of arrays can raise."""


class Statistics:
    """Statistics per channel of values in parts: batches, files, the shares of several processes.

    The results are those of all values together, to a few roundings of float64 per part (clause S15), for any sizes
    and any order of the parts, and for a mean at any distance from zero. Parts may be of different libraries. Threads
    and processes have one each, and :meth:`merge` joins them. The arrays that it hands out are read-only.

    Parameters
    ----------
    axis : int, default 1
        The channel axis of the arrays to come; negative counts from the end.
    extremes : bool, default True
        Whether to find the smallest and largest values, too. The host finds them, so an array on another device
        is copied to it.

    Raises
    ------
    DTypeError
        If ``axis`` is no integer.

    See Also
    --------
    polybn.moments : Statistics of one array.
    polybn.BatchNorm.recalibrate : Running statistics of a layer, made anew from a data set.

    Examples
    --------
    >>> import numpy as np
    >>> import polybn
    >>> statistics = polybn.Statistics(axis=-1)
    >>> for value in (10, 20, 90):
    ...     statistics.update(np.full((1, 28, 28, 3), value, np.uint8))
    >>> statistics.mean.tolist(), statistics.variance()[0].round(3).tolist(), statistics.max.tolist()
    ([40.0, 40.0, 40.0], 1266.667, [90.0, 90.0, 90.0])
    """

    def __init__(self, *, axis: int = 1, extremes: bool = True) -> None:
        self.axis, self.extremes = check_axis("Statistics", axis), bool(extremes)
        self._moments: Moments | None = None
        self._min, self._max = np.zeros(0), np.zeros(0)

    def update(self, x: Array, *, where: Array | None = None) -> None:
        """Add the values of an array.

        Parameters
        ----------
        x : array, shape (N, C, ...)
            An array of any library, as for :func:`polybn.moments`; C is at ``axis``.
        where : array of bool, optional
            Broadcasts to the shape of ``x``; False leaves a value out.

        Raises
        ------
        BackendError, ShapeError, DTypeError
            As in :func:`polybn.moments`, or if the number of channels differs from earlier parts. Nothing changes then.
        """
        backend = backend_of("Statistics.update", x=x, where=where)
        found = moments(x, axis=self.axis, where=where)
        part = Statistics(axis=self.axis, extremes=self.extremes)
        part._moments = _wide(Moments(*(None if a is None else backend.to_numpy(a) for a in found)))
        if self.extremes:
            host: list[Any] = [a if isinstance(a, np.ndarray | None) else backend.to_numpy(a) for a in (x, where)]
            part._min, part._max = extremes(host[0], self.axis, host[1])
        self._take("update", "x", part)

    def merge(self, other: Statistics) -> None:
        """Add the values of another accumulator.

        Parameters
        ----------
        other : Statistics
            Statistics of as many channels, which stay unchanged.

        Raises
        ------
        DTypeError, ShapeError
            If it is something else, or has another number of channels; nothing changes then.
        """
        if not isinstance(other, Statistics):
            raise DTypeError(
                f"polybn.Statistics.merge: other must be a polybn.Statistics; got {type_name(other)} "
                "(an array is taken in by update)"
            )
        if other.channels is not None:
            self._take("merge", "other", other)

    @property
    def moments(self) -> Moments:
        """The moments, as float64 NumPy arrays, for :func:`polybn.merge_moments`."""
        if self._moments is None:
            raise DomainError(
                "polybn.Statistics: update must have taken in an array; got none (so that the channels are not known)"
            )
        return self._moments

    @property
    def channels(self) -> int | None:
        """The number of channels; None before the first array."""
        return None if self._moments is None else len(self._moments.count)

    @property
    def count(self) -> NDArray[np.int64]:
        """The number of values, shape ``(C,)``."""
        count: NDArray[np.int64] = self.moments.count
        return count

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean, shape ``(C,)``; 0 in a channel without values."""
        mean: NDArray[np.float64] = self.moments.mean
        return mean

    @property
    def min(self) -> NDArray[np.float64]:
        """The smallest value, shape ``(C,)``; infinity in a channel without values."""
        return self._extreme(self._min)

    @property
    def max(self) -> NDArray[np.float64]:
        """The largest value, shape ``(C,)``; minus infinity in a channel without values."""
        return self._extreme(self._max)

    def variance(self, *, unbiased: bool = False) -> NDArray[np.float64]:
        """Return the variance per channel; 0 for channels with too few values.

        Parameters
        ----------
        unbiased : bool, default False
            Divide by ``count - 1`` instead of ``count``.

        Returns
        -------
        ndarray, shape (C,)
            In float64.
        """
        variance: NDArray[np.float64] = self.moments.variance(unbiased=unbiased)
        return variance

    def std(self, *, unbiased: bool = False) -> NDArray[np.float64]:
        """Return the standard deviation, the root of :meth:`variance`.

        Parameters
        ----------
        unbiased : bool, default False
            As in :meth:`variance`.

        Returns
        -------
        ndarray, shape (C,)
            In float64.
        """
        std: NDArray[np.float64] = self.moments.std(unbiased=unbiased)
        return std

    def save(self, path: StrPath) -> None:
        """Write everything to a ``.npz`` file without pickles, which is replaced as a whole.

        Parameters
        ----------
        path : path
            The file; no ending is added to its name.

        Raises
        ------
        DomainError
            If no array was added.
        OSError
            If it cannot be written.
        """
        data = io.BytesIO()
        arrays = self.moments._asdict() | ({"min": self._min, "max": self._max} if self.extremes else {})
        np.savez(data, axis=np.array(self.axis), **arrays)
        write_atomic(path, data.getvalue())

    @classmethod
    def load(cls, path: StrPath) -> Statistics:
        """Read a file of :meth:`save`, to add more values.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        Statistics
            The saved statistics.

        Raises
        ------
        DomainError
            If the file holds something else, or is damaged.
        OSError
            If it cannot be read.
        """
        data = read_whole(path, MOST_BYTES)
        try:
            if not data.startswith(b"PK"):
                what = "one array, as .npy files have it" if data.startswith(b"\x93NUMPY") else "no .npz file"
                raise ValueError(f"it is {what}" if data else "it is empty")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls._restored(arrays)
        except (*DAMAGE, TypeError, AttributeError) as error:
            raise DomainError(
                f"polybn.Statistics.load: path must name a file that save has written; got {path} ({error})"
            ) from error

    def __repr__(self) -> str:
        if self._moments is None:
            return f"Statistics(axis={self.axis})"
        return f"Statistics(axis={self.axis}, count={self.count}, mean={self.mean}, std={self.std()})"

    @classmethod
    def _restored(cls, arrays: dict[str, NDArray[Any]]) -> Statistics:
        extremes = "min" in arrays
        names = list(FIELDS) if extremes else list(FIELDS)[:4]
        if set(arrays) != {"axis", *names}:
            raise ValueError(
                f"its arrays are {', '.join(sorted(arrays)) or 'none'}; they must be axis, {', '.join(names)}"
            )
        axis = arrays.pop("axis")
        if axis.shape or axis.dtype.kind not in "iu":
            raise ValueError(f"axis has dtype {axis.dtype} and shape {axis.shape}")
        restored = cls(axis=int(axis), extremes=extremes)
        for name, array in arrays.items():
            if array.dtype != FIELDS[name] or array.shape != (len(arrays["count"]),):
                raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}")
        if (arrays["count"] < 0).any() or (arrays["m2"] < 0).any():
            raise ValueError("a count or a sum of squares is negative")
        restored._moments = Moments(*(arrays[name] for name in names[:4]))
        if extremes:
            restored._min, restored._max = arrays["min"], arrays["max"]
        restored._freeze()
        return restored

    def _freeze(self) -> None:
        """Make the arrays read-only: they are handed out, and two accumulators may share them."""
        for array in (*self.moments, self._min, self._max):
            array.flags.writeable = False

    def _take(self, function: str, name: str, part: Statistics) -> None:
        extremes = self.extremes and part.extremes
        if self._moments is None:
            self._moments, self._min, self._max, self.extremes = part._moments, part._min, part._max, extremes
            self._freeze()
            return
        if part.channels != self.channels:
            raise ShapeError(
                f"polybn.Statistics.{function}: {name} must have {self.channels} channels; got {part.channels} "
                "(the number of channels that came first)"
            )
        self._moments, self.extremes = merge_moments(self._moments, part.moments), extremes
        if extremes:
            self._min, self._max = np.minimum(self._min, part._min), np.maximum(self._max, part._max)
        self._freeze()

    def _extreme(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.extremes:
            raise DomainError(
                "polybn.Statistics: extremes must be True for smallest and largest values; got False "
                "(it is an option of Statistics, and all parts must have it)"
            )
        return values[: len(self.count)]


def _wide(part: Moments) -> Moments:
    """Convert moments to float64, in which a mean and its low part from a shorter type add up to one number."""
    low = np.zeros(part.mean.shape) if part.low is None else part.low.astype(np.float64)
    mean = part.mean + low
    with np.errstate(invalid="ignore"):
        return Moments(part.count.astype(np.int64), mean, part.m2.astype(np.float64), (part.mean - mean) + low)
