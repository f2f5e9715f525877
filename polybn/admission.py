"""Admit a call of a public function: find its backend, check it (clause S14), and put it into one record.

A training loop makes the same call again and again, so what the checks found out is kept.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from polybn.arguments import Arrays, Known, Options, check_batch_norm, describe_arrays
from polybn.dispatch import backend_of_all
from polybn.options import check_own, check_untraced
from polybn.spec import Arguments, SingleValueWarning, traits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from polybn.spec import Backend

LIMIT = 4096
"""The number of different calls that are kept; one more, and all are dropped. Few programs make a hundred."""

_kept: dict[Hashable, Known] = {}


def admit(
    function: str, arrays: tuple[Any, ...], options: tuple[Any, ...], own: dict[str, Any]
) -> tuple[Backend, Arguments]:
    """Admit a call of ``batch_norm`` or ``batch_norm_vjp``.

    ``arrays`` and ``options`` are in the order of :class:`polybn.arguments.Arrays` and ``Options``.
    """
    backend = backend_of_all(function, Arrays._fields, arrays)
    sign = traits_of(backend).signature
    signature = sign(arrays) if sign else None
    given = describe(function, backend, arrays) if signature is None else None
    joined = bool(own) and _joined(function, backend, own)
    known = know(
        (backend, joined, signature or given),
        options,
        lambda: _check(function, backend, given or describe(function, backend, arrays), options, joined=joined),
    )
    if known.m == 1 and known.training and not joined:
        shape = describe(function, backend, arrays).x.shape
        warnings.warn(
            f"polybn.{function}: each channel has one value, so y is beta and the running variance moves towards 0 "
            f"(x has shape {shape} with channel axis {known.axis}; train on larger batches)",
            SingleValueWarning,
            stacklevel=3,
        )
    return backend, Arguments._make((function, *arrays, *known, own))


def know(key: tuple[Any, ...], options: tuple[Any, ...], check: Callable[[], Known]) -> Known:
    """Return what is known of the calls of a key and these options, after ``check`` if that is not known yet."""
    # The types are part of the key: 1, 1.0 and True are equal, but not equally allowed.
    whole: Hashable = key, options, tuple(map(type, options))
    try:
        known = _kept.get(whole)
    except TypeError:  # something has no hash, such as an array given as an option, which the checks refuse
        known = whole = None
    if known is None:
        known = check()
        if whole is not None:
            if len(_kept) >= LIMIT:
                _kept.clear()
            _kept[whole] = known
    return known


def describe(function: str, backend: Backend, arrays: tuple[Any, ...]) -> Arrays:
    """Describe the arrays of a call."""
    return Arrays._make(describe_arrays(function, backend, Arrays._fields, arrays))


def _check(function: str, backend: Backend, given: Arrays, options: tuple[Any, ...], *, joined: bool) -> Known:
    """Check a call that was not seen before."""
    named = Options._make(options)
    check_untraced(function, traits_of(backend).hint, named._asdict())
    return check_batch_norm(function, given, named, joined=joined)


def _joined(function: str, backend: Backend, own: dict[str, Any]) -> bool:
    """Return whether a keyword joins ``x`` with values on other devices, after checks of all own keywords."""
    traits = traits_of(backend)
    check_own(function, own, traits.own)
    return own.get(traits.joins) is not None
