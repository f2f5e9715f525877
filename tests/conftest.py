"""Backends under test, clause marks and Hypothesis profiles.

All backends of this tree are listed in every run. One that cannot run here is skipped with its reason, unless
POLYBN_REQUIRE names it: then the run stops before its first test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from polybn import dispatch
from polybn.spec import traits_of
from tests.support.drawing import few_forms
from tests.support.emulation import UNSEEN_VALUES

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX has float64 only if it is told so before it makes an array

# Those of this tree: a backend that is deleted is no longer tested, and nothing else changes.
BACKENDS = tuple(name for name in dispatch._names() if not dispatch._is_foreign(dispatch._entries()[name]))
REASONS = {name: dispatch.why_not(name) for name in BACKENDS}
TRAITS = {name: traits_of(dispatch.backend(name)) for name, reason in REASONS.items() if reason is None}
COMPILING = {name for name, traits in TRAITS.items() if traits.jit is not None}
BLIND = {name for name, traits in TRAITS.items() if not traits.sees_values}
MAPS = 30_000

# dev is quick, ci is repeatable, nightly looks for news. Deadlines are off: speed is no matter of tests.
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
    """Draw few forms of a call where a library compiles for each, which may take half a second."""
    parameters = getattr(item, "callspec", None)
    backend = parameters and parameters.params.get("backend")
    with few_forms(backend in COMPILING) if backend else nullcontext():
        return (yield)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Generator[None, None, None]:
    """Free what JAX has compiled before memory maps run out: a program takes some 120, a process may have 65,530."""
    yield
    if "jax" in sys.modules and Path("/proc/self/maps").exists():
        with Path("/proc/self/maps").open("rb") as maps:
            if sum(1 for _ in maps) > MAPS:
                sys.modules["jax"].clear_caches()


def pytest_report_header() -> list[str]:
    return [
        f"polybn {name}: {'runs' if reason is None else f'cannot run: {reason}'}" for name, reason in REASONS.items()
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Parameters, not a fixture: Hypothesis rightly objects to function-scoped fixtures.
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
    """For examples of pages and docstrings: JAX's own default, which is no float64; Keras on NumPy, as pages say."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    if REASONS.get("jax", "absent") is not None:
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
