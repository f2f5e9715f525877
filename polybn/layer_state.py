"""What a layer accepts as its state: names, shapes, dtypes, variances and life-times, before anything is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.options import type_name
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError, traits_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from polybn.spec import Array, Backend

NAMES = ("gamma", "beta", "running_mean", "running_var")


def check_state(state: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``state`` in native byte order; each must fit the one of the layer's own state."""
    import numpy as np

    if set(state) != set(own):
        known = ", ".join(f"{name} is {role} here" for name, role in _elsewhere().items() if name in state)
        _refuse(
            DomainError, f"state must have the names {', '.join(own)}; got {', '.join(sorted(state)) or 'none'}", known
        )
    for name, value in own.items():
        given = state[name]
        if not isinstance(given, np.ndarray):
            _refuse(DTypeError, f"{name} must be a NumPy array; got {type_name(given)}", "as state_dict returns")
        if given.shape != value.shape:
            _refuse(ShapeError, f"{name} must have shape {value.shape}; got {given.shape}", "num_features fixes it")
        if given.dtype.newbyteorder("=") != value.dtype:
            _refuse(DTypeError, f"{name} must have dtype {value.dtype}; got {given.dtype}", "the layer's dtype")
    bad = [] if "running_var" not in own else ~((state["running_var"] >= 0) & np.isfinite(state["running_var"]))
    if np.any(bad):
        first = int(np.argmax(bad))
        rule = "running_var must be finite and not negative"
        got = f"got {float(state['running_var'][first])!r} in channel {first}"
        _refuse(DomainError, f"{rule}; {got}", "no batch has such a variance, except one that holds NaN or overflows")
    return {name: state[name].astype(value.dtype) for name, value in own.items()}


def check_lasting(backend: Backend, name: str, old: Array | None, new: Array | None) -> None:
    """Check that a layer can keep an array. One that was made in the same transformation, and ends with it, may."""
    fleeting = traits_of(backend).fleeting
    advice = fleeting(new) if fleeting and new is not None else ""
    if fleeting and advice and not (old is not None and fleeting(old)):
        raise BackendError(
            f"polybn.BatchNorm: {name} must be an array that lasts, for a layer keeps it; got {type_name(new)} "
            f"({advice}; the layer is unchanged)"
        )


def _elsewhere() -> dict[str, str]:
    """Return what other frameworks call these arrays."""
    from polybn.dialects import DIALECTS

    roles = {name: role for dialect in DIALECTS.values() for role, name in dialect.names.items() if role in NAMES}
    return {name: role for name, role in sorted(roles.items()) if name not in NAMES}


def _refuse(error: type[Exception], words: str, because: str) -> None:
    reason = f"{because}; " if because else ""
    raise error(f"polybn.BatchNorm.load_state_dict: {words} ({reason}nothing was loaded)")
