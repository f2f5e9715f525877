"""A skip that nobody expects fails the run where POLYBN_REQUIRE is set; one that is listed does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import skips, xla
from tests.support.xla import ELSEWHERE

ROOT = Path(__file__).parents[1]
MODULE = """
import pytest

def test_in_the_body():
    pytest.skip("{reason}")

@pytest.mark.skipif(True, reason="{reason}")
def test_by_a_mark():
    pass

@pytest.mark.xfail(reason="{reason}")
def test_that_fails():
    assert False

@pytest.fixture
def absent():
    pytest.importorskip("no_such_module", reason="{reason}")

def test_in_a_fixture(absent):
    pass
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a module of tests under the judge alone."""
    (folder / "test_some.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.skips", "-c", os.devnull, f"{folder}", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_an_unexpected_skip_fails_whatever_made_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run(tmp_path, MODULE.format(reason="jax: no device"), *options)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout
    assert "2 failed, 2 errors in" in result.stdout
    assert "skipped, which tests/support/skips.py does not expect: jax: no device" in result.stdout


def test_an_expected_one_does_not(tmp_path: Path) -> None:
    result = run(tmp_path, MODULE.format(reason="torch is not installed"))
    assert result.returncode == pytest.ExitCode.OK, result.stdout
    assert "3 skipped, 1 xfailed in" in result.stdout


@pytest.mark.parametrize(("reason", "code"), [("torch: absent", 5), ("mxnet: absent", 2)])
def test_a_module_that_skips_all_its_tests_is_judged_too(tmp_path: Path, reason: str, code: int) -> None:
    result = run(tmp_path, f"import pytest\npytest.skip({reason!r}, allow_module_level=True)\n")
    assert result.returncode == code, result.stdout


@pytest.mark.parametrize(
    "reason",
    [
        "", "unconditional skip", "jax: RuntimeError: no device", "mxnet: OSError: libmxnet.so",
        "Flax is not installed", "['h5py'] not installed",
        "msgpack is not installed", "kernels: not compiled", "Zarr is not installed",
        "agreement needs two backends that run; here: ['numpy']", "torchless", "onnx is not installed",
    ],
)  # fmt: skip
def test_what_make_test_installs_must_not_be_missing(reason: str) -> None:
    assert skips.why_allowed(reason) is None


@pytest.mark.parametrize(
    "reason",
    [
        "['torch', 'onnx'] not installed", "onnx, onnxruntime is not installed", "keras or h5py is missing",
        "dask: ModuleNotFoundError: No module named 'array_api_compat'", "could not import 'torch': ...",
        "CuPy is not installed; test_cupy_emulated.py runs this emulated", "jax takes subnormal numbers for 0",
        "no full copy of Fashion-MNIST here: ...", "mxnet has no bfloat16", ELSEWHERE,
    ],
)  # fmt: skip
def test_what_other_lanes_install_may(reason: str) -> None:
    assert skips.why_allowed(reason) is not None


def test_the_run_of_make_test_has_its_judge(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.is_registered(skips) == bool(os.environ.get("POLYBN_REQUIRE"))


def test_a_version_of_xla_that_was_not_tried_gets_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not know them, which ends the process; its programs are then compiled as for users, and judged."""
    for version, known in {"0.10.2": True, "0.12.0.1": True, "0.7.1": False, "0.99.0": False}.items():
        monkeypatch.setattr("importlib.metadata.version", lambda _, version=version: version)
        assert bool(xla._cheap()) == known
    monkeypatch.setattr(xla, "CHEAP", "")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert not xla.compiles_quickly()
