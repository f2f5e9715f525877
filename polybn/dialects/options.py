"""Conversion of momentum, eps and fix_gamma from one dialect to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from polybn.dialects.dialect import Dialect
from polybn.dialects.find import find
from polybn.dialects.record import CUMULATIVE
from polybn.dialects.said import Options, least, read_options, to_old


class ConvertedOptions(NamedTuple):
    """The result of :func:`polybn.dialects.convert_options`."""

    options: dict[str, Any]
    """The options in the words of the target."""
    notes: tuple[str, ...]
    """A sentence for each inexact value."""


def convert_options(options: Mapping[str, Any], source: Dialect | str, target: Dialect | str) -> ConvertedOptions:
    """Convert the options of a layer from the source's words to the target's.

    Missing options take the source's defaults, which the result contains, because the target's may differ. A momentum
    of None, PyTorch's average over all batches, stays None where the target has that, too; elsewhere a note says it.

    Parameters
    ----------
    options : mapping
        The options in the source's words: ``{"momentum": 0.1}`` for PyTorch, ``{"decay_rate": 0.99}`` for Haiku.
    source, target : Dialect or str
        The dialects of ``options`` and of the result. The meaning of a momentum depends on its dialect.

    Returns
    -------
    ConvertedOptions
        ``(options, notes)``.

    Raises
    ------
    DTypeError, DomainError
        If a dialect or a word is unknown, or a value is out of range.

    Examples
    --------
    >>> from polybn import dialects
    >>> dialects.convert_options({"momentum": 0.1}, "pytorch", "keras3").options
    {'momentum': 0.9, 'epsilon': 1e-05, 'axis': 1}
    """
    here = find(source, function="dialects.convert_options", argument="source")
    there = find(target, function="dialects.convert_options", argument="target")
    given = read_options(options, here, "dialects.convert_options", _defaults(here))
    assert given.eps is not None
    made: dict[str, Any] = {} if given.momentum is None else {there.momentum_word: to_old(there, given.momentum)}
    cumulative = options.get(here.momentum_word, 0) is None
    if cumulative and there.name in CUMULATIVE:
        made[there.momentum_word] = None
    made[there.eps_word] = max(given.eps, there.least_eps)
    made |= {"axis": given.axis} if there.any_axis else {}
    made |= {"fix_gamma": bool(given.fix_gamma)} if there.fix_gamma else {}
    return ConvertedOptions(made, tuple(_notes(here, there, given, cumulative=cumulative)))


def convert_given(options: Mapping[str, Any], source: Dialect, target: Dialect) -> ConvertedOptions:
    """Convert options as :func:`convert_options` does, without those that only the source's defaults give."""
    made = convert_options(options, source, target)
    words = {target.momentum_word: source.momentum_word, target.eps_word: source.eps_word}
    kept = {own: value for own, value in made.options.items() if words.get(own, own) in options}
    if target.fix_gamma and not source.fix_gamma:
        kept["fix_gamma"] = False  # a fact: the source has no layers without gamma under this word
    return ConvertedOptions(kept, made.notes)


def _defaults(dialect: Dialect) -> dict[str, Any]:
    """Return the default options of a dialect."""
    found: dict[str, Any] = {dialect.eps_word: dialect.eps, "axis": dialect.axis}
    found |= {} if dialect.momentum is None else {dialect.momentum_word: dialect.momentum}
    return found | ({"fix_gamma": True} if dialect.fix_gamma else {})


def _notes(here: Dialect, there: Dialect, given: Options, *, cumulative: bool) -> list[str]:
    momentum, eps, notes = given.momentum, given.eps or 0.0, list[str]()
    if momentum is None:
        notes += _without(here, there, cumulative=cumulative)
    elif there.momentum_weighs != here.momentum_weighs and to_old(there, to_old(there, momentum)) != momentum:
        notes.append(f"The weight {momentum!r} of the old value is rounded: 1 minus it is beside 1.")
    if momentum == 1:
        notes.append("The old value weighs 1 and the batch 0: training on never changes the statistics.")
    if eps < there.least_eps:
        notes.append(f"eps {eps:g} becomes {least(there)}.")
    if not there.any_axis and given.axis != there.axis:
        notes.append(
            f"The channel axis {given.axis} becomes {there.axis}, the only one of {there.name}: move the data's axis."
        )
    return notes


def _without(here: Dialect, there: Dialect, *, cumulative: bool) -> list[str]:
    """Say what takes the place of a momentum that the source does not have."""
    if not cumulative:
        return [f"{here.name} has no momentum unless one is said, and none was: {there.name} takes its own."]
    if there.name in CUMULATIVE:
        return []
    own = "" if there.momentum is None else f"; its own is {there.momentum:g}"
    return [
        f"With momentum=None, {here.name} averages over all batches alike, which {there.name} cannot: choose its "
        f"{there.momentum_word} to train on{own}. Inference is the same."
    ]
