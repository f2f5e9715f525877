"""docs/leaving-mxnet.md is right: its blocks run in order, as a reader would type them, and their assertions hold."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REASONS

if REASONS["mxnet"] is not None:
    pytest.skip(f"mxnet: {REASONS['mxnet']}", allow_module_level=True)

PAGE = (Path(__file__).parents[1] / "docs" / "leaving-mxnet.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TARGETS = {"PyTorch": "torch", "Flax": "flax", "Keras": "keras", "ONNX": "onnx"}


def blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


def run(sections: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for section in sections:
        for block in blocks(section):
            exec(compile(block, f"leaving-mxnet.md, {section}", "exec"), names)
    return names


COMMON = [section for section in SECTIONS if section not in TARGETS]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "numpy"))


def test_the_file_is_read_and_verified(tmp_path: Path) -> None:
    names = run(COMMON)
    assert set(names["state"]) == {"gamma", "beta", "running_mean", "running_var"}
    assert all(len(set(value.tolist())) == 4 for value in names["state"].values()), "equal values prove nothing"
    assert (tmp_path / "net.params").exists()


def test_an_exported_network_and_its_symbol_hold_the_same_state(tmp_path: Path) -> None:
    names = run(COMMON)
    found = names["state"]
    names["net"].hybridize()
    names["net"](names["images"])
    names["net"].export("exported")
    (block,) = (block for block in blocks("Its batch norm") if "mx.nd.load" in block)
    exec(block.replace("net.params", "exported-0000.params"), names)
    assert len(names["norms"]) == 1
    assert names["norms"][0] != "1."
    assert {name: value.tolist() for name, value in names["state"].items()} == {k: v.tolist() for k, v in found.items()}
    nodes = json.loads((tmp_path / "exported-symbol.json").read_text())["nodes"]
    (options,) = (node["attrs"] for node in nodes if node["op"] == "BatchNorm")
    assert (float(options["momentum"]), float(options["eps"]), options["fix_gamma"]) == (0.9, 1e-5, "False")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by the import of the target
def test_the_state_is_exported(target: str) -> None:
    if importlib.util.find_spec(TARGETS[target]) is None:
        pytest.skip(f"{TARGETS[target]} is not installed")
    run([*COMMON, target])


def test_every_section_with_code_is_run() -> None:
    assert set(TARGETS) < set(SECTIONS)
    assert PAGE.count("```python") == sum(text.count("```python") for text in SECTIONS.values()) == 10
