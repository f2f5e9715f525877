"""The `polybn` commands in the shell blocks of pages run, page by page, in order."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REASONS
from tests.support import xla
from tests.test_pages import PAGES, ROOT, blocks_of, name_of

TEXT = {name_of(path): path.read_text(encoding="utf-8") for path in PAGES}
COMMANDS: dict[str, list[str]] = {
    page: [
        line.removeprefix("$ ").strip()
        for block in blocks_of(text)
        if block.language in ("bash", "console")
        for line in block.body.splitlines()
        if "polybn " in line and not line.startswith("pip")
    ]
    for page, text in TEXT.items()
}


class Expected(NamedTuple):
    """The exit code of a command, with a file that it writes or a word that it prints."""

    code: int
    leaves: str = ""
    prints: str = ""


EXPECTED = {
    "polybn info": Expected(0, prints="numpy"),
    "polybn train --data sample --epochs 2": Expected(0, "runs/*/metrics.jsonl"),
    "polybn train --data sample --epochs 2 --norm none": Expected(0, "runs/*none*/metrics.jsonl"),
    "polybn compare runs/*": Expected(0, prints="spec"),
    "polybn train --data sample --epochs 2 --out runs/mine": Expected(0, "runs/mine/metrics.jsonl"),
    "polybn export runs/mine --to safetensors --out lenet.safetensors": Expected(0, "lenet.safetensors", "load_state"),
    "polybn check --adapter mine:Mine --dtype float32 --html report.html": Expected(
        1, "report.html", "does not conform"
    ),
    "polybn check --adapter my_adapter:MyBatchNorm --at-least K": Expected(1, prints="class"),
    "polybn dialects pytorch keras3": Expected(0, prints="unbiased"),
    "JAX_ENABLE_X64=1 polybn check --backend jax --jit --only grade-float32 --limit 600": Expected(0, prints="class S"),
}
ELSEWHERE = {
    "polybn export runs/mine --to onnx": "it needs a library: test_exports.py",
    "polybn inspect light_densenet121.onnx": "test_model_files.py inspects it",
    "polybn convert model.npz batch-norms.safetensors --to keras3": "test_convert_command.py converts such files",
    "polybn convert model.safetensors batch-norms.npz --to keras3 --count 256 --count conv1.bn=147456": (
        "test_convert_command.py converts such files"
    ),
    "polybn convert net.params batch-norms.npz --to pytorch --option fix_gamma=False --option bn2.eps=0.001": (
        "test_convert_command.py converts such a file"
    ),
    "polybn convert model.onnx folded.onnx --fold": "test_convert_command.py folds a model, and runs it",
    "polybn train": "ten epochs take minutes: test_fashion_mnist_training.py",
    "polybn train --norm none": "ten epochs take minutes: test_fashion_mnist_training.py",
    "polybn train --backend jax --device gpu    # the first GPU; gpu:1 is the second": (
        "it needs a GPU: test_device.py trains on a device of its own"
    ),
    "polybn stats train-images-idx3-ubyte.gz --scale 255": "test_stats_command.py reads such files, and those below",
    "polybn stats train.npy --axis -1              # channels last": "test_stats_command.py",
    "polybn stats a.npy b.npy --axis 1 --json -    # together, with all digits": "test_stats_command.py",
    "polybn stats photos --scale 255 --workers 4   # a folder, by four processes": "test_stats_command.py",
    "polybn stats scans.zarr --axis 1 --picture histograms.png": "test_stats_command.py",
    "polybn stats scans.zarr --axis 1 --scheduler tcp://head:8786   # by the workers of a Dask cluster": (
        "it needs a cluster: test_stats_command.py makes one"
    ),
    "pytest --polybn numpy,jax": "test_pytest_plugin.py",
    "pytest --polybn my_adapter:MyBatchNorm,pytorch --polybn-profile ci": "test_pytest_plugin.py, with other names",
    "pytest --polybn numpy -k 'P1]'": "test_pytest_plugin.py",
    "polybn check --backend xarray": "test_example_backend.py installs the package and runs the kit on it",
    "polybn check --adapter my_adapter:MyBatchNorm --profile ci": "test_conformance_page.py checks what it finds",
    "polybn check --adapter my_adapter:MyBatchNorm --profile ci --xfail known.txt": "test_conformance_page.py",
    "polybn check --peers --json docs/results/peers.json --into docs/peers.md --into README.md": (
        "it needs ten libraries; test_pages.py compares the table with the record that it writes"
    ),
    "polybn check --backend numpy --profile ci --json docs/results/check-numpy.json": "test_conformance.py",
    "JAX_ENABLE_X64=1 polybn check --backend jax": "test_conformance.py",
    "polybn agree numpy onnx-reference --cases 20 --programs differences": "test_cli_agree.py",
    "polybn bench --only jax+jit --rounds 11": "it takes minutes: test_bench.py",
    "polybn bench --quick": "it takes a minute: test_bench.py runs the command on small shapes",
    "polybn bench --busy --grow --json docs/results/bench-cpu.json": "it takes minutes: test_bench.py",
}
"""Commands that do not run here, with the test that runs them, or the reason."""

SHELL = [
    page
    for page, commands in COMMANDS.items()
    if EXPECTED.keys() & set(commands) and "polybn train" not in commands  # later commands need its result
]


def test_every_command_is_typed_or_run_elsewhere() -> None:
    """Every command is in one of the two tables, and the tables have no other commands."""
    assert {c for commands in COMMANDS.values() for c in commands} == EXPECTED.keys() | ELSEWHERE.keys()
    assert "docs/start.md" in SHELL


def adapters(page: str) -> dict[str, str]:
    """Return the files that a page asks its reader to write."""
    files = {}
    for block in blocks_of(TEXT[page]):
        if "class Mine" in block.body:
            files["mine.py"] = "import numpy as np\n" + block.body.partition("\n\nreport = ")[0]
        elif "class MyBatchNorm" in block.body:
            files["my_adapter.py"] = block.body
    return files


def missing_for(page: str) -> str | None:
    if "my_adapter.py" in adapters(page) and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if page == "docs/jax.md":  # it names the class that XLA's optimization leads to
        return REASONS["jax"] or (xla.ELSEWHERE if xla.compiles_quickly() else None)
    return None


def leave_out(text: str) -> str:
    """Remove colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("page", SHELL)
def test_the_commands_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    why_not = missing_for(page)
    if why_not is not None:
        pytest.skip(why_not)
    for name, code in adapters(page).items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    modules = os.pathsep.join((str(ROOT), str(ROOT / "backends")))
    env = os.environ | {"PATH": path, "PYTHONPATH": modules, "COLUMNS": "160", "POLYBN_PROFILE": "dev"}
    for command in COMMANDS[page]:
        if command in EXPECTED:
            expected = EXPECTED[command]
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == expected.code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            assert expected.prints in leave_out(done.stdout)
            assert not expected.leaves or list(tmp_path.glob(expected.leaves)), command
