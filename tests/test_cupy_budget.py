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
    costs = steps.count()
    assert {kind: cost for kind, cost in costs.items() if cost > steps.LIMITS[kind]} == {}
    record = json.loads(budget.RECORD.read_text(encoding="utf-8"))
    if record["compiler"] == f"NVRTC {nvrtc.version()}":
        assert record["step"] == steps.record()


PLANTED_STEPS = {
    "a lost unroll in a convolution": (
        "convolve", "#pragma unroll\n                for (int i", "#pragma unroll 1\nfor (int i",
    ),
    "a division in a convolution": ("spread", "mine[i * KERNEL + j]", "mine[(z + i * KERNEL + j) % groups]"),
    "a lost unroll in the gradient of weights": ("weigh", "#pragma unroll 8", "#pragma unroll 1"),
    "a lost unroll in a product": ("product", "#pragma unroll 16", "#pragma unroll 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED_STEPS)
def test_a_planted_regression_in_a_layer_is_found(name: str) -> None:
    kind, old, new = PLANTED_STEPS[name]
    costs = steps.count((old, new))
    assert costs[kind] > steps.LIMITS[kind], costs
