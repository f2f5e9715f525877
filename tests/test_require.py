"""A backend that cannot run is left out with its reason; POLYBN_REQUIRE makes that a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polybn import dispatch
from tests.conftest import IN_TREE

ROOT = Path(__file__).parents[1]
OTHER = next(name for name in IN_TREE if name != "numpy")  # any, because each backend may be deleted
FEW = [name for name in IN_TREE if name in ("numpy", OTHER)]
"""Backends of the runs below: importing all takes seconds."""

# Modules marked as absent make a backend unusable on any machine.
RUN = """
import sys
import pytest

sys.modules.update(dict.fromkeys({absent!r}))
sys.exit(pytest.main(["-p", "no:cacheprovider", "tests/test_require.py", "-k", "canary"]))
"""


def test_canary(backend: str) -> None:
    """A test for the runs below."""


def run(required: str | None, *absent: str) -> subprocess.CompletedProcess[str]:
    hidden = ("POLYBN_REQUIRE", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment["POLYBN_ONLY"] = ",".join(FEW)
    if required is not None:
        environment["POLYBN_REQUIRE"] = required
    command = [sys.executable, "-c", RUN.format(absent=absent)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_it_an_absent_backend_is_left_out_with_its_reason() -> None:
    module = dispatch._entries()[OTHER].value.partition(":")[0]
    result = run(None, module)
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    assert re.search(r"\d passed", result.stdout)
    assert f"polybn {OTHER}: cannot run: ModuleNotFoundError: import of {module} halted" in result.stdout


def test_a_backend_that_runs_satisfies_it() -> None:
    result = run("numpy")
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    assert re.search(r"\d passed", result.stdout)


@pytest.mark.parametrize("required", ["numpy", "numpy,numpi,NumPy"])
def test_a_backend_that_cannot_run_stops_the_lane_before_its_first_test(required: str) -> None:
    result = run(required, "polybn_numpy")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout + result.stderr
    assert "POLYBN_REQUIRE names backends that cannot run here" in result.stderr
    assert "'numpy': 'ModuleNotFoundError: import of polybn_numpy halted" in result.stderr
    for unknown in {"numpi", "NumPy"} & set(required.split(",")):
        assert f"'{unknown}': 'unknown; the backends are {', '.join(FEW)}'" in result.stderr
    assert " passed" not in result.stdout
