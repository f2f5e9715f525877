"""The kit as one line in another project's tests: names, outcomes, expected failures and parallel runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from polybn import conformance
from polybn.conformance.finding import IDS
from polybn.spec import DomainError
from tests.support import kit_adapters as kit

ROOT = Path(__file__).parents[1]
ONLY = ["convention-momentum", "P4", "P18", "P40"]

test_right = conformance.parametrize(kit.Right, only=["P16", "P40", "convention-empty"])


def suite(directory: Path, adapter: str, options: str = "", *args: str, only: Sequence[str] = ONLY) -> tuple[int, str]:
    """Run pytest, in a new process, on a file with that line."""
    (directory / "test_theirs.py").write_text(
        "from polybn import conformance\nfrom tests.support import kit_adapters\n"
        f"test_my_batch_norm = conformance.parametrize(kit_adapters.{adapter}, only={only!r}, profile='dev'{options})\n"
    )
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nxfail_strict = true\n")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--tb=short", *args, "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment | {"PYTHONPATH": path})
    return ran.returncode, ran.stdout + ran.stderr


def outcomes(output: str) -> dict[str, str]:
    return {name: status for status, name in re.findall(r"^(\w+) \S*test_my_batch_norm\[(\S+)\]", output, re.MULTILINE)}


def test_every_check_is_a_test(tmp_path: Path) -> None:
    names = [*ONLY, "grade-float32", "stateful"]
    code, output = suite(tmp_path, "Right", only=names)
    assert code == 0, output
    assert outcomes(output) == dict.fromkeys(names, "PASSED")


def test_failures_say_why_and_how_to_repeat_them(tmp_path: Path) -> None:
    code, output = suite(tmp_path, "Writing")
    assert code == 1
    assert {name for name, status in outcomes(output).items() if status == "FAILED"} == {"P18"}
    assert "train must not write its arguments; it changed running_mean" in output
    assert "resolve('tests.support.kit_adapters:Writing')" in output


def test_expected_failures_are_strict(tmp_path: Path) -> None:
    (tmp_path / "known").write_text("P18  # writes in place, https://example.org\n")
    code, output = suite(tmp_path, "Writing", ", xfail='known'")
    assert code == 0, output
    assert outcomes(output)["P18"] == "XFAIL"
    code, output = suite(tmp_path, "Right", ", xfail='known'")
    assert code == 1
    assert "[XPASS(strict)] writes in place" in output


def test_what_does_not_apply_is_skipped_with_its_reason(tmp_path: Path) -> None:
    code, output = suite(tmp_path, "OnlyForward")
    assert code == 0, output
    assert "1 skipped" in output
    assert "not applicable: the adapter declares that it has no infer" in output
    (tmp_path / "known").write_text("P4  # has no inference\n")
    code, output = suite(tmp_path, "OnlyForward", ", xfail='known'")
    assert code == 1, "an expectation that nothing can fail is stale"


def test_parallel_runs_collect_the_same(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    code, output = suite(tmp_path, "Right", "", "-n", "2")
    assert code == 0, output
    assert outcomes(output) == dict.fromkeys(ONLY, "PASSED")


def test_all_is_there_but_other_dtypes() -> None:
    (mark,) = conformance.parametrize(kit.Right).pytestmark  # type: ignore[attr-defined]
    names = [parameter.id for parameter in mark.args[1]]
    assert names == [name for name in IDS if not name.startswith("grade-") or name == "grade-float32"]


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="got 'P999'"):
        conformance.parametrize(kit.Right, only=["P999"])
    (tmp_path / "known").write_text("P998  # typo\n")
    with pytest.raises(DomainError, match="got 'P998'"):
        conformance.parametrize(kit.Right, xfail=tmp_path / "known")
