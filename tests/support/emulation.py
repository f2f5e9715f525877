"""Run code on the emulated GPU, in a new process in which ``import cupy`` finds the stand-in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "cuda_emulator"

UNSEEN_VALUES = ("F13 where", "F19 running_var", "test_channels_with_one_value_left")
"""Tests of errors that depend on values. On a GPU the result is NaN instead, see test_cupy_values.py."""


def _why_not() -> str | None:
    """Return why kernels cannot be emulated here, or None if they can."""
    if os.uname().machine != "x86_64":
        return f"the emulation switches fibers in x86-64 assembly; this is {os.uname().machine}"
    return None if shutil.which("g++") else "the emulation compiles kernels with g++, which is not installed"


REASON = _why_not()
REQUIRED = "g++" in os.environ.get("POLYBN_REQUIRE_TOOLS", "").split(",")
"""Whether tests must fail without the compiler, and not be skipped."""
needed = pytest.mark.skipif(REASON is not None and not REQUIRED, reason=str(REASON))


def run(*command: str, limit: int = 900) -> subprocess.CompletedProcess[str]:
    """Run Python with the stand-in for CuPy; return the finished process with its output as text."""
    paths = [str(STAND_IN), str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "POLYBN_REQUIRE": "cupy"}
    environment["POLYBN_ONLY"] = "numpy,cupy"  # importing the other libraries takes seconds
    environment["POLYBN_PROFILE"] = "dev"  # emulation is too slow for the ci profile, which has six times as many cases
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=limit, check=False,
    )  # fmt: skip


def run_pytest(*arguments: str) -> dict[str, Counter[str]]:
    """Run pytest with the stand-in; return the outcomes of each file, or fail with all its output if it fails."""
    finished = run("-m", "pytest", "-v", "-p", "no:cacheprovider", "--hypothesis-seed=0", *arguments)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    ran: dict[str, Counter[str]] = {}
    for path, outcome in re.findall(
        r"^(tests/\w+\.py)(?:::.*)? (PASSED|SKIPPED|XFAIL)\b", finished.stdout, re.MULTILINE
    ):
        ran.setdefault(path, Counter())[outcome] += 1
    return ran
