"""The records of ``make gpu-check``: written with the stand-in, and read by the table of support."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs._ext import support
from polybn import conformance
from tests import emulation

REASON = emulation.why_not()
needs_emulation = pytest.mark.skipif(REASON is not None and not emulation.required(), reason=str(REASON))


@needs_emulation
def test_the_record_says_what_ran_and_what_was_absent(tmp_path: Path) -> None:
    run = emulation.run("-m", "tests.gpu_check", "--out", str(tmp_path), "--parts", "sanitizers", "speed")
    assert run.returncode == 1, run.stderr[-3000:]  # parts that were left out are not passed
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "cupy-emulated-by-g.json"
    assert record["device"] == "cuda:0 (emulated by g++)"
    assert {"date", "polybn", "python", "cupy", "CUDA", "driver"} <= set(record)
    assert record["ok"] is False
    assert record["kit"] == {"ok": False, "absent": "left out by --parts"}
    assert record["sanitizers"]["ok"] is True
    assert record["speed"]["ok"] is True, record["speed"]


@pytest.mark.parametrize(("device", "row"), [
    ("cuda:0 (NVIDIA H200)", "| cupy | cuda:0 (NVIDIA H200) |"),
    ("cuda:0 (emulated by g++)", "| cupy | gpu, **emulated** (cuda:0 (emulated by g++)) |"),
])  # fmt: skip
def test_the_table_of_support_reads_a_record(tmp_path: Path, device: str, row: str) -> None:
    """The kit's report in a made-up version line; an emulated one leaves the row "never run"."""
    report = conformance.check(conformance.resolve("polybn-numpy"), dtypes=["float32"], seed=0)
    data = json.loads(report.to_json())
    data["adapter"] |= {"name": "PolyBN on cupy", "version": f"0.1.0, cupy 14.2.0, CUDA 13.0, device {device}"}
    path = tmp_path / "check-cupy-made-up.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    table = support.to_markdown([support.read(path)])
    assert row in table
    assert ("| cupy | gpu | never run |" in table) == ("emulated" in device)
