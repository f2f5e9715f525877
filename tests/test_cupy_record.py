"""The records of ``make gpu-check``: written with the stand-in, part by part, and read by the table of support."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from docs._ext import support
from polybn import conformance
from tests.gpu import check as gpu_check
from tests.support import emulation

REASON = emulation.why_not()
needs_emulation = pytest.mark.skipif(REASON is not None and not emulation.required(), reason=str(REASON))

TOOL = """#!/bin/sh
echo "========= $2"
test "$2" = racecheck && echo "========= ERROR SUMMARY: 1 hazard" && exit 9
echo "========= ERROR SUMMARY: 0 errors"
test "$2" != memcheck && exit 0
shift 4
exec "$@"
"""
"""A stand-in for compute-sanitizer that runs the command once, and reports a race."""


def check(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run parts of gpu-check, emulated; return the run and the record."""
    run = emulation.run("-m", "tests.gpu.check", "--out", str(out), *arguments)
    return run, json.loads((out / "cupy-emulated-by-g.json").read_text(encoding="utf-8"))


@needs_emulation
def test_a_record_grows_part_by_part(tmp_path: Path) -> None:
    """Each run adds its parts; the record names its device, versions and sources, and says that it is emulated."""
    run, record = check(tmp_path, "--parts", "speed")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert record["emulated"] is True
    assert record["device"] == "cuda:0 (emulated by g++)"
    assert {"polybn", "python", "cupy", "CUDA", "driver", "sources"} <= set(record)
    assert record["ok"] is False
    assert record["parts"]["kit"] == gpu_check.NOT_RUN
    speed = record["parts"]["speed"]
    assert speed["ok"] is True
    assert set(speed["7x3 float32 NC"]) >= {"copy", "forward", "backward", "inference"}
    assert not any({"goal", "predicted", "of_copy"} & set(task) for task in speed["7x3 float32 NC"].values())
    run, record = check(tmp_path, "--parts", "lenet")
    assert run.returncode == 0, run.stderr[-3000:]
    assert record["parts"]["lenet"]["epoch"]["us"] > 0
    assert record["parts"]["speed"] == speed
    run, record = check(tmp_path, "--parts", "sanitizers")
    assert record["parts"]["sanitizers"]["absent"] == "compute-sanitizer is not installed"
    assert record["parts"]["speed"] == speed


@needs_emulation
def test_sanitizers_call_every_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run under an installed tool, and the record has its findings."""
    (tmp_path / "compute-sanitizer").write_text(TOOL)
    (tmp_path / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run, record = check(tmp_path, "--parts", "sanitizers")
    found = record["parts"]["sanitizers"]
    assert run.returncode == 1
    assert {name: found[name]["ok"] for name in ("memcheck", "racecheck", "synccheck")} == {
        "memcheck": True, "racecheck": False, "synccheck": True,
    }  # fmt: skip
    assert found["ok"] is False
    assert "1 hazard" in found["racecheck"]["said"][-1]


@needs_emulation
def test_what_does_not_end_is_written_down(tmp_path: Path) -> None:
    """A part that is killed keeps its findings so far and has not passed; the next part runs."""
    code = (
        "import os, sys; from tests.gpu import check as gpu_check, speed as gpu_speed\n"
        "def speed():\n    yield {'ok': True, 'first': 1}\n    os.kill(os.getpid(), 9)\n"
        "def lenet():\n    yield {'ok': True, 'first': 2}\n    raise ArithmeticError('planted')\n"
        "gpu_speed.batch_norm, gpu_speed.lenet = speed, lenet\n"
        "sys.exit(gpu_check.main())"
    )
    for part, words in (("speed", "did not come to its end"), ("lenet", "ArithmeticError: planted")):
        emulation.run("-c", code, "--inside", part, "--out", str(tmp_path))
        found = json.loads((tmp_path / "cupy-emulated-by-g.json").read_text())["parts"][part]
        assert found["ok"] is False
        assert found["error"] == words
        assert found["first"] == (1 if part == "speed" else 2)


@needs_emulation
def test_no_emulated_run_is_recorded_among_results() -> None:
    run = emulation.run("-m", "tests.gpu.check", "--parts", "speed")
    assert run.returncode == 1
    assert "no record of an emulated run goes to docs/results" in run.stdout


def about(device: str = "cuda:0 (NVIDIA H200)", **changes: Any) -> dict[str, Any]:
    return {"emulated": False, "cupy": "14.2.0", "device": device, "sources": "0123"} | changes


def test_what_other_sources_gave_does_not_count(tmp_path: Path) -> None:
    gpu_check.Record(tmp_path, about()).keep("tests", {"ok": True})
    gpu_check.Record(tmp_path, about()).keep("speed", {"ok": True})
    found = gpu_check.Record(tmp_path, about()).parts()
    assert [name for name, result in found.items() if result["ok"]] == ["speed", "tests"]
    for change in ({"sources": "4567"}, {"cupy": "14.3.0"}):
        changed = gpu_check.Record(tmp_path, about(**change))
        assert all(result == gpu_check.NOT_RUN for result in changed.parts().values())


@pytest.mark.parametrize(("device", "row"), [
    ("cuda:0 (NVIDIA H200)", "| cupy | cuda:0 (NVIDIA H200) |"),
    ("cuda:0 (emulated by g++)", "| cupy | gpu, **emulated** (cuda:0 (emulated by g++)) |"),
])  # fmt: skip
def test_the_table_of_support_reads_both_records(tmp_path: Path, device: str, row: str) -> None:
    """The table shows the kit's report with gpu-check's findings; an emulated record is no run on a GPU."""
    report = conformance.check(conformance.resolve("polybn-numpy"), only=["P15", "grade-float32"], seed=0)
    data = json.loads(report.to_json())
    data["adapter"] |= {"name": "PolyBN on cupy", "version": f"0.1.0, cupy 14.2.0, CUDA 13.0, device {device}"}
    record = gpu_check.Record(tmp_path, about(device))
    record.report_path.write_text(json.dumps(data), encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [record.report_path.name]
    for part in ("compile", "kit", "speed"):
        record.keep(part, {"ok": True})
    record.keep("tests", {"ok": False, "error": "planted"})
    table = support.to_markdown([support.read(record.report_path)])
    (line,) = [line for line in table.splitlines() if line.startswith(row)]
    assert "gpu-check: compile, speed, kit passed; lenet, sanitizers, bench not run; tests **failed** (pro" in line
    assert "cupy 14.2.0, CUDA 13.0" in line
    assert data["date"] in line
    assert ("| cupy | gpu | never run |" in table) == ("emulated" in device)
    record.path.write_text(record.path.read_text().replace(device, "cuda:0 (another)"))
    with pytest.raises(ValueError, match="must be of the device of the kit's record"):
        support.read(record.report_path)


def test_a_source_tree_introduces_its_backends(tmp_path: Path) -> None:
    """If PolyBN is not installed, entry points come from pyproject.toml, also for child processes."""
    for name in ("pyproject.toml", "polybn", "backends", "tests"):  # without the metadata of an installation
        (tmp_path / name).symlink_to(emulation.ROOT / name)
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p and 'site-packages' not in p]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from importlib.metadata import entry_points; assert not entry_points(group='polybn.backends')\n"
        "from tests.gpu import check as gpu_check; gpu_check.introduce()\n"
        "print(sorted(e.name + ' ' + e.value for e in entry_points(group='polybn.backends')))\n"
        "import os, subprocess\n"
        "subprocess.run([sys.executable, '-S', '-c', 'from importlib.metadata import entry_points;"
        ' print(len(entry_points(group="polybn.backends")))\'], check=True)\n'
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-S", "-u", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "cupy polybn_cupy" in run.stdout
    announced = tomllib.loads((emulation.ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "polybn.backends"
    ]
    assert run.stdout.splitlines()[-1] == str(len(announced))
