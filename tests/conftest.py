"""Backends under test, clause marks and Hypothesis profiles.

All backends of this tree are listed in every run. One that cannot run here is skipped with its reason, unless
POLYBN_REQUIRE names it: then the run stops before its first test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from polybn import dispatch
from polybn.spec import traits_of
from tests.support.emulation import UNSEEN_VALUES

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX reads it before its first array, and has no float64 without it

# Only the backends of this tree, so that deleting one removes its tests and nothing else.
BACKENDS = tuple(name for name in dispatch._names() if not dispatch._is_foreign(dispatch._entries()[name]))
REASONS = {name: dispatch.why_not(name) for name in BACKENDS}
TRAITS = {name: traits_of(dispatch.backend(name)) for name, reason in REASONS.items() if reason is None}
COMPILING = {name for name, traits in TRAITS.items() if traits.jit is not None}
BLIND = {name for name, traits in TRAITS.items() if not traits.sees_values}
SHARE = 100
"""A library that compiles gets one example in so many, and two at least."""

# dev is quick, ci is repeatable, nightly draws new cases. Deadlines are off, because tests do not judge speed.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_COMMON)
settings.register_profile("ci", max_examples=300, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("nightly", max_examples=20_000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("POLYBN_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_configure(config: pytest.Config) -> None:
    required = [name for name in os.environ.get("POLYBN_REQUIRE", "").split(",") if name]
    missing = {name: REASONS.get(name, f"unknown; the backends are {', '.join(BACKENDS)}") for name in required}
    missing = {name: reason for name, reason in missing.items() if reason is not None}
    if missing:
        raise pytest.UsageError(f"POLYBN_REQUIRE names backends that cannot run here: {missing}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Draw fewer cases for a library that compiles for every shape and option, which may take half a second each."""
    backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")  # type: ignore[attr-defined]
    usual, share = settings.default, SHARE if backend in COMPILING else 1
    assert usual is not None
    settings.register_profile("share", usual, max_examples=max(2, usual.max_examples // share))
    settings.register_profile("whole", usual)
    settings.load_profile("share")
    try:
        return (yield)
    finally:
        settings.load_profile("whole")


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Generator[None, None, None]:
    """Free the programs that JAX compiled for a module: each takes some 120 of the 65,530 memory maps of a process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def pytest_report_header() -> list[str]:
    return [
        f"polybn {name}: {'runs' if reason is None else f'cannot run: {reason}'}" for name, reason in REASONS.items()
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Not a fixture: Hypothesis refuses function-scoped fixtures.
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [_parameter(name) for name in BACKENDS])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters and parameters.params.get("backend") in BLIND and any(key in item.name for key in UNSEEN_VALUES):
            reason = "the backend answers errors that depend on values with NaN (Traits.sees_values)"
            item.add_marker(pytest.mark.skip(reason=reason))


def _parameter(name: str) -> object:
    reason = REASONS[name]
    marks = () if reason is None else pytest.mark.skip(reason=f"{name}: {reason}")
    return pytest.param(name, marks=marks)


@pytest.fixture
def as_readers_have_it(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Give examples in pages and docstrings the settings of a reader: JAX without float64, Keras on NumPy."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    if REASONS.get("jax", "absent") is not None:
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
