"""What docs/conformance.md says: its code runs, and its adapter is one."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

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
        module.MyBatchNorm(), only=["convention-momentum", "convention-running_variance", "P1", "P3", "P12"]
    )
    said = " ".join(str(report).split())
    assert {result.id for result in report.failures} >= {"convention-momentum", "convention-running_variance"}
    assert not {result.id for result in report.failures} & {"P1", "P3"}
    assert "momentum: declared 'old', seen 'new'" in said
    shown = " ".join(PAGE.split())
    assert all(
        " ".join(result.words.split()) in shown for result in report.failures if result.id.startswith("convention")
    )
