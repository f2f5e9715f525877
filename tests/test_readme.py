"""What README.md says: its examples run and print what it shows, its figures are the recorded ones."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polybn.cli import app
from polybn.conformance import peers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code: str) -> None:
    """Each Python block runs by itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_first_example_prints_what_is_shown() -> None:
    """The block after the first example is its output, and its four answers differ."""
    shown = next(body for language, body in BLOCKS if not language)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(PYTHON[0], "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == shown
    assert len({line[8:] for line in shown.splitlines()}) == 4


def test_the_two_commands_are_make_targets() -> None:
    """Every `make` command of README and CONTRIBUTING has a target."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert commands == {"train", "test", "check"}
    assert commands <= targets


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """What decides in CI is what a reader is told to type."""
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_commands_it_names_exist() -> None:
    """Every `polybn COMMAND` that README names is one."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    line = next(line for line in README.splitlines() if line.startswith("`polybn --help` shows the rest"))
    mentioned = set(re.findall(r"`(\w+)`", line)) | set(re.findall(r"`polybn (\w+)", README))
    assert {"train", "compare"} < mentioned <= names
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_the_learning_curves_are_the_recorded_ones() -> None:
    """The table's figures are those of docs/results, and without batch norm each epoch is behind."""
    recorded = {}
    for norm in ("spec", "none"):
        lines = (ROOT / "docs" / "results" / f"lenet-numpy-{norm}.jsonl").read_text(encoding="utf-8").splitlines()
        recorded[norm] = [json.loads(line) for line in lines]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE)
    expected = [
        (str(spec["epoch"]), " | ".join(_figures(spec) + _figures(none)))
        for spec, none in zip(recorded["spec"], recorded["none"], strict=True)
    ]
    assert rows == expected
    assert len(rows) == 10
    for spec, none in zip(recorded["spec"], recorded["none"], strict=True):
        assert spec["loss"] < none["loss"]
        assert spec["train_accuracy"] > none["train_accuracy"]


def test_linked_files_exist() -> None:
    """Relative links lead somewhere."""
    links = re.findall(r"\]\(([^)#:]+)\)", README, re.DOTALL)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def _figures(epoch: dict[str, float]) -> list[str]:
    return [f"{epoch['loss']:.4f}", f"{epoch['train_accuracy']:.3f}", f"{epoch['test_accuracy']:.3f}"]


@pytest.mark.parametrize("path", ["README.md", "docs/peers.md"])
def test_the_table_of_peers_is_the_recorded_one(path: str) -> None:
    """The table of other libraries comes from docs/results/peers.json, which `polybn check --peers` wrote."""
    record = json.loads((ROOT / "docs" / "results" / "peers.json").read_text(encoding="utf-8"))
    text = (ROOT / path).read_text(encoding="utf-8")
    assert peers.fill(text, record) == text
    assert text.count("e-07") >= 5
