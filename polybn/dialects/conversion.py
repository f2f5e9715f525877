"""Carry a state from one framework to another: exactly where that can be, and else with words about what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.dialects.dialect import Dialect
from polybn.dialects.find import find
from polybn.dialects.options import convert_options
from polybn.dialects.said import read_options
from polybn.options import type_name
from polybn.spec import DomainError, DTypeError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polybn.dialects.record import Role

__all__ = ["Converted", "convert", "convert_options"]
FUNCTION = "polybn.dialects.convert"


class Converted(NamedTuple):
    """What :func:`polybn.dialects.convert` returns."""

    state: dict[str, NDArray[Any]]
    """Under the target's own names. Arrays of channels have shape ``(C,)``."""
    notes: tuple[str, ...]
    """A sentence for each thing that is not exact, or is left to do; none if all goes on as it would have."""


def convert(
    state: Mapping[str, NDArray[Any] | np.generic],
    source: Dialect | str,
    target: Dialect | str,
    count: int | None = None,
    *,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """Carry the state of one batch norm from a framework to another.

    Without ``count``, inference returns in the target what it returned in the source. With it, the running variance
    becomes the one that the target would have kept, had it trained on batches of ``count`` values a channel.

    Parameters
    ----------
    state : mapping of str to ndarray, shape (C,)
        Under the names that the source gives its arrays; axes of length 1 beside the channels' may be there.
    source, target : Dialect or str
        Where the state comes from, and where it goes.
    count : int, optional
        Number of values per channel in a training batch, ``x.size / C``: Bessel's correction needs it.
    steps : int, optional
        How many batches the statistics have seen, for a target that counts them and a source that does not.
    options : mapping, optional
        What the layer was made with, in the words of the source, as for :func:`convert_options`. Some conversions
        need it: inverse roots the eps, debiased averages the momentum, MXNet's operator fix_gamma.

    Returns
    -------
    Converted
        ``(state, notes)``.

    Raises
    ------
    DomainError
        If a dialect or a name is unknown, or what the conversion needs was not said.
    ShapeError, DTypeError
        If the arrays are none, or do not fit together.

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
    _check_number("count", count, 2, "Bessel's correction divides by count - 1")
    _check_number("steps", steps, 0, "a number of batches")
    given = read_options(options or {}, here, "dialects.convert")
    arrays = _arrays(state, here)
    if here is there and steps is None:
        return Converted({here.names[role]: array.copy() for role, array in arrays.items()}, ())
    made, notes = carry(arrays, here, there, Told(count, steps, given))
    return Converted({there.names[role]: array for role, array in made.items()}, tuple(notes))


def _arrays(state: Mapping[str, NDArray[Any] | np.generic], dialect: Dialect) -> dict[Role, NDArray[Any]]:
    """Return the arrays of a state by role, those of channels as vectors of one length."""
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
            raise DTypeError(f"{FUNCTION}: {name} must be a NumPy array; got {type_name(value)} (copy it to the host)")
        found[roles[name]] = np.asarray(value)
    vectors = [role for role in found if role not in ("count", "second_count", "factor", "first")]
    sizes = {found[role].size for role in vectors}
    for role in vectors:
        if len(sizes) > 1 or found[role].size != max(found[role].shape, default=1):
            shapes = ", ".join(f"{dialect.names[r]} {found[r].shape}" for r in vectors)
            raise ShapeError(f"{FUNCTION}: all arrays must have shape (C,); got {shapes} (one value a channel)")
        found[role] = found[role].ravel()
    return found


def _meant(state: Mapping[str, object]) -> str:
    """Name the dialects whose names a state has."""
    from polybn.dialects.table import DIALECTS

    fit = [d.name for d in DIALECTS.values() if set(state) <= set(d.names.values())]
    return f"; these are names of {', '.join(fit)}" if fit and state else ""


def _check_number(name: str, value: Any, least: int, why: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise DomainError(f"{FUNCTION}: {name} must be an int of {least} or more; got {value!r} ({why})")
