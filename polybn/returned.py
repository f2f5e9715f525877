"""Check what a backend returns where it comes back: later, nobody could say whose fault a wrong result is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from polybn.options import type_name
from polybn.spec import BackendError, BatchNormResult

if TYPE_CHECKING:
    from polybn.spec import Affine, Backend, Moments

R = TypeVar("R", bound=tuple[Any, ...])
V = TypeVar("V", "Moments", "Affine")


def check_forward(function: str, backend: Backend, made: Any) -> tuple[BatchNormResult, Any]:
    """Return what ``forward`` returned, if it is a result and its residuals."""
    if type(made) is tuple and len(made) == 2:
        return check_record(function, backend, "forward", made[0], BatchNormResult), made[1]
    raise _error(function, backend, "forward", "a pair, a polybn.spec.BatchNormResult and residuals", _said(made))


def check_record(function: str, backend: Backend, method: str, made: Any, record: type[R]) -> R:
    """Return what a method returned, if it is the named tuple that the protocol asks for."""
    if isinstance(made, record):
        return made
    fields = ", ".join(getattr(record, "_fields", ()))
    raise _error(function, backend, method, f"a polybn.spec.{record.__name__} ({fields})", _said(made))


def check_vectors(
    function: str, backend: Backend, method: str, made: Any, record: type[V], channels: int, dtype: str
) -> V:
    """Return what a method returned, if it is a named tuple of which each field holds one value per channel.

    Counts are integers, and ``low`` may be None.
    """
    for name, value in check_record(function, backend, method, made, record)._asdict().items():
        if name == "low" and value is None:
            continue
        found = None if value is None else backend.inspect(value)
        kinds = ("int", "uint") if name == "count" else dtype
        if found is None or found.shape != (channels,) or not found.dtype.startswith(kinds):
            wanted = (
                f"{name} with shape ({channels},) and {'an integer dtype' if name == 'count' else f'dtype {dtype}'}"
            )
            got = type_name(value) if found is None else f"shape {found.shape} and dtype {found.dtype}"
            raise _error(function, backend, method, wanted, got)
    return cast("V", made)


def _said(made: object) -> str:
    return f"{type_name(made)} of {len(made)}" if isinstance(made, tuple | list) else type_name(made)


def _error(function: str, backend: Backend, method: str, wanted: str, got: str) -> BackendError:
    return BackendError(
        f"polybn.{function}: {method} of the backend {backend.name!r} must return {wanted}; got {got} "
        f"(polybn.spec.Backend.{method} says what; the fault is the backend's, not the caller's)"
    )
