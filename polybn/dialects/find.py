"""Look-up of a dialect by its name."""

from __future__ import annotations

from polybn.dialects.dialect import Dialect
from polybn.dialects.table import DIALECTS
from polybn.near import did_you_mean, near
from polybn.options import type_name
from polybn.spec import DomainError, DTypeError


def find(dialect: Dialect | str, *, function: str = "dialects.find", argument: str = "dialect") -> Dialect:
    """Return a dialect by its name.

    Parameters
    ----------
    dialect : Dialect or str
        A key of :data:`polybn.dialects.DIALECTS`, or a dialect, which is returned unchanged.
    function, argument : str
        The names of function and argument for error messages.

    Returns
    -------
    Dialect

    Raises
    ------
    DTypeError
        If it is neither a name nor a dialect.
    DomainError
        If there is none of that name.

    Examples
    --------
    >>> from polybn import dialects
    >>> dialects.find("pytorch").momentum
    0.1
    """
    if isinstance(dialect, Dialect):
        return dialect
    if not isinstance(dialect, str):
        raise DTypeError(
            f"polybn.{function}: {argument} must be a name or a Dialect; got {type_name(dialect)} "
            f"(the names are {', '.join(DIALECTS)})"
        )
    if dialect not in DIALECTS:
        titles = {name: value.title for name, value in DIALECTS.items()}
        hint = did_you_mean(near(dialect, DIALECTS, titles))
        raise DomainError(
            f"polybn.{function}: {argument} must name a dialect; got {dialect!r:.80} "
            f"({hint}all are {', '.join(DIALECTS)}: `polybn dialects` describes them)"
        )
    return DIALECTS[dialect]
