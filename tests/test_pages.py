"""README.md and docs are right: examples run and print what is shown, commands exist, figures are the recorded ones."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

import polybn
from polybn.cli import app
from polybn.conformance import peers
from polybn.dialects import DIALECTS
from tests.test_docstrings import Checker

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("**/*.md") if "_build" not in p.parts)]
LIBRARIES = {
    "array_api_strict", "cupy", "dask", "flax", "hypothesis", "jax", "keras", "ml_dtypes", "msgpack", "mxnet", "onnx",
    "onnxruntime", "optax", "safetensors", "torch",
}  # fmt: skip
"""Libraries that a page may need and a machine may lack."""
BACKENDS = {"array_api_strict", "cupy", "dask", "jax", "mxnet", "torch"}


class Block(NamedTuple):
    """A fenced block: its language, its text, and the first line of it in the page."""

    language: str
    body: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """List the fenced blocks of a page; a fence may contain shorter fences."""
    fences = re.finditer(r"^(`{3,})(\w*)[^\n`]*\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[2], m[3], text.count("\n", 0, m.start()) + 2) for m in fences]


def prose_of(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def examples_of(text: str) -> list[tuple[Block, str | None]]:
    """List the Python blocks of a page, each with the output that follows: a block without a language, or text."""
    blocks = blocks_of(text)
    following = [*blocks, Block("none", "", 0)][1:]
    between = text.splitlines()
    shown = []
    for block, after in zip(blocks, following, strict=True):
        if block.language == "python":
            end = block.line + block.body.count("\n")
            adjacent = after.language in ("", "text") and not "".join(between[end : after.line - 2]).strip()
            shown.append((block, after.body if adjacent else None))
    return shown


def missing_for(code: str) -> str | None:
    """Return why a page's code cannot run here: a library that it imports, or a backend that it names."""
    nodes = list(ast.walk(ast.parse(code)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0].removeprefix("polybn_") for name in imported}
    named = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    absent = sorted(name for name in roots & LIBRARIES if importlib.util.find_spec(name) is None)
    if absent:
        return f"{', '.join(absent)} is not installed"
    reasons = {name: polybn.dispatch.why_not(name) for name in sorted((roots | named) & BACKENDS)}
    return next((f"{name}: {reason}" for name, reason in reasons.items() if reason is not None), None)


def run(examples: list[tuple[Block, str | None]], name: str) -> None:
    """Run a page's blocks in order, in one module, and compare what they print with what is shown."""
    module = ModuleType(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        for block, shown in examples:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (block.line - 1) + block.body, name, "exec"), module.__dict__)
            if shown is not None:
                assert Checker().check_output(shown, printed.getvalue(), 0), (
                    f"{name}, line {block.line}: shown\n{shown}\nprinted\n{printed.getvalue()}"
                )


WITH_PYTHON = [path for path in PAGES if examples_of(path.read_text(encoding="utf-8"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.filterwarnings("ignore:.*copy keyword:DeprecationWarning")  # Keras on NumPy 2
@pytest.mark.usefixtures("as_readers_have_it")
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_the_examples_of_a_page_run_and_print_what_is_shown(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = examples_of(path.read_text(encoding="utf-8"))
    why_not = missing_for("\n".join(block.body for block, _ in examples))
    if why_not is not None:
        pytest.skip(why_not)
    monkeypatch.chdir(tmp_path)
    run(examples, path.stem.replace("-", "_") + "_page")


def test_the_pages_with_examples_are_found() -> None:
    assert {"README.md", "docs/start.md", "docs/errors.md", "docs/lenet.md", "docs/numerics.md"} <= set(
        map(name_of, WITH_PYTHON)
    )


def test_the_readers_of_pages_read() -> None:
    page = "```python\nprint(1)\n```\n\n```\n1\n```\ntext\n```python\nx = 2\n```\nwords\n```\n3\n```\n"
    (first, shown), (second, none) = examples_of(page)
    assert (first.body, first.line, shown) == ("print(1)\n", 2, "1\n")
    assert (second.body, second.line, none) == ("x = 2\n", 10, None)
    run(examples_of(page), "some_page")
    with pytest.raises(AssertionError, match="line 2: shown"):
        run(examples_of(page.replace("\n1\n", "\n2\n")), "some_page")
    assert missing_for("import polybn_nosuch, numpy") is None
    assert missing_for("import torch") in (None, "torch is not installed")


def test_readme_shows_four_answers_that_differ() -> None:
    shown = examples_of(README)[0][1]
    assert shown is not None
    assert len({line.split(maxsplit=1)[1] for line in shown.splitlines()}) == 4


def test_readme_counts_the_dialects() -> None:
    others = DIALECTS.keys() - {"polybn"}
    assert f"what {len(others)} batch norms of other frameworks mean" in README


# Commands.


def commands_of(text: str) -> Iterator[str]:
    """Yield the commands of shell blocks, and the commands in the text between backquotes."""
    for block in blocks_of(text):
        if block.language in ("bash", "sh", "console"):
            yield from (line.strip().removeprefix("$ ") for line in block.body.replace("\\\n", " ").splitlines())
    spans = re.findall(r"`(polybn [^`]+|make [^`]+)`", prose_of(text))
    yield from (re.sub(r"\s+", " ", span) for span in spans)


def flaw_of(command: str) -> str | None:
    """Return what is wrong with a command line of polybn, make or pip; None for others."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return str(error)
    while words and "=" in words[0]:  # environment variables
        words = words[1:]
    program = words[0].rpartition("/")[2] if words else ""
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        return next((f"no target {w}" for w in words[1:] if "=" not in w and w not in targets), None)
    if program == "pip":
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        wanted = {extra for group in re.findall(r"(?:polybn|\.)\[([^\]]+)\]", command) for extra in group.split(",")}
        return next((f"no extra {extra}" for extra in sorted(wanted - extras)), None)
    return _flaw_of_polybn(words[1:]) if program == "polybn" else None


def _flaw_of_polybn(words: list[str]) -> str | None:
    """Parse a command line as polybn would, without running it."""
    group: Any = typer.main.get_command(app)
    if not words or words[0] in ("--help", "-h", "--version", "COMMAND"):
        return None
    command = group.commands.get(words[0])
    if command is None:
        return f"no command {words[0]}"
    known = {"--help", "-h"} | {
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    options = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[A-Za-z]", word)]
    return next((f"polybn {words[0]} has no option {option}" for option in options if option not in known), None)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_the_commands_of_a_page_exist(path: Path) -> None:
    commands = list(commands_of(path.read_text(encoding="utf-8")))
    assert {command: flaw for command in commands if (flaw := flaw_of(command)) is not None} == {}


@pytest.mark.parametrize(
    ("command", "flaw"),
    [
        ("polybn train --norm none # without", None),
        ("POLYBN_BACKEND=numpy .venv/bin/polybn train", None),
        ("polybn trian", "no command trian"),
        ("polybn train --epoch 3", "polybn train has no option --epoch"),
        ("polybn compare runs/* --out=a.png", None),
        ("make docs", None),
        ("make doc", "no target doc"),
        ("make test ARGS='-k lattice'", None),
        ('pip install ".[jax,plot]"', None),
        ('pip install "polybn[jaxx]"', "no extra jaxx"),
        ("polybn train 'runs", "No closing quotation"),
        ("ls --nosuch", None),
    ],
)
def test_a_wrong_command_is_found(command: str, flaw: str | None) -> None:
    assert flaw_of(command) == flaw


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """CI runs the commands that the README tells its readers to type."""
    decides = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(command in decides for command in ("make check", "make test", "make docs"))


def test_the_commands_it_names_exist() -> None:
    """Every command that README names exists."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    line = next(line for line in README.splitlines() if line.startswith("`polybn --help` shows"))
    mentioned = set(re.findall(r"`(\w+)`", line)) | set(re.findall(r"`polybn (\w+)", README))
    assert {"train", "compare"} < mentioned <= names
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_the_learning_curves_are_the_recorded_ones() -> None:
    """The table has the figures of docs/results, and without batch norm each epoch is behind."""
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


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_linked_files_exist(path: Path) -> None:
    """Relative links have targets in the repository, and not only in the built pages."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose_of(path.read_text(encoding="utf-8")))
    assert [link for link in links if not (path.parent / link).exists()] == []


def _figures(epoch: dict[str, float]) -> list[str]:
    return [f"{epoch['loss']:.4f}", f"{epoch['train_accuracy']:.3f}", f"{epoch['test_accuracy']:.3f}"]


def test_a_library_that_takes_too_long_is_named() -> None:
    (peer,) = peers.run(["polybn-numpy"], limit=0.01)
    assert peer.why_not == "it took longer than 0.01 s, see --limit"
    assert "Could not run: polybn-numpy (it took longer" in peers.to_markdown(json.loads(peers.to_json([peer])))


@pytest.mark.parametrize("path", ["README.md", "docs/peers.md"])
def test_the_table_of_peers_is_the_recorded_one(path: str) -> None:
    """The table of other libraries comes from docs/results/peers.json, which `polybn check --peers` wrote."""
    record = json.loads((ROOT / "docs" / "results" / "peers.json").read_text(encoding="utf-8"))
    text = (ROOT / path).read_text(encoding="utf-8")
    assert peers.fill(text, record) == text
    assert text.count("e-07") >= 5
