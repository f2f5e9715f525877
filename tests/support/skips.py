"""The skips that are expected: where POLYBN_REQUIRE is set, as by `make test`, any other skip or xfail is a failure."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest

ELSEWHERE = (
    "array_api_compat", "array_api_strict", "cupy", "dask", "distributed", "equinox", "expecttest", "haiku", "keras",
    "onnxruntime", "orbax", "polybn_xarray", "safetensors", "tensorflow", "tinygrad", "torch", "xarray",
)  # fmt: skip
"""The libraries that are not installed for `make test`; a test that needs one of them may need others, too."""

ALLOWED = {
    rf".*\b({'|'.join(ELSEWHERE)}|CuPy|Dask|PyTorch)\b.*": "lane-torch and lane-dask have it; CuPy is emulated",
    r"it takes long, or judges what XLA makes .*": "lane-xla runs it, with XLA's default flags",
    r"NVRTC is not installed.*|.*nvdisasm.*": "lane-cuda compiles the kernels",
    r"the emulation (compiles|switches) .*": "CI has g++, and names it in POLYBN_REQUIRE_TOOLS",
    r"it (is of|asks|reads|makes) .*": "a test of the emulation of CuPy, which a GPU does not need",
    r"avx(2|512) does not run here": "it depends on the processor",
    r"there is one GPU|it takes \d+ GB of a GPU's memory.*": "it depends on the machine",
    r".*full (copy|data) .*": "CI installs Debian's package of the full data",
    r"\w+ has no (such dtype|float16|bfloat16)|the library has no .*|its moments take (no )?integers":
        "clause S6 leaves dtypes to the library",
    r"the backend answers errors that depend on values with NaN.*": "clause S14 allows it",
    r"\w+ takes subnormal numbers for 0": "XLA does so on the CPU",
    r"\S+: has no gradients, as declared": "the adapter of another library says so",
    r"not recorded: .*|recorded with .*; here is .*": "other versions of a library give other digits",
    r"this version of Flax has no nnx\.view": "later versions have it",
    r"this version of onnx does not come with the model": "ONNX leaves models out of some packages",
    r"needs os\.fork|.* on Linux|.* of Linux|XDG_CACHE_HOME.*": "it depends on the system",
}  # fmt: skip
"""From a pattern of whole reasons to why they are expected."""


def why_allowed(reason: str) -> str | None:
    """Return why a skip is expected, or None if it is not."""
    return next((why for pattern, why in ALLOWED.items() if re.fullmatch(pattern, reason, re.DOTALL)), None)


def judge(report: Any) -> None:
    """Turn an unexpected skip into a failure."""
    if report.outcome != "skipped":
        return
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = getattr(report, "wasxfail", said).removeprefix("Skipped: ")
    if why_allowed(reason) is None:
        vars(report).pop("wasxfail", None)
        report.outcome = "failed"
        report.longrepr = f"skipped, which tests/support/skips.py does not expect: {reason or 'no reason is given'}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test."""
    report = yield
    judge(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module, which may skip all its tests at once."""
    report = yield
    judge(report)
    return report
