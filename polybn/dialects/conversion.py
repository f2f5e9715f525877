"""Conversion of a state to another framework: exact if possible, otherwise with notes on what is not."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.dialects.dialect import Dialect
from polybn.dialects.find import find
from polybn.dialects.options import convert_options
from polybn.dialects.record import FUNCTION, SCALARS
from polybn.dialects.said import read_options
from polybn.options import type_name
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polybn.dialects.record import Role

__all__ = ["Converted", "convert", "convert_options"]


MOST = 2**63
"""The first whole number that a counter cannot hold."""


class Converted(NamedTuple):
    """The result of :func:`polybn.dialects.convert`."""

    state: dict[str, NDArray[Any]]
    """The state under the target's own names. Arrays with a value per channel have shape ``(C,)``."""
    notes: tuple[str, ...]
    """A sentence for each inexact step and each remaining task; empty if training continues exactly as before."""


def convert(
    state: Mapping[str, NDArray[Any] | np.generic],
    source: Dialect | str,
    target: Dialect | str,
    count: int | None = None,
    *,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert the state of one batch norm from a framework to another.

    Without ``count``, inference gives the same results in the target as in the source. With it, the running variance
    becomes the one that the target would have kept for training batches of ``count`` values per channel.

    Parameters
    ----------
    state : mapping of str to ndarray, shape (C,)
        The state under the source's names. Arrays may have axes of length 1 beside the channel axis.
    source, target : Dialect or str
        The dialects of the state and of the result.
    count : int, optional
        Number of values per channel in a training batch, ``x.size / C``: Bessel's correction needs it.
    steps : int, optional
        The number of batches so far, for a target that counts batches and a source that does not.
    options : mapping, optional
        The options of the layer, in the words of the source, as for :func:`convert_options`. Some conversions
        need them: inverse roots need eps, debiased averages need momentum, and MXNet's operator needs fix_gamma.

    Returns
    -------
    Converted
        ``(state, notes)``.

    Raises
    ------
    DomainError
        If a dialect or a name is unknown, or a necessary fact is missing.
    ShapeError, DTypeError
        If values are no arrays, or do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn import dialects
    >>> state = {"weight": np.ones(1), "bias": np.zeros(1), "running_mean": np.ones(1), "running_var": np.array([5.0])}
    >>> made = dialects.convert(state, "pytorch", "keras3", count=5)
    >>> made.state["moving_variance"].tolist()
    [4.0]
    """
    from polybn.dialects.carry import Told, carry

    here = find(source, function="dialects.convert", argument="source")
    there = find(target, function="dialects.convert", argument="target")
    count = _number("count", count, 2, "Bessel's correction divides by count - 1")
    steps = _number("steps", steps, 0, "a number of batches")
    given = read_options({} if options is None else options, here, "dialects.convert")
    arrays = _arrays(state, here)
    fixes = given.fix_gamma and not there.fix_gamma  # then gamma has to become 1: there is no word for it
    if here is there and steps is None and not fixes:
        return Converted({here.names[role]: array.copy() for role, array in arrays.items()}, ())
    made, notes = carry(arrays, here, there, Told(count, steps, given))
    return Converted({there.names[role]: array for role, array in made.items()}, tuple(notes))


def _arrays(state: Mapping[str, NDArray[Any] | np.generic], dialect: Dialect) -> dict[Role, NDArray[Any]]:
    """Return the arrays of a state by role; those with a value per channel are vectors of one length."""
    import numpy as np

    if not isinstance(state, Mapping):
        raise DTypeError(f"{FUNCTION}: state must be a mapping of names to arrays; got {type_name(state)}")
    roles = {name: role for role, name in dialect.names.items()}
    unknown = [str(name) for name in state if name not in roles]
    missing = [name for name, role in roles.items() if name not in state and role not in dialect.may_lack]
    if unknown or missing:
        got = f"{', '.join(map(str, state)) or 'none'}"
        raise DomainError(
            f"{FUNCTION}: state must have the names of {dialect.name}, {', '.join(roles)}; got {got} "
            f"({f'unknown: {unknown[0]}' if unknown else f'missing: {missing[0]}'}{_meant(state)})"
        )
    found: dict[Role, NDArray[Any]] = {}
    for name, value in state.items():
        if not isinstance(value, np.ndarray | np.generic):
            raise DTypeError(
                f"{FUNCTION}: {name} must be a NumPy array; got {type_name(value)} (numpy.asarray makes one)"
            )
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            raise DTypeError(f"{FUNCTION}: {name} must hold real numbers; got {value.dtype} (cast it to float32)")
        found[roles[name]] = (
            _scalar(name, roles[name], np.asarray(value)) if roles[name] in SCALARS else np.asarray(value)
        )
    vectors = [role for role in found if role not in SCALARS]
    sizes = {found[role].size for role in vectors}
    for role in vectors:
        if len(sizes) > 1 or found[role].size != max(found[role].shape, default=1):
            shapes = ", ".join(f"{dialect.names[r]} {found[r].shape}" for r in vectors)
            raise ShapeError(f"{FUNCTION}: all arrays must have shape (C,); got {shapes} (one value a channel)")
        found[role] = found[role].ravel()
    return found


def _scalar(name: str, role: Role, value: NDArray[Any]) -> NDArray[Any]:
    """Return the one value of a counter, a flag or a factor, as its framework stores it."""
    number = value.item() if value.size == 1 else -1
    if not 0 <= number < MOST or (role != "factor" and number != int(number)):
        kind = "number" if role == "factor" else "whole number"
        got = number if value.size == 1 else f"shape {value.shape}"
        raise DomainError(
            f"{FUNCTION}: {name} must be one {kind} from 0 to 2**63 - 1; got {got} (all channels share it)"
        )
    return value.reshape((1,) if role == "factor" else ())


def _meant(state: Mapping[str, object]) -> str:
    """Return the end of a message that names the dialects whose names a state has."""
    from polybn.dialects.table import DIALECTS

    fit = [d.name for d in DIALECTS.values() if set(state) <= set(d.names.values())]
    return f"; these are names of {', '.join(fit)}" if fit and state else ""


def _number(name: str, value: Any, least: int, why: str) -> int | None:
    """Return a whole number, or None where none was given."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise DomainError(f"{FUNCTION}: {name} must be an int of {least} or more; got {value!r} ({why})")
    if int(value) >= MOST:
        raise DomainError(f"{FUNCTION}: {name} must be below 2**63; got {value!r} ({why})")
    return int(value)
