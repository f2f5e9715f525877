"""Backends under test, clause marks and Hypothesis profiles.

The head of every run lists the backends of this tree, with the reason where one cannot run here: it is then not tested,
unless POLYBN_REQUIRE names it, which stops the run before its first test. With POLYBN_REQUIRE, a test that is skipped
fails, unless tests/support/skips.py expects it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, currently_in_test_context, reject, settings

from polybn import dispatch
from polybn.spec import DTypeError, traits_of
from tests.support import skips
from tests.support.command import Polybn, command
from tests.support.drawing import few_forms
from tests.support.emulation import UNSEEN_VALUES
from tests.support.pairwise import pairwise
from tests.support.xla import CHEAP

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX reads it before its first array, and has no float64 without it
if os.environ.get("POLYBN_PROFILE") != "nightly":  # `make lane-xla` sets no flags: it judges what users have
    os.environ.setdefault("XLA_FLAGS", CHEAP)

# Only the backends of this tree, so that deleting one removes its tests and nothing else.
IN_TREE = tuple(name for name in dispatch._names() if not dispatch._is_foreign(dispatch._entries()[name]))
ONLY = [name for name in os.environ.get("POLYBN_ONLY", "").split(",") if name]
"""The backends to test, all if empty; the others are not imported, which would take seconds."""
BACKENDS = tuple(name for name in IN_TREE if name in (ONLY or IN_TREE))
REASONS = {name: dispatch.why_not(name) for name in BACKENDS}
TRAITS = {name: traits_of(dispatch.backend(name)) for name, reason in REASONS.items() if reason is None}
COMPILING = {name for name, traits in TRAITS.items() if traits.jit is not None}
BLIND = {name for name, traits in TRAITS.items() if not traits.sees_values}
TRAINS = {name for name in TRAITS if hasattr(dispatch.backend(name), "compile")}
MAPS = 30_000
NIGHTLY = 20_000
"""The number of examples of a profile that leaves nothing out."""

OF_NETWORKS = {"test_training", "test_program", "test_fashion_mnist_training", "test_notebooks", "test_device"}
"""Modules of tests that train, for backends with ``compile`` only."""

OF_DTYPES = {"test_conformance", "test_protocol"}
"""Modules of tests that find the dtypes of a library themselves."""


def _lacks(name: str) -> set[str]:
    """Return the half types that a library does not have."""
    found = set()
    for dtype in ("float16", "bfloat16"):
        try:
            dispatch.backend(name).asarray(np.zeros(1, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))
        except DTypeError:
            found.add(dtype)
    return found


LACKS = {name: _lacks(name) for name in TRAITS}

# dev is quick, ci is repeatable, nightly draws new cases. Deadlines are off, because tests do not judge speed.
_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # half types may be lacking
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": _SLOW}
settings.register_profile("dev", max_examples=50, **_COMMON)
settings.register_profile("ci", max_examples=300, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("nightly", max_examples=NIGHTLY, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("POLYBN_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_configure(config: pytest.Config) -> None:
    required = [name for name in os.environ.get("POLYBN_REQUIRE", "").split(",") if name]
    missing = {name: REASONS.get(name, f"unknown; the backends are {', '.join(BACKENDS)}") for name in required}
    missing = {name: reason for name, reason in missing.items() if reason is not None}
    if missing:
        raise pytest.UsageError(f"POLYBN_REQUIRE names backends that cannot run here: {missing}")
    if required:
        config.pluginmanager.register(skips)


def _backend_of(item: pytest.Item) -> str | None:
    """Return the backend that a test is for, if it is for one."""
    found = getattr(getattr(item, "callspec", None), "params", {}).get("backend")
    return found if isinstance(found, str) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Draw few forms of a call where a library compiles for each, which may take half a second."""
    backend = _backend_of(item)
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
    # Not a fixture: Hypothesis refuses function-scoped fixtures.
    if "backend" in metafunc.fixturenames:
        trained = metafunc.module.__name__.rpartition(".")[2] in OF_NETWORKS
        metafunc.parametrize("backend", [name for name in TRAITS if not trained or name in TRAINS])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    compiled = {item for item in items if _backend_of(item) in COMPILING}
    gone = compiled - set(pairwise(item for item in items if item in compiled))
    if gone and settings().max_examples < NIGHTLY:
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=list(gone))
    for item in items:
        if _backend_of(item) in BLIND and any(key in item.name for key in UNSEEN_VALUES):
            reason = "the backend answers errors that depend on values with NaN (Traits.sees_values)"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def pass_over_dtypes_that_a_library_lacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name the four dtypes of clause S6; not every library has them all."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    lacks = LACKS.get(parameters.get("backend", ""), ())
    if not lacks or request.node.path.stem in OF_DTYPES:
        return
    if any(isinstance(value, str) and value in lacks for value in parameters.values()):
        pytest.skip(f"{parameters['backend']} has no such dtype")
    module = dispatch.backend(parameters["backend"])
    asarray = module.asarray

    @wraps(asarray)
    def convert(host: Any) -> Any:
        if host.dtype.name in lacks and currently_in_test_context():
            reject()
        if host.dtype.name in lacks:
            pytest.skip(f"{parameters['backend']} has no {host.dtype.name}")
        return asarray(host)

    monkeypatch.setattr(module, "asarray", convert)


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


@pytest.fixture
def polybn_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Polybn:
    """Run ``polybn`` in an empty directory, without the options that the environment may hold."""
    monkeypatch.chdir(tmp_path)
    for name in ("POLYBN_BACKEND", "POLYBN_DATA", "POLYBN_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return command(monkeypatch, capsys)
