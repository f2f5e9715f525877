"""Make the calls of a case through an adapter, hold it to its contract, and remember the calls for a reproducer."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from polybn.arguments import type_name
from polybn.conformance.cases import Outcome, statistics_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polybn.conformance.adapter import Adapter, Array, Info
    from polybn.conformance.cases import Case

_Form: TypeAlias = tuple[tuple[int, ...], Any]
RETURNS = {
    "train": ("y", "running_mean", "running_var"),
    "infer": ("y",),
    "vjp": ("dx", "dgamma", "dbeta"),
}


class Violation(AssertionError):  # noqa: N818
    """A result that the specification does not allow.

    Parameters
    ----------
    words : str
        What is wrong, for the person who wrote the batch norm.
    got, expected : ndarray, optional
        What the reproducer shows side by side.
    """

    def __init__(self, words: str, *, got: Array | None = None, expected: Array | None = None) -> None:
        super().__init__(words)
        self.got, self.expected = got, expected


class CallError(Violation):
    """An adapter raised where the specification asks for a result; the cause is kept."""


class KitAdapterError(TypeError):
    """An adapter returned what its contract does not know: see :class:`~polybn.conformance.adapter.Adapter`."""


class Memory(NamedTuple):
    """An array as it lay in memory: strides matter to bugs."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """Of the first element in ``data``."""
    data: bytes


class Call(NamedTuple):
    """One call of an adapter's method."""

    method: str
    arrays: dict[str, Memory]
    options: dict[str, float | int]


class Recorder:
    """An adapter that remembers the calls made through it since ``calls`` was last emptied."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.calls: list[Call] = []

    def info(self) -> Info:
        """Hand on the declaration."""
        return self._adapter.info()

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> tuple[Array, Array, Array]:
        """Remember the call, and make it."""
        arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
        self._remember("train", arrays, options)
        return self._adapter.train(*arrays.values(), **options)

    def infer(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> Array:
        """Remember the call, and make it."""
        arrays = {"x": x, "gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
        self._remember("infer", arrays, options)
        return self._adapter.infer(*arrays.values(), **options)

    def vjp(self, x: Array, gamma: Array, beta: Array, dy: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Remember the call, and make it."""
        self._remember("vjp", {"x": x, "gamma": gamma, "beta": beta, "dy": dy}, options)
        return self._adapter.vjp(x, gamma, beta, dy, **options)

    def _remember(self, method: str, arrays: dict[str, Array], options: dict[str, Any]) -> None:
        self.calls.append(Call(method, {name: remember(a) for name, a in arrays.items()}, options))


def remember(array: Array) -> Memory:
    """Copy the stretch of memory that an array covers."""
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)] if array.size else []
    low, high = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + array.itemsize * bool(array.size)
    data = ctypes.string_at(array.ctypes.data + low, high - low) if array.size else b""
    return Memory(array.dtype.name, array.shape, array.strides, -low, data)


def run(adapter: Adapter, info: Info, case: Case, *, gradients: bool | None = None, as_is: bool = False) -> Outcome:
    """Make the calls of a case through an adapter.

    Parameters
    ----------
    adapter : Adapter
        Whose methods are called: ``train`` and ``vjp``, or ``infer``.
    info : Info
        What it declares; the momentum of the case, the weight of the OLD value, is translated.
    case : Case
        ``running_variance`` is not passed on: it says what to expect. Parameters that are None become ones and zeros.
    gradients : bool, optional
        Whether to call ``vjp``, too; by default in training if the adapter has it.
    as_is : bool, default False
        Hand over the arrays of the case themselves, strides and all, not copies.

    Returns
    -------
    Outcome
        None where the calls made return nothing of the kind.

    Raises
    ------
    CallError
        If a method raised; the cause is kept.
    KitAdapterError
        If a method returned anything but NumPy arrays of the right number, shape and dtype.
    """
    x, _, gamma, beta, mean, var = _arguments(case, as_is=as_is)
    whole, vector = _forms(case)
    options: dict[str, Any] = {"eps": case.eps, "axis": case.axis}
    if not case.training:
        (y,) = _call(info, "infer", [whole], adapter.infer, x, gamma, beta, mean, var, **options)
        return Outcome(y, case.running_mean, case.running_var)
    weight = case.momentum if info.momentum == "old" else 1 - case.momentum
    y, new_mean, new_var = _call(
        info, "train", [whole, vector, vector], adapter.train, x, gamma, beta, mean, var, momentum=weight, **options
    )
    outcome = Outcome(y, new_mean, new_var) if info.tracks else Outcome(y)
    if gradients is False or not info.differentiates:
        return outcome
    dx, dgamma, dbeta = backward(adapter, info, case, as_is=as_is)
    return outcome._replace(dx=dx, dgamma=dgamma, dbeta=dbeta)


def backward(adapter: Adapter, info: Info, case: Case, *, as_is: bool = False) -> tuple[Array, Array, Array]:
    """Make the backward call of a case alone, whatever was called before.

    Parameters
    ----------
    adapter : Adapter
        Whose ``vjp`` is called.
    info : Info
        What it declares.
    case : Case
        In training.
    as_is : bool, default False
        Hand over the arrays of the case themselves.

    Raises
    ------
    CallError, KitAdapterError
        As :func:`run` does.
    """
    x, dy, gamma, beta, _, _ = _arguments(case, as_is=as_is)
    whole, vector = _forms(case)
    dx, dgamma, dbeta = _call(
        info, "vjp", [whole, vector, vector], adapter.vjp, x, gamma, beta, dy, eps=case.eps, axis=case.axis
    )
    return dx, dgamma, dbeta


def _forms(case: Case) -> tuple[_Form, _Form]:
    """Return shape and dtype of what is like x, and of what is one number per channel."""
    return (case.x.shape, case.x.dtype), ((case.x.shape[case.axis],), statistics_dtype(case.x))


def _arguments(case: Case, *, as_is: bool) -> list[Array]:
    wide, channels = statistics_dtype(case.x), case.x.shape[case.axis]
    given = (case.x, case.dy, case.gamma, case.beta, case.running_mean, case.running_var)
    defaults = (0, 0, 1, 0, 0, 1)
    return [
        np.full(channels, default, wide) if a is None else a if as_is else np.array(a)
        for a, default in zip(given, defaults, strict=True)
    ]


def _call(info: Info, method: str, forms: Sequence[_Form], function: Any, *args: Any, **options: Any) -> list[Array]:
    try:
        returned = function(*args, **options)
    except Exception as error:  # whatever a library raises
        text = str(error).strip().partition("\n")[0]
        raise CallError(f"{info.name}.{method} raised {type_name(error)}: {text}") from error
    names, line = RETURNS[method], f"(contract: polybn.conformance.adapter.Adapter.{method})"
    if len(names) == 1:
        returned = (returned,)
    if not isinstance(returned, tuple) or len(returned) != len(names):
        length = f" of {len(returned)}" if hasattr(returned, "__len__") else ""
        raise KitAdapterError(
            f"{info.name}.{method} must return a tuple of {len(names)} NumPy arrays ({', '.join(names)}); "
            f"got {type_name(returned)}{length} {line}"
        )
    for name, value, (shape, dtype) in zip(names, returned, forms, strict=True):
        if not isinstance(value, np.ndarray):
            raise KitAdapterError(f"{info.name}.{method}: {name} must be a NumPy array; got {type_name(value)} {line}")
        if value.shape != shape or value.dtype != dtype:
            raise KitAdapterError(
                f"{info.name}.{method}: {name} must have shape {shape} and dtype {np.dtype(dtype).name}; "
                f"got {value.shape} and {value.dtype.name} {line}"
            )
    return [np.array(value) for value in returned]  # a library may use its own memory again
