"""Momentum, eps and fix_gamma, from the words of one dialect into those of another."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from polybn.dialects.find import find
from polybn.dialects.record import Dialect
from polybn.options import check_momentum, is_number, type_name
from polybn.spec import DomainError, DTypeError


class Options(NamedTuple):
    """What a layer was made with; None for what nobody said."""

    momentum: float | None = None
    """The weight of the OLD value, whatever the dialect weighs."""
    eps: float | None = None
    fix_gamma: bool | None = None
    axis: int | None = None


class ConvertedOptions(NamedTuple):
    """What :func:`convert_options` returns."""

    options: dict[str, Any]
    """In the words of the target."""
    notes: tuple[str, ...]
    """A sentence for each thing that is not exact."""


def convert_options(options: Mapping[str, Any], source: Dialect | str, target: Dialect | str) -> ConvertedOptions:
    """Say in the target's words what a layer of the source was made with.

    What ``options`` leaves out has the source's default, which is said in the result, because the target's differs.

    Parameters
    ----------
    options : mapping
        In the words of the source: ``{"momentum": 0.1, "eps": 1e-3}`` for PyTorch, ``{"decay_rate": 0.99}`` for Haiku.
    source, target : Dialect or str
        Whose words ``options`` has, and whose are wanted. A momentum means nothing without the first.

    Returns
    -------
    ConvertedOptions
        ``(options, notes)``.

    Raises
    ------
    DTypeError, DomainError
        If a dialect or a word is unknown, or a value cannot be.

    Examples
    --------
    >>> from polybn import dialects
    >>> dialects.convert_options({"momentum": 0.1}, "pytorch", "keras3").options
    {'momentum': 0.9, 'epsilon': 1e-05, 'axis': 1}
    """
    here = find(source, function="dialects.convert_options", argument="source")
    there = find(target, function="dialects.convert_options", argument="target")
    given = read_options(_defaults(here) | dict(options), here, "dialects.convert_options")
    assert given.eps is not None
    made: dict[str, Any] = {} if given.momentum is None else {there.momentum_word: to_old(there, given.momentum)}
    made[there.eps_word] = max(given.eps, there.least_eps)
    made |= {"axis": given.axis} if there.any_axis else {}
    made |= {"fix_gamma": bool(given.fix_gamma)} if there.fix_gamma else {}
    return ConvertedOptions(made, tuple(_notes(here, there, given)))


def _defaults(dialect: Dialect) -> dict[str, Any]:
    """Return what a layer is made with if nothing is said."""
    found: dict[str, Any] = {dialect.eps_word: dialect.eps, "axis": dialect.axis}
    found |= {} if dialect.momentum is None else {dialect.momentum_word: dialect.momentum}
    return found | ({"fix_gamma": True} if dialect.fix_gamma else {})


def read_options(options: Mapping[str, Any], dialect: Dialect, function: str) -> Options:
    """Check options in the words of a dialect; momentum comes back as the weight of the old value."""
    words = {dialect.momentum_word: "momentum", dialect.eps_word: "eps", "axis": "axis"}
    words |= {"fix_gamma": "fix_gamma"} if dialect.fix_gamma else {}
    unknown = [word for word in options if word not in words]
    if unknown:
        raise DomainError(
            f"polybn.{function}: options must be in the words of {dialect.name} ({', '.join(words)}); "
            f"got {unknown[0]!r} (what it means elsewhere says nothing here)"
        )
    found = {words[word]: value for word, value in options.items()}
    if "momentum" in found:
        check_momentum(function, found["momentum"])
        found["momentum"] = to_old(dialect, found["momentum"])
    if "eps" in found and (isinstance(found["eps"], bool) or not is_number(found["eps"]) or not found["eps"] >= 0):
        raise DomainError(f"polybn.{function}: eps must be 0 or more; got {found['eps']!r} (it is added to a variance)")
    if not isinstance(found.get("fix_gamma", True), bool):
        raise DTypeError(
            f"polybn.{function}: fix_gamma must be True or False; got {type_name(found['fix_gamma'])} "
            "(whether gamma is taken for 1, whatever the state holds)"
        )
    return Options(**found)


def to_old(dialect: Dialect, momentum: float) -> float:
    """Turn a dialect's momentum into the weight of the old value, or back: the same step, there and back exact."""
    if dialect.momentum_weighs == "old":
        return float(momentum)
    # In decimal, because 1 - 0.9 is 0.09999999999999998 in binary.
    return float(1 - Decimal(repr(float(momentum))))


def _notes(here: Dialect, there: Dialect, given: Options) -> list[str]:
    momentum, eps, notes = given.momentum, given.eps or 0.0, list[str]()
    if momentum is None:
        notes.append(f"{here.name} has no momentum unless one is said, and none was: {there.name} takes its own.")
    elif there.momentum_weighs != here.momentum_weighs and to_old(there, to_old(there, momentum)) != momentum:
        notes.append(f"The weight {momentum!r} of the old value is rounded: 1 minus it is beside 1.")
    if eps < there.least_eps:
        notes.append(f"eps {eps:g} becomes {there.least_eps:g}, the least that {there.name} takes.")
    if not there.any_axis and given.axis != there.axis:
        notes.append(
            f"The channel axis {given.axis} becomes {there.axis}, the only one of {there.name}: move the data's axis."
        )
    return notes
