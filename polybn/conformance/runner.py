"""Make the calls of a case through an adapter, check what it returns, and record the calls for a reproducer."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from polybn.conformance.cases import Outcome, statistics_dtype
from polybn.conformance.guard import OutOfTime
from polybn.conformance.placing import placed, put_back
from polybn.options import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polybn.conformance.adapter import Adapter, Array, Info
    from polybn.conformance.cases import Case

T = TypeVar("T")
_Form: TypeAlias = tuple[tuple[int, ...], Any]
RETURNS = {
    "train": ("y", "running_mean", "running_var"),
    "infer": ("y",),
    "vjp": ("dx", "dgamma", "dbeta"),
    "infer_vjp": ("dx", "dgamma", "dbeta"),
}
_FORWARD = ("x", "gamma", "beta", "running_mean", "running_var")
TAKES = {"train": _FORWARD, "infer": _FORWARD, "vjp": ("x", "gamma", "beta", "dy"), "infer_vjp": (*_FORWARD, "dy")}


class Violation(AssertionError):  # noqa: N818
    """A result that the specification does not allow.

    Parameters
    ----------
    words : str
        The fault, for the author of the batch norm.
    got, expected : ndarray, optional
        Arrays that the reproducer prints.
    """

    def __init__(self, words: str, *, got: Array | None = None, expected: Array | None = None) -> None:
        super().__init__(words)
        self.got, self.expected = got, expected


class CallError(Violation):
    """An adapter raised where the specification asks for a result; the cause is kept."""


class KitAdapterError(TypeError):
    """An adapter returned something that breaks its contract, :class:`~polybn.conformance.adapter.Adapter`."""


class Memory(NamedTuple):
    """An array with its memory layout, because bugs may depend on strides."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """The byte of ``data`` at which the first element begins."""
    data: bytes


class Call(NamedTuple):
    """One call of an adapter's method."""

    method: str
    arrays: dict[str, Memory]
    options: dict[str, float | int]
    shared: dict[str, str] = {}  # noqa: RUF012 (never written to)
    """Arguments that are the same array as an earlier argument, each with the name of the earlier one."""


class Passing:
    """An adapter that passes calls on to another one, each through ``_call``."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def info(self) -> Info:
        """Return the adapter's declaration."""
        return self._adapter.info()

    def train(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Make the call."""
        returned: tuple[Array, Array, Array] = self._call("train", arrays, options)
        return returned

    def infer(self, *arrays: Array, **options: Any) -> Array:
        """Make the call."""
        returned: Array = self._call("infer", arrays, options)
        return returned

    def vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Make the call."""
        returned: tuple[Array, Array, Array] = self._call("vjp", arrays, options)
        return returned

    def infer_vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Make the call."""
        returned: tuple[Array, Array, Array] = self._call("infer_vjp", arrays, options)
        return returned

    def _call(self, method: str, arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        return getattr(self._adapter, method)(*arrays, **options)


class Recorder(Passing):
    """An adapter that passes calls on to another one, and records them and their results."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter)
        self.calls: list[Call] = []
        self.outcomes: list[str] = []
        """A digest of the result or the error of each call."""
        self.inside = ""
        """The name of the method that is running, empty if none is."""
        self.since = 0.0
        """The :func:`time.monotonic` at which the latest call began."""

    def forget(self) -> None:
        """Forget all calls."""
        self.calls, self.outcomes = [], []

    def _call(self, method: str, arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        names = TAKES[method]
        first = {id(array): name for name, array in reversed([*zip(names, arrays, strict=True)])}
        shared = {n: first[id(a)] for n, a in zip(names, arrays, strict=True) if first[id(a)] != n}
        memories = {name: remember(a) for name, a in zip(names, arrays, strict=True)}
        self.calls.append(Call(method, memories, options, shared))
        self.inside, self.since = method, time.monotonic()
        try:
            returned = super()._call(method, arrays, options)
        except Exception as error:
            self.inside = ""
            self.outcomes.append(digest(error))
            raise
        self.inside = ""
        self.outcomes.append(digest(returned))
        return returned


def digest(returned: object) -> str:
    """Return a fingerprint of a result or an error: type, shape, dtype and bytes."""
    found = hashlib.blake2b(type(returned).__name__.encode())
    for value in returned if isinstance(returned, tuple | list) else [returned]:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def remember(array: Array) -> Memory:
    """Copy the range of memory that an array covers, gaps included."""
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)] if array.size else []
    low, high = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + array.itemsize * bool(array.size)
    data = ctypes.string_at(array.ctypes.data + low, high - low) if array.size else b""
    return Memory(array.dtype.name, array.shape, array.strides, -low, data)


def run(adapter: Adapter, info: Info, case: Case, *, gradients: bool | None = None, as_is: bool = False) -> Outcome:
    """Make the calls of a case through an adapter: ``train`` and ``vjp``, or ``infer`` and ``infer_vjp``.

    The momentum of the case, the weight of the OLD value, is translated to what the adapter declares. Parameters that
    are None become ones and zeros. ``gradients`` asks for derivatives if the adapter has them; by default, in training
    only. ``as_is`` passes the arrays of the case themselves, with their strides, not copies. A method that raises is a
    CallError; one that returns anything but NumPy arrays of the right number, shape and dtype is a KitAdapterError.
    Where the adapter serves the last axis only, a case with its channels second reaches it with its channels last.
    """
    given = placed(info, case, as_is=as_is)
    outcome = _run(adapter, info, given, gradients=gradients, as_is=as_is)
    y, dx = (put_back(array, given, case) for array in (outcome.y, outcome.dx))
    assert y is not None
    return outcome._replace(y=y, dx=dx)


def _run(adapter: Adapter, info: Info, case: Case, *, gradients: bool | None, as_is: bool) -> Outcome:
    x, dy, gamma, beta, mean, var = _arguments(case, as_is=as_is)
    whole, vector = _forms(case)
    options: dict[str, Any] = {"eps": case.eps, "axis": case.axis}
    if not case.training:
        forward = (x, gamma, beta, mean, var)
        (y,) = _call(adapter, info, "infer", [whole], *forward, **options)
        outcome = Outcome(y, case.running_mean, case.running_var)
        if not (gradients and info.differentiates_inference):
            return outcome
        found = _call(adapter, info, "infer_vjp", [whole, vector, vector], *forward, dy, **options)
        return outcome._replace(**dict(zip(RETURNS["infer_vjp"], found, strict=True)))
    weight = case.momentum if info.momentum == "old" else 1 - case.momentum
    y, new_mean, new_var = _call(
        adapter, info, "train", [whole, vector, vector], x, gamma, beta, mean, var, momentum=weight, **options
    )
    outcome = Outcome(y, new_mean, new_var) if info.tracks else Outcome(y)
    if gradients is False or not info.differentiates:
        return outcome
    dx, dgamma, dbeta = _backward(adapter, info, case, as_is=as_is)
    return outcome._replace(dx=dx, dgamma=dgamma, dbeta=dbeta)


def backward(adapter: Adapter, info: Info, case: Case, *, as_is: bool = False) -> tuple[Array, Array, Array]:
    """Make only the backward call of a case in training; the errors are those of :func:`run`."""
    given = placed(info, case, as_is=as_is)
    dx, dgamma, dbeta = _backward(adapter, info, given, as_is=as_is)
    moved = put_back(dx, given, case)
    assert moved is not None
    return moved, dgamma, dbeta


def _backward(adapter: Adapter, info: Info, case: Case, *, as_is: bool) -> tuple[Array, Array, Array]:
    x, dy, gamma, beta, _, _ = _arguments(case, as_is=as_is)
    whole, vector = _forms(case)
    dx, dgamma, dbeta = _call(
        adapter, info, "vjp", [whole, vector, vector], x, gamma, beta, dy, eps=case.eps, axis=case.axis
    )
    return dx, dgamma, dbeta


def _forms(case: Case) -> tuple[_Form, _Form]:
    """Return shape and dtype of the results that are like x, and of those with one number per channel."""
    return (case.x.shape, case.x.dtype), ((case.x.shape[case.axis],), statistics_dtype(case.x))


def _arguments(case: Case, *, as_is: bool) -> list[Array]:
    wide, channels = statistics_dtype(case.x), case.x.shape[case.axis]
    given = (case.x, case.dy, case.gamma, case.beta, case.running_mean, case.running_var)
    defaults = (0, 0, 1, 0, 0, 1)
    return [
        np.full(channels, default, wide) if a is None else a if as_is else np.array(a)
        for a, default in zip(given, defaults, strict=True)
    ]


@contextlib.contextmanager
def where(words: str) -> Iterator[None]:
    """Say in what an adapter raises, or returns in a wrong form, where it happens: "on no values", for example."""
    try:
        yield
    except (CallError, KitAdapterError) as error:
        raise type(error)(f"{words}: {error}") from error.__cause__


def guarded(info: Info, method: str, function: Callable[[], T]) -> T:
    """Make a call; any error, except an interruption, becomes a :class:`CallError`."""
    try:
        return function()
    except (KeyboardInterrupt, OutOfTime):
        raise
    except BaseException as error:  # SystemExit, too, which must not end the check
        text = _text_of(error)
        raise CallError(f"{info.name}.{method} raised {type_name(error)}{text and ': '}{text}") from error


def _text_of(error: BaseException) -> str:
    try:
        return str(error).strip().partition("\n")[0]
    except Exception:  # an error that cannot even be shown
        return ""


def _call(adapter: Adapter, info: Info, method: str, forms: Sequence[_Form], *args: Any, **options: Any) -> list[Array]:
    returned: Any = guarded(info, method, lambda: getattr(adapter, method)(*args, **options))
    names, line = RETURNS[method], f"(contract: polybn.conformance.adapter.Adapter.{method})"
    if len(names) == 1:
        returned = (returned,)
    if not isinstance(returned, tuple) or len(returned) != len(names):
        length = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise KitAdapterError(
            f"{info.name}.{method} must return a tuple of {len(names)} NumPy arrays ({', '.join(names)}); "
            f"got {type_name(returned)}{length} {line}"
        )
    for name, value, (shape, dtype) in zip(names, returned, forms, strict=True):
        if type(value) is not np.ndarray:
            fix = "np.array makes a plain one" if isinstance(value, np.ndarray) else line[1:-1]
            raise KitAdapterError(
                f"{info.name}.{method}: {name} must be a plain NumPy array; got {type_name(value)} ({fix})"
            )
        if value.shape != shape or value.dtype != dtype:
            raise KitAdapterError(
                f"{info.name}.{method}: {name} must have shape {shape} and dtype {np.dtype(dtype).name}; "
                f"got {value.shape} and {value.dtype.name} {line}"
            )
    return [np.array(value) for value in returned]  # copies, because a library may reuse its own memory
