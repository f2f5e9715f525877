"""Options in the words of a dialect, converted to PolyBN's sense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from polybn.dialects.record import ABOVE_0, CUMULATIVE, FIXING, Record
from polybn.near import did_you_mean, near
from polybn.options import EPS, check_axis, check_number, type_name
from polybn.spec import DomainError, DTypeError


class Options(NamedTuple):
    """The options of a layer; None for options that were not given."""

    momentum: float | None = None
    """The weight of the OLD value, in every dialect."""
    eps: float | None = None
    fix_gamma: bool | None = None
    axis: int | None = None


def read_options(
    options: Mapping[str, Any], dialect: Record, function: str, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Options:
    """Check options in the words of a dialect; return momentum as the weight of the old value.

    A momentum of None, where it means an average over all batches, is no weight, and is left out.
    """
    if not isinstance(options, Mapping):
        raise DTypeError(
            f"polybn.{function}: options must be a mapping of words to values; got {type_name(options)} "
            f"(such as {{{dialect.eps_word!r}: {dialect.eps:g}}})"
        )
    options = {**defaults, **options}
    words = {dialect.momentum_word: "momentum", dialect.eps_word: "eps", "axis": "axis"}
    words |= {"fix_gamma": "fix_gamma"} if dialect.name in FIXING else {}
    unknown = [word for word in options if word not in words]
    if unknown:
        hint = f"{did_you_mean(near(unknown[0], words))}what it means elsewhere says nothing here"
        hint = f"only {', '.join(FIXING)} have it" if unknown[0] == "fix_gamma" else hint
        raise DomainError(
            f"polybn.{function}: options must be in the words of {dialect.name} ({', '.join(words)}); "
            f"got {unknown[0]!r} ({hint})"
        )
    found = {words[word]: value for word, value in options.items()}
    if dialect.name in CUMULATIVE and found.get("momentum", 0) is None:
        del found["momentum"]
    return check_options(found, dialect, function, (dialect.momentum_word, dialect.eps_word))


def check_options(
    given: Mapping[str, Any], dialect: Record, function: str, words: tuple[str, str] = ("momentum", "eps")
) -> Options:
    """Check options by their meaning, where the caller's ``words`` are those for momentum and eps."""
    found = dict(given)
    if "momentum" in found:
        _check_momentum(function, words[0], found["momentum"], dialect)
        found["momentum"] = to_old(dialect, found["momentum"])
    check_number(function, words[1], eps := found.get("eps", 0), EPS)
    if not 0 <= eps < math.inf:
        raise DomainError(
            f"polybn.{function}: {words[1]} must be 0 or more, and finite; got {eps!r} (it is added to a variance)"
        )
    check_axis(function, found.get("axis", 0))
    if not isinstance(found.get("fix_gamma", True), bool):
        raise DTypeError(
            f"polybn.{function}: fix_gamma must be True or False; got {type_name(found['fix_gamma'])} "
            "(whether gamma is taken for 1, whatever the state holds)"
        )
    return Options(**found)


def _check_momentum(function: str, word: str, momentum: Any, dialect: Record) -> None:
    meaning = f"in {dialect.name} it is the weight of the {dialect.momentum_weighs} value"
    check_number(function, word, momentum, meaning)
    if not 0 <= momentum <= 1:
        raise DomainError(f"polybn.{function}: {word} must lie in [0, 1]; got {momentum!r} ({meaning})")


def to_old(dialect: Record, momentum: float) -> float:
    """Convert a dialect's momentum to the weight of the old value, or back, by the same exact step."""
    if dialect.momentum_weighs == "old":
        return float(momentum)
    # In decimal, because 1 - 0.9 is 0.09999999999999998 in binary.
    return float(1 - Decimal(repr(float(momentum))))


def least(dialect: Record) -> str:
    """Return a dialect's least eps, with the reason for it."""
    if dialect.least_eps == ABOVE_0:
        return f"{ABOVE_0:.0e}, because {dialect.name} does not take 0"
    return f"{dialect.least_eps:g}, the least that {dialect.name} takes"
