"""What docs/leaving-mxnet.md says: its blocks run in order, as a reader would type them, and hold what they assert."""

from __future__ import annotations

import importlib.util
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


def run(sections: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for section in sections:
        for block in re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL):
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
    assert all(len(set(value.tolist())) == 4 for value in names["state"].values()), "a state that could be anyone's"
    assert (tmp_path / "net.params").exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the target, as it is imported
def test_the_state_is_exported(target: str) -> None:
    if importlib.util.find_spec(TARGETS[target]) is None:
        pytest.skip(f"{TARGETS[target]} is not installed")
    run([*COMMON, target])


def test_every_section_with_code_is_run() -> None:
    assert set(TARGETS) < set(SECTIONS)
    assert PAGE.count("```python") == sum(text.count("```python") for text in SECTIONS.values()) == 10
