"""Each backend module fits spec.Backend: its names, its signatures and, for mypy, its types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import polybn
from polybn.lenet.program import Trainer
from polybn.spec import Backend, Traits

if TYPE_CHECKING:  # for mypy, which compares the signatures of module and protocol; the tests import nothing here
    import polybn_numpy

    _numpy: Backend = polybn_numpy

EMPTY = inspect.Parameter.empty


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def shape_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter except self; mypy compares the annotations."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]


def fits(given: list[tuple[str, Any, Any]], expected: list[tuple[str, Any, Any]]) -> bool:
    """Return whether a signature is the protocol's; keyword-only parameters with defaults may follow."""
    more = given[len(expected) :]
    optional = all(kind is inspect.Parameter.KEYWORD_ONLY and default is not EMPTY for _, kind, default in more)
    return given[: len(expected)] == expected and optional


def differences(module: Any) -> list[str]:
    """List the differences between a module, or an object, and the protocol."""
    found = []
    shown = set(getattr(module, "__all__", ())) or members(type(module)) | {*vars(module)} - {"xp"}
    for name in sorted(members(Backend) ^ (shown - members(Trainer))):
        found.append(f"{name}: {'missing in' if name in members(Backend) else 'too much in'} __all__")
    for name in sorted(members(Backend)):
        expected, given = inspect.getattr_static(Backend, name), getattr(module, name, None)
        if isinstance(expected, property):
            if not isinstance(given, str | Traits):
                found.append(f"{name}: {given!r} is no str and no Traits")
        elif not inspect.isroutine(given):
            found.append(f"{name}: {given!r} is no function")
        elif not fits(shape_of(given), shape_of(expected)):
            found.append(f"{name}: {inspect.signature(given)} is not {inspect.signature(expected)}")
    return found


def test_a_backend_has_the_names_and_signatures_of_the_protocol(backend: str) -> None:
    module: Any = polybn.backend(backend)
    assert differences(module) == []


def test_a_backend_says_who_it_is(backend: str) -> None:
    module = polybn.backend(backend)
    assert module.name == backend
    assert module.why_not() is None
    facts = module.describe()
    assert facts["device"]
    assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in facts.items())


ALL = members(Backend) | members(Trainer)


# The test can fail: each of these differs from the protocol in one place.


def departing(**changes: Any) -> SimpleNamespace:
    module: Any = polybn.backend("numpy")
    fields = {name: getattr(module, name) for name in members(Backend)} | {"__all__": list(module.__all__)} | changes
    return SimpleNamespace(**fields)


def renamed(call: Any, residuals: Any, dy: Any) -> None: ...
def keyword(arguments: Any, residuals: Any, *, dy: Any) -> None: ...
def defaulted(arguments: Any, residuals: Any, dy: Any = None) -> None: ...
def demanding(arguments: Any, residuals: Any, dy: Any, *, out: Any) -> None: ...
def early(arguments: Any, residuals: Any, *, out: Any = None, dy: Any) -> None: ...
def variadic(arguments: Any, residuals: Any, dy: Any, **more: Any) -> None: ...
def extended(arguments: Any, residuals: Any, dy: Any, *, out: Any = None) -> None: ...
def reordered(arguments: Any, dy: Any, residuals: Any) -> None: ...


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        *(
            ({"backward": function}, "backward: (")
            for function in (renamed, keyword, defaulted, demanding, early, variadic, reordered)
        ),
        ({"fold": None}, "fold: None"),
        ({"name": None}, "name: None"),
        ({"__all__": sorted(ALL - {"fold"})}, "fold: missing in __all__"),
        ({"__all__": sorted(ALL | {"relu"})}, "relu: too much in __all__"),
    ],
)
def test_a_departure_is_found(changes: dict[str, Any], where: str) -> None:
    assert differences(departing()) == []
    assert differences(departing(backward=extended)) == []
    assert [text[: len(where)] for text in differences(departing(**changes))] == [where]


@pytest.mark.clause("S7")
def test_copies_to_and_from_the_host_are_whole_when_the_call_returns(backend: str) -> None:
    """Some libraries read host memory later than the call; 64 MB take long enough to show it."""
    module: Any = polybn.backend(backend)
    host = np.full(2**24 + 3, 7.0, np.float32)
    for _ in range(10):
        array = module.asarray(host)
        host.fill(np.nan)
        back = module.to_numpy(array)
        host.fill(7)
        assert (back == 7).all()
        back.fill(np.nan)
        assert (module.to_numpy(array) == 7).all()
