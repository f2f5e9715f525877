"""From an array's type, or a name, to the backend that serves it.

Entry points of the group ``polybn.backends`` say who serves what: an entry's name is the root module
of an array type (``numpy``, ``jaxlib``), its value the backend: a module, or an
attribute of one, ``module:attribute``. Reading them imports nothing; a backend is imported when an
array of its library, or its name, asks for it. There is nothing to register and no current
backend, so nothing to reset and nothing to share between threads.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import warnings
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, cast

from polybn import extras
from polybn.options import type_name
from polybn.spec import BackendError

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    from polybn.spec import Backend

GROUP = "polybn.backends"


def backend(name: str) -> Backend:
    """Return a backend by name, for code that has no array yet.

    Parameters
    ----------
    name : str
        Name of an installed entry point: ``"numpy"``, or any other that :func:`polybn.backends` lists.

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
    return _load("backend", entry.value)


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


def installed() -> tuple[str, ...]:
    """List the names of all installed backends, without importing them."""
    return _names()


def why_not(name: str) -> str | None:
    """Return None if the named backend can compute here, else the reason in one line."""
    try:
        module = backend(name)
        reason = module.why_not()
        if reason is None:
            dict(module.describe())  # an unfinished backend must not break commands that list all
    except (Exception, SystemExit) as error:
        # A missing driver or third-party code may raise anything; one broken backend must not break the whole list.
        cause = _first_cause(error)
        command = extras.advise(_entries()[name], cause) if name in _entries() else ""
        reason = f"{type(cause).__name__}: {cause}{command and f' ({command})'}"
    return None if reason is None else " ".join(str(reason).split())


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def backend_of(function: str, **arrays: object) -> Backend:
    """Find the backend that serves all the arrays of one call; None is skipped.

    Raises
    ------
    BackendError
        If an argument belongs to no backend, or two belong to different ones.
    """
    return backend_of_all(function, arrays, arrays.values())


def backend_of_all(function: str, names: Collection[str], values: Collection[object]) -> Backend:
    """Find the backend of arrays, as :func:`backend_of` does, by their names and by themselves."""
    module = _serving_all(tuple(map(type, values)))
    if module is None:
        _fail_mixed(function, dict(zip(names, values, strict=True)))
    return _load(function, module)


def _fail_mixed(function: str, arrays: Mapping[str, object]) -> NoReturn:
    given = {name: value for name, value in arrays.items() if value is not None}
    serving = {name: _serving(cast("Hashable", type(value))) for name, value in given.items()}
    unserved = [(name, given[name]) for name, module in serving.items() if module is None]
    if unserved or not serving:
        # If all are None, name the first argument that is required; gamma and beta are not.
        first = next(name for name in arrays if name not in ("gamma", "beta"))
        name, value = unserved[0] if unserved else (first, None)
        raise BackendError(
            f"polybn.{function}: {name} must be an array of an installed backend ({_listed()}); "
            f"got {type_name(value)} (the type of the array selects the backend; nothing is converted)"
        )
    listed = ", ".join(f"{name}: {_name(module)}" for name, module in serving.items() if module is not None)
    raise BackendError(
        f"polybn.{function}: all arrays must belong to one backend; got {listed} (convert them yourself: "
        "polybn moves nothing between libraries or devices)"
    )


@functools.cache
def _owner(cls: type) -> str | None:
    """Return the name of the entry point that serves an array type: the root module of one of its bases."""
    # The whole MRO, so that subclasses count; and JAX's tracers, whose class is defined in another package than arrays.
    roots = (base.__module__.partition(".")[0] for base in cls.__mro__)
    return next((root for root in roots if root in _entries()), None)


@functools.cache
def _serving(cls: type) -> str | None:
    """Return what serves an array type, an entry point's value; several names may lead to one backend."""
    owner = _owner(cls)
    return None if owner is None else _entries()[owner].value


@functools.lru_cache(maxsize=1024)
def _serving_all(types: tuple[type, ...]) -> str | None:
    """Return the one module that serves all these array types, or None; the type of None is passed over."""
    modules = {_serving(cls) for cls in types if cls is not type(None)}
    return modules.pop() if len(modules) == 1 else None


@functools.cache
def _entries() -> Mapping[str, EntryPoint]:
    """Collect one entry point per name: PolyBN's own if there is one, else the first on the path."""
    found = dict[str, EntryPoint]()
    for entry in sorted(entry_points(group=GROUP), key=_is_foreign):
        if entry.name in sys.stdlib_module_names:
            _ignore(entry, "is named like a module of Python itself, to which no arrays belong")
        elif found.setdefault(entry.name, entry).value != entry.value:
            _ignore(entry, f"is second to {found[entry.name].value}")
    return MappingProxyType(found)


def _is_foreign(entry: EntryPoint) -> bool:
    return entry.dist is None or entry.dist.name != "polybn"


def _ignore(entry: EntryPoint, reason: str) -> None:
    owner = "an unknown package" if entry.dist is None else f"package {entry.dist.name!r}"
    warnings.warn(
        f"polybn.backend: the backend {entry.name!r} of {owner} ({entry.value}) is ignored: it {reason}", stacklevel=2
    )


@functools.cache
def _names() -> tuple[str, ...]:
    """List one name per module: ``jaxlib`` is the root of the array type, but ``jax`` is what people say."""
    modules = dict[str, str]()
    for entry in sorted(_entries().values(), key=lambda entry: entry.name):
        modules.setdefault(entry.value, entry.name)
    return tuple(modules.values())


def _name(value: str) -> str:
    """Return the name that :func:`_names` lists for what an entry point names."""
    return next(name for name in _names() if _entries()[name].value == value)


def _listed() -> str:
    return ", ".join(_names()) or "none is installed: a source tree needs `pip install -e .`"


@functools.cache
def _found(value: str) -> Backend:
    """Import what an entry point names: a module, or ``module:attribute``."""
    module, _, attribute = value.partition(":")
    found = importlib.import_module(module)
    return cast("Backend", attrgetter(attribute)(found) if attribute else found)


def _load(function: str, value: str) -> Backend:
    try:
        return _found(value)
    except (Exception, SystemExit) as error:  # a module that ends the program must not end ours without a word
        name = _name(value)
        command = extras.advise(_entries()[name], _first_cause(error))
        hint = f"install its library{command and f': {command}'}, and see polybn.backends()"
        if not threading.main_thread().is_alive():
            hint = "Python is ending: import it earlier"
        raise BackendError(
            f"polybn.{function}: the module of backend {name!r} must be importable; got {type(error).__name__}: "
            f"{error} (it is {value}; {hint})"
        ) from error
