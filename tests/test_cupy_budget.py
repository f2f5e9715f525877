"""The kernels' instruction counts, compared with limits and the record. Needs NVRTC and nvdisasm, and no GPU.

It is skipped where they are not installed, unless POLYBN_REQUIRE_TOOLS names ``nvdisasm``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.gpu import budget, nvrtc, sass, steps
from tests.gpu.budget import Subject

REASON = sass.why_not()
REQUIRED = "nvdisasm" in os.environ.get("POLYBN_REQUIRE_TOOLS", "").split(",")
pytestmark = pytest.mark.skipif(REASON is not None and not REQUIRED, reason=str(REASON))

THOROUGH = os.environ.get("POLYBN_PROFILE", "ci" if os.environ.get("CI") else "dev") != "dev"
SUBJECTS = [s for s in budget.subjects() if THOROUGH or (s.stored == "float" and s.kernel != "second")]
FORWARD = Subject("forward", "float", "ROWS", 4)
BACKWARD = Subject("backward", "float", "ROWS", 4)
INFERENCE = Subject("inference", "float", "ROWS", 4)


def recorded(subject: Subject) -> dict[str, Any] | None:
    """Return the record if it is of the same compiler."""
    record = json.loads(budget.RECORD.read_text(encoding="utf-8"))
    found: dict[str, Any] = record["kernels"][subject.label]
    return found if record["compiler"] == f"NVRTC {nvrtc.version()}" else None


def test_the_record_is_whole() -> None:
    record = json.loads(budget.RECORD.read_text(encoding="utf-8"))
    assert list(record["kernels"]) == [subject.label for subject in budget.subjects()]


@pytest.mark.parametrize("subject", SUBJECTS, ids=[s.label for s in SUBJECTS])
def test_no_kernel_got_worse(subject: Subject) -> None:
    assert budget.complaints(subject, budget.count(subject), recorded(subject)) == []


WORSE = "instructions a value"
PLANTED = {
    "a pointer to any kind of memory": (
        INFERENCE, "__builtin_assume(__isGlobal(result));", "", "local or generic",
    ),
    "a lambda by reference": (
        FORWARD, "[mine](int chunk) { return mine[chunk]; }",
        "[&](int chunk) { return s.nodes[channel * chunks + chunk]; }", "local or generic",
    ),
    "a lost unroll": (
        BACKWARD, "sums[N] = {};\n#pragma unroll\n", "sums[N] = {};\n#pragma unroll 1\n", "no hot loop that does: sum",
    ),
    "a division in the inner loop": (
        INFERENCE, "int(__umulhi(column + unsigned(position), magic) >> shift)",
        "int((column + unsigned(position)) / magic)", WORSE,
    ),
    "no fence before an arrival": (FORWARD, "atom.add.acq_rel", "atom.add.relaxed", "no fence before an arrival"),
    "no fence after waiting": (BACKWARD, "ld.acquire", "ld.relaxed", "no fence after waiting"),
    "no fence before the gate": (FORWARD, "st.release", "st.relaxed", "no fence before the gate opens"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_is_found(name: str) -> None:
    subject, old, new, expected = PLANTED[name]
    text = nvrtc.kernels().source(f"{subject.kernel}.cu")
    assert text.count(old) == 1
    found = budget.complaints(subject, budget.count(subject, text.replace(old, new)), recorded(subject))
    assert any(expected in words for words in found), found


def test_the_layers_of_a_network_did_not_get_worse() -> None:
    """Each inner loop is within its limit, and the record has the prediction that follows."""
    found = steps.loops()
    assert {kind: cost for kind, cost in steps.count(found).items() if cost > steps.LIMITS[kind]} == {}
    assert steps.ahead(found) == steps.AHEAD
    record = json.loads(budget.RECORD.read_text(encoding="utf-8"))
    if record["compiler"] == f"NVRTC {nvrtc.version()}":
        assert record["step"] == steps.record()


PLANTED_STEPS = {
    "a lost unroll in a convolution": ("convolve", "#pragma unroll ROWS", "#pragma unroll 1"),
    "a division in the gradient of an input": ("spread", "mine + i * KERNEL);", "mine + i * shares % groups);"),
    "a lost unroll in the gradient of weights": ("weigh", "#pragma unroll 2\n", "#pragma unroll 1\n"),
    "a lost unroll in a product": ("product", "#pragma unroll 4\n", "#pragma unroll 1\n"),
    "an exact quotient in the sigmoid": ("activated", "__fdividef(1, 1 + expf(-value))", "1 / (1 + expf(-value))"),
    "single numbers in a pool": (
        "pooled", "upper = *reinterpret_cast<const Two*>(from + first)", "upper = {from[first], from[first + 1]}",
    ),
    "bytes that are looked up one by one": ("bytes", "return from[n];", "return in.picture(image)[start + n];"),
    "a division for each weight": ("weights", "inner = line - outer * by.number;", "inner = line % by.number;"),
    "lines copied number by number": ("lines", "bring_lines_by<ALONG>(target", "bring_lines_by<1>(target"),
    "numbers that are not copied asynchronously": ("copy", "copy_async<1>(", "*(float*)("),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED_STEPS)
def test_a_planted_regression_in_a_layer_is_found(name: str) -> None:
    kind, old, new = PLANTED_STEPS[name]
    assert old in nvrtc.kernels().source(steps.SOURCES[kind][0][0])
    found = steps.count(steps.loops((old, new)))
    assert found[kind] > steps.LIMITS[kind], found


def test_a_branch_around_loads_is_found() -> None:
    """A thread with such a branch waits for each pool before it loads the next."""
    old = "load(first + k * THREADS < count ? first + k * THREADS : count - 1)"
    new = "first + k * THREADS < count ? load(first + k * THREADS) : 0"
    assert steps.ahead(steps.loops((old, new)))["pooled"] < steps.AHEAD["pooled"]


def test_a_record_of_a_step_adds_up() -> None:
    step = json.loads(budget.RECORD.read_text(encoding="utf-8"))["step"]
    assert step["launches"] == len(step["nodes"]) == 18
    assert sum(map(sum, step["nodes"].values())) == pytest.approx(step["predicted us a step"], abs=0.3)
