"""From an array's type, or a name, to the backend that serves it.

Entry points of the group ``polybn.backends`` say who serves what: an entry's name is the root module
of an array type (``numpy``, ``jaxlib``), its value the backend module. Reading them imports nothing;
a backend is imported when an array of its library, or its name, asks for it. There is nothing to
register and no current backend, so nothing to reset and nothing to share between threads.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from polybn.arguments import type_name
from polybn.spec import BackendError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from polybn.spec import Backend

GROUP = "polybn.backends"


def backend(name: str) -> Backend:
    """Return a backend by name, for code that has no array yet.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"cupy"``, ``"jax"``, ``"mxnet"`` or the entry point of an installed third party.

    Returns
    -------
    Backend
        A module; see :class:`polybn.spec.Backend`.

    Raises
    ------
    BackendError
        If no installed package provides the name, or its module cannot be imported; the cause is kept.

    Examples
    --------
    >>> import polybn
    >>> polybn.backend("numpy").name
    'numpy'
    """
    entry = _entries().get(name) if isinstance(name, str) else None
    if entry is None:
        raise BackendError(
            f"polybn.backend: name must be one of {_listed()}; got {name!r} "
            f"(a package adds one by an entry point in the group {GROUP!r})"
        )
    return _load("backend", entry)


def backends() -> dict[str, str | None]:
    """List every installed backend, and try each one out.

    Returns
    -------
    dict of str to str or None
        None where a computation ran and its result came back to the host; else the reason why not.

    Examples
    --------
    >>> import polybn
    >>> polybn.backends()["numpy"] is None
    True
    """
    return {name: why_not(name) for name in _names()}


def why_not(name: str) -> str | None:
    """Return None if the named backend can compute here, else the reason in one line."""
    try:
        reason = backend(name).why_not()
    except Exception as error:
        # Whatever a missing driver or a third party throws: a list of backends must not fail with one of them.
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}"
    return None if reason is None else " ".join(reason.split())


def backend_of(function: str, **arrays: object) -> Backend:
    """Find the backend that serves all the arrays of one call.

    Parameters
    ----------
    function : str
        The public function on whose behalf an error speaks.
    **arrays
        Arguments by name; None is passed over.

    Raises
    ------
    BackendError
        If an argument belongs to no backend, or two belong to different ones.
    """
    served = {
        name: (_serving(cast("Hashable", type(value))), value) for name, value in arrays.items() if value is not None
    }
    strangers = [(name, value) for name, (entry, value) in served.items() if entry is None]
    if strangers or not served:
        # Where all are None, speak of the first that may not be: gamma and beta may.
        name, value = strangers[0] if strangers else (next(n for n in arrays if n not in ("gamma", "beta")), None)
        raise BackendError(
            f"polybn.{function}: {name} must be an array of an installed backend ({_listed()}); "
            f"got {type_name(value)} (the type of the array selects the backend; nothing is converted)"
        )
    entries = {name: entry for name, (entry, _) in served.items() if entry is not None}
    if len({entry.value for entry in entries.values()}) > 1:
        owners = ", ".join(f"{name}: {entry.name}" for name, entry in entries.items())
        raise BackendError(
            f"polybn.{function}: all arrays must belong to one backend; got {owners} (convert them yourself: "
            "polybn moves nothing between libraries or devices)"
        )
    return _load(function, next(iter(entries.values())))


@functools.cache
def _serving(cls: type) -> EntryPoint | None:
    # The whole MRO: subclasses count, and JAX tracers, whose own module need not be where their arrays' is.
    entries = _entries()
    for base in cls.__mro__:
        entry = entries.get(base.__module__.partition(".")[0])
        if entry is not None:
            return entry
    return None


@functools.cache
def _entries() -> Mapping[str, EntryPoint]:
    return MappingProxyType({entry.name: entry for entry in entry_points(group=GROUP)})


@functools.cache
def _names() -> tuple[str, ...]:
    """One name a module: ``jaxlib`` serves arrays, and ``jax`` is what people call the backend."""
    modules = dict[str, str]()
    for entry in sorted(_entries().values(), key=lambda entry: entry.name):
        modules.setdefault(entry.value, entry.name)
    return tuple(modules.values())


def _listed() -> str:
    return ", ".join(_names()) or "none is installed: a source tree needs `pip install -e .`"


def _load(function: str, entry: EntryPoint) -> Backend:
    try:
        return cast("Backend", importlib.import_module(entry.value))
    except Exception as error:
        raise BackendError(
            f"polybn.{function}: the module of backend {entry.name!r} must be importable; got {type(error).__name__}: "
            f"{error} (it is {entry.value}; install its library, and see polybn.backends())"
        ) from error
