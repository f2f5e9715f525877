"""Admit a call of a public function: find its backend, check it (clause S14), and put it into one record.

A training loop makes the same call again and again. So what the checks found is kept under the call's signature, which
is all that they look at; and with it a memo, in which the backend keeps what follows from layouts alone.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.arguments import Arrays, Known, Options, check_batch_norm, describe_arrays
from polybn.dispatch import backend_of_all
from polybn.options import check_own
from polybn.spec import Arguments, Memo, SingleValueWarning, traits_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from polybn.spec import Backend

LIMIT = 4096
"""The number of signatures that are kept; then all are dropped. Few programs have a hundred."""


class Admitted(NamedTuple):
    """What is known of all calls of one signature."""

    known: Known
    memo: Memo


_admitted: dict[Hashable, Admitted] = {}


def admit(
    function: str, arrays: tuple[Any, ...], options: tuple[Any, ...], own: dict[str, Any]
) -> tuple[Backend, Arguments]:
    """Admit a call of ``batch_norm`` or ``batch_norm_vjp``.

    ``arrays`` and ``options`` are in the order of :class:`polybn.arguments.Arrays` and ``Options``.
    """
    backend = backend_of_all(function, Arrays._fields, arrays)
    joined = bool(own) and _joins(function, backend, own)
    sign = traits_of(backend).signature
    signature = sign(arrays) if sign else describe(function, backend, arrays)
    key = function, backend.name, joined, signature
    known, memo = recall(key, options) or learn(key, options, describe(function, backend, arrays), joined=joined)
    if known.m == 1 and known.training and not joined:
        warnings.warn(
            f"polybn.{function}: each channel has one value, so y is beta and the running variance moves towards 0 "
            f"(x has shape {tuple(arrays[0].shape)} with channel axis {known.axis}; train on larger batches)",
            SingleValueWarning,
            stacklevel=3,
        )
    return backend, Arguments._make((function, *arrays, *known, own, memo))


def recall(key: tuple[Any, ...], options: tuple[Any, ...]) -> Admitted | None:
    """Return what is known of the calls of a signature and these options, or None."""
    try:
        # The types are part of the key: 1, 1.0 and True are equal, but not equally allowed.
        return _admitted.get((key, options, tuple(map(type, options))))
    except TypeError:  # an option that has no hash, such as an array, is an error that the checks report
        return None


def learn(key: tuple[Any, ...], options: tuple[Any, ...], given: Arrays, *, joined: bool = False) -> Admitted:
    """Check a call, and keep what is known; the key begins with the function's name."""
    admitted = Admitted(check_batch_norm(key[0], given, Options._make(options), joined=joined), Memo())
    if len(_admitted) >= LIMIT:
        _admitted.clear()
    with contextlib.suppress(TypeError):  # without a hash, as above
        _admitted[key, options, tuple(map(type, options))] = admitted
    return admitted


def describe(function: str, backend: Backend, arrays: tuple[Any, ...]) -> Arrays:
    """Describe the arrays of a call."""
    return Arrays._make(describe_arrays(function, backend, Arrays._fields, arrays))


def _joins(function: str, backend: Backend, own: dict[str, Any]) -> bool:
    """Check the backend's own keywords; return whether one joins ``x`` with values on other devices."""
    traits = traits_of(backend)
    check_own(function, own, traits.own)
    return own.get(traits.joins) is not None
