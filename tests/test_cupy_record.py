"""The records of ``make gpu-check``: written with the stand-in, part by part, and read by the table of support."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from docs._ext import support
from polybn import conformance
from polybn.lenet import networks
from tests.gpu import check as gpu_check
from tests.gpu import pictures, speed
from tests.gpu import record as gpu_record
from tests.support import emulation

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


@emulation.needed
def test_a_record_grows_part_by_part(tmp_path: Path) -> None:
    """Each run adds its parts; the record names its device, versions and sources, and says that it is emulated."""
    run, record = check(tmp_path, "--parts", "speed")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert record["emulated"] is True
    assert record["device"] == "cuda:0 (emulated by g++)"
    assert {"polybn", "python", "cupy", "CUDA", "driver", "sources"} <= set(record)
    assert record["ok"] is False
    assert record["parts"]["kit"] == gpu_record.NOT_RUN
    speed = record["parts"]["speed"]
    assert speed["ok"] is True
    assert set(speed["7x3 float32 NC"]) >= {"copy", "forward", "backward", "inference"}
    assert not any({"goal", "predicted", "of_copy"} & set(task) for task in speed["7x3 float32 NC"].values())
    run, record = check(tmp_path, "--missing", "--parts", "speed", "lenet", "torch-lenet", "sanitizers")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert record["parts"]["lenet"]["epoch"]["us"] > 0
    assert "PyTorch" in record["parts"]["torch-lenet"]["absent"]
    assert record["parts"]["sanitizers"]["absent"] == "compute-sanitizer is not installed"
    assert record["parts"]["speed"] == speed
    titles = [panel.title.partition("\n")[0] for panel in pictures.panels(record)]
    assert titles == [*pictures.TASKS] * 6 + ["an epoch of LeNet"]
    pictures.main(tmp_path / "cupy-emulated-by-g.json")
    assert "times mean nothing" in (tmp_path / "cupy-emulated-by-g.svg").read_text(encoding="utf-8")


@emulation.needed
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


@emulation.needed
def test_what_does_not_end_is_written_down(tmp_path: Path) -> None:
    """A part that is killed keeps its findings so far and has not passed; the next part runs."""
    code = (
        "import os, sys; from tests.gpu import check as gpu_check, epochs, speed as gpu_speed\n"
        "def speed():\n    yield {'ok': True, 'first': 1}\n    os.kill(os.getpid(), 9)\n"
        "def lenet():\n    yield {'ok': True, 'first': 2}\n    raise ArithmeticError('planted')\n"
        "gpu_speed.batch_norm, epochs.ours = speed, lenet\n"
        "sys.exit(gpu_check.main())"
    )
    for part, words in (("speed", "did not come to its end"), ("lenet", "ArithmeticError: planted")):
        emulation.run("-c", code, "--inside", part, "--out", str(tmp_path))
        found = json.loads((tmp_path / "cupy-emulated-by-g.json").read_text())["parts"][part]
        assert found["ok"] is False
        assert found["error"] == words
        assert found["first"] == (1 if part == "speed" else 2)


SCRIPTED = """
import sys, time
from tests.gpu import check as gpu_check
gpu_check.ENDING = 0
gpu_check.PARTS = {name: gpu_check.Limits(*limits) for name, limits in %r.items()}
gpu_check.run = lambda command, limit: time.sleep(min(limit, 0.6)) or gpu_check.Record.keep(
    record, command[command.index("--inside") + 1], {"ok": True, "limit": limit}) or ""
record = gpu_check.Record(gpu_check.Path(sys.argv[-1]), gpu_check.facts(), gpu_check.PARTS)
sys.exit(gpu_check.main())
"""


@emulation.needed
def test_a_budget_is_spent_in_the_order_of_worth(tmp_path: Path) -> None:
    """A part gets what is left, up to its own limit; one that needs more is named and keeps its earlier findings."""
    code = SCRIPTED % {"speed": (0.1, 9), "kit": (5, 9), "tests": (0.1, 2), "sanitizers": (0.1, 9)}
    before = {"kit": {"ok": True, "earlier": 1}}
    about = json.loads(
        emulation.run("-c", "import json\nfrom tests.gpu.record import *\nprint(json.dumps(facts()))").stdout
    )
    gpu_record.Record(tmp_path, about, ["kit"]).keep("kit", before["kit"])
    run = emulation.run("-c", code, "--budget", "4", "--out", str(tmp_path))
    parts = json.loads((tmp_path / "cupy-emulated-by-g.json").read_text(encoding="utf-8"))["parts"]
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no time was left for: kit (run them" in run.stdout
    assert parts["kit"]["earlier"] == 1
    assert 3 < parts["speed"]["limit"] <= 4
    assert parts["tests"]["limit"] == 2
    assert parts["sanitizers"]["limit"] < 3


def test_a_part_ends_with_all_its_children(tmp_path: Path) -> None:
    """What a part has started must not go on and disturb the times of the next part."""
    sign = tmp_path / "sign"
    child = f"import time; time.sleep(3); open({str(sign)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu_check.run([sys.executable, "-c", parent], 1) == "stopped after 1 s"
    assert gpu_check.run([sys.executable, "-c", "raise SystemExit(3)"], 9) == "exit status 3"
    time.sleep(3)
    assert not sign.exists()


def test_a_folder_without_a_record_continues_the_one_in_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_record, "RESULTS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    record(tmp_path / "docs").keep("tests", {"ok": True})
    record(tmp_path).keep("speed", {"ok": True})
    assert [name for name, result in record(tmp_path).parts().items() if result["ok"]] == ["speed", "tests"]


@pytest.mark.parametrize(("copied", "predicted", "goal"), [(4.3, 99.6, 106.0), (3.0, 141.0, 151.9)])
def test_times_are_judged_by_what_a_copy_reaches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copied: float, predicted: float, goal: float
) -> None:
    """Memory that is 4.3 / 3 times as slow makes prediction and goal as much longer; the picture shows both."""
    monkeypatch.setattr(speed, "emulated", lambda: False)
    problem, times = speed.Problem(speed.LARGE, "float32", "NCHW"), {"copy": {"us": 411 / copied}}
    for task, microseconds in (("forward", 450 / copied), ("inference", 430 / copied)):
        times[task] = speed._judged(problem, task, microseconds, times, copied)
    assert times["forward"] == {
        "us": round(450 / copied, 2), "predicted": predicted, "instructions": times["forward"]["instructions"],
        "of_copy": 0.913, "goal": goal, "met": True,
    }  # fmt: skip
    assert times["inference"]["met"] is True
    kept = record(tmp_path, CUDA="13.0")
    kept.keep("speed", {"ok": True, problem.label: times})
    pictures.main(kept.path)
    picture = kept.path.with_suffix(".svg").read_text(encoding="utf-8")
    assert f"predicted: {predicted:g}" in picture
    assert "emulated" not in picture


WRONG = """
import sys, numpy
from tests.gpu import stress
cases = stress._case
def spoiled(cupy, random, shape, dtype):
    case, calls = cases(cupy, random, shape, dtype), []
    def call():
        results = case.call()
        calls.append(1)
        if len(calls) == 5:
            results[3].host.view(numpy.uint8).flat[0] ^= 1
        return results
    return case._replace(call=call)
stress._case, stress.SMALL, stress.DTYPES, stress.WINDOW = spoiled, ((3, 2, 67),), ("float32",), 4
*_, last = stress.stress(9)
print(last)
"""


@emulation.needed
def test_one_wrong_bit_among_many_launches_is_found() -> None:
    run = emulation.run("-c", WRONG)
    assert "'ok': False, 'launches': 9" in run.stdout, run.stderr[-2000:]
    assert run.stdout.count(": dx") == 1


def test_pytorch_trains_the_same_network() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.gpu import epochs

    network = epochs.torch_network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == networks.count_parameters(networks.lenet())
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_documentation_lists_the_parts() -> None:
    text = (emulation.ROOT / "docs" / "cupy.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \|.* (\d+) s \|$", text, re.MULTILINE)
    assert listed == [(part, str(limits.most)) for part, limits in gpu_check.PARTS.items()]


@emulation.needed
def test_no_emulated_run_is_recorded_among_results() -> None:
    run = emulation.run("-m", "tests.gpu.check", "--parts", "speed")
    assert run.returncode == 1
    assert "no record of an emulated run goes to docs/results" in run.stdout


def about(device: str = "cuda:0 (NVIDIA H200)", **changes: Any) -> dict[str, Any]:
    return {"emulated": False, "cupy": "14.2.0", "device": device, "sources": "0123"} | changes


def record(folder: Path, device: str = "cuda:0 (NVIDIA H200)", **changes: Any) -> gpu_record.Record:
    return gpu_record.Record(folder, about(device, **changes), gpu_check.PARTS)


def test_what_other_sources_gave_does_not_count(tmp_path: Path) -> None:
    record(tmp_path).keep("tests", {"ok": True})
    record(tmp_path).keep("speed", {"ok": True})
    found = record(tmp_path).parts()
    assert [name for name, result in found.items() if result["ok"]] == ["speed", "tests"]
    for change in ({"sources": "4567"}, {"cupy": "14.3.0"}):
        changed = record(tmp_path, **change)
        assert all(result == gpu_record.NOT_RUN for result in changed.parts().values())


@pytest.mark.parametrize(("device", "row"), [
    ("cuda:0 (NVIDIA H200)", "| cupy | cuda:0 (NVIDIA H200) |"),
    ("cuda:0 (emulated by g++)", "| cupy | gpu, **emulated** |"),
])  # fmt: skip
def test_the_table_of_support_reads_both_records(tmp_path: Path, device: str, row: str) -> None:
    """The table shows the kit's report with gpu-check's findings; an emulated record is no run on a GPU."""
    report = conformance.check(conformance.resolve("polybn-numpy"), only=["P15", "grade-float32"], seed=0)
    data = json.loads(report.to_json())
    data["adapter"] |= {"name": "PolyBN on cupy", "version": f"0.1.0, cupy 14.2.0, CUDA 13.0, device {device}"}
    kept = record(tmp_path, device)
    target = kept.report_path("cupy")
    target.write_text(json.dumps(data), encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    for part in ("compile", "kit", "speed"):
        kept.keep(part, {"ok": True})
    kept.keep("tests", {"ok": False, "error": "planted"})
    table = support.to_markdown([support.read(target)])
    (line,) = [line for line in table.splitlines() if line.startswith(row)]
    assert "gpu-check: compile, speed, kit passed; stress, lenet, torch-lenet, jax-lenet, jax-speed, first, " in line
    assert "jax-kit, sanitizers not run; tests **failed** (pro" in line
    assert "cupy 14.2.0, CUDA 13.0" in line
    assert data["date"] in line
    assert ("| cupy | gpu | never run |" in table) == ("emulated" in device)
    kept.path.write_text(kept.path.read_text().replace(device, "cuda:0 (another)"))
    with pytest.raises(ValueError, match="must be of the device of the kit's record"):
        support.read(target)


def test_a_source_tree_introduces_its_backends(tmp_path: Path) -> None:
    """If PolyBN is not installed, entry points come from pyproject.toml, also for child processes."""
    for name in ("pyproject.toml", "polybn", "backends", "tests"):  # without the metadata of an installation
        (tmp_path / name).symlink_to(emulation.ROOT / name)
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p and 'site-packages' not in p]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from importlib.metadata import entry_points; assert not entry_points(group='polybn.backends')\n"
        "from tests.gpu import record; record.introduce()\n"
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
