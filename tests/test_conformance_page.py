"""docs/conformance.md is right: its code runs, and its adapter works."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from polybn import conformance

PAGE = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OF_TORCH = [code for code in BLOCKS if "import torch" in code]
OTHERS = [code for code in BLOCKS if "import torch" not in code]


@pytest.mark.parametrize("code", OTHERS, ids=range(len(OTHERS)))
def test_blocks_run(code: str) -> None:
    exec(compile(code, "conformance.md", "exec"), {"__name__": "page"})


def test_the_adapter_is_short_and_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = OF_TORCH
    assert len(code.splitlines()) <= 32
    pytest.importorskip("torch", reason="the page's adapter is of PyTorch, which is not installed")
    module = types.ModuleType("my_adapter")
    monkeypatch.setitem(sys.modules, "my_adapter", module)
    exec(compile(code, "my_adapter.py", "exec"), module.__dict__)
    report = conformance.check(
        module.MyBatchNorm(),
        only=[*(name for name in conformance.IDS if name.startswith("convention-")), "P1", "P3", "P12"],
    )
    assert {result.id for result in report.failures} >= {"convention-momentum", "convention-running_variance"}
    assert not {result.id for result in report.failures} & {"P1", "P3"}
    shown = " ".join(PAGE.split())
    assert " ".join(report.advice.split()) in shown


def test_the_known_failures_are_those_of_the_declared_adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch", "2.13.0", reason="the page's adapter is of PyTorch 2.13, which is not installed")
    (code,), (known,) = OF_TORCH, re.findall(r"^```text\n(P15b .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (declared,) = (block[block.index("Info(\n") :] for block in OTHERS if "dialect=" in block)
    module: Any = types.ModuleType("my_adapter")
    monkeypatch.setitem(sys.modules, "my_adapter", module)
    exec(compile(code, "my_adapter.py", "exec"), module.__dict__)
    module.MyBatchNorm.info = lambda _: eval(declared, module.__dict__)
    (tmp_path / "known.txt").write_text(known)
    ids = [line.split()[0] for line in known.splitlines()]
    assert len(ids) == 11
    report = conformance.check(module.MyBatchNorm(), only=ids, xfail=tmp_path / "known.txt", profile="ci")
    assert report.ok, str(report)
