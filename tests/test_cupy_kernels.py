"""What is CuPy's own, and the conformance kit on CuPy, emulated as in test_cupy_emulated.py: ``make lane-cuda``."""

from __future__ import annotations

import json

import pytest

from tests.support import emulation

pytestmark = emulation.needed

OWN = (
    ("binaries", "emulator", "fields", "index", "large", "launches"),
    ("layouts", "plan", "program", "structs", "values"),
)

KIT = """
import json
from polybn import conformance
report = conformance.check(conformance.resolve("polybn-cupy"), profile="dev", seed=1)
print(json.dumps({
    "name": report.info.version,
    "failures": [f"{r.id}: {r.words}" for r in report.failures],
    "grades": {g.dtype: g.letter for g in report.grades},
    "passed": sum(r.status == "pass" for r in report.results),
}))
"""


@pytest.mark.parametrize("modules", OWN, ids="-".join)
def test_what_is_cupy_s_own_holds_emulated(modules: tuple[str, ...]) -> None:
    """All tests pass, and none is skipped."""
    ran = emulation.run_pytest(*(f"tests/test_cupy_{module}.py" for module in modules))
    assert {path: set(outcomes) for path, outcomes in ran.items()} == {
        f"tests/test_cupy_{module}.py": {"PASSED"} for module in modules
    }


def test_the_kit_passes_emulated() -> None:
    """The grade is K or better in every dtype."""
    finished = emulation.run("-c", KIT)
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert "emulated" in found["name"]
    assert found["failures"] == []
    assert set(found["grades"]) == {"float16", "bfloat16", "float32", "float64"}
    assert set(found["grades"].values()) <= {"K", "S"}
    assert found["passed"] > 50
