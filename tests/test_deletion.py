"""Deleting backends' folders and their lines in pyproject.toml is enough: the neutral tests still pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.conftest import NIGHTLY

ROOT = Path(__file__).parents[1]
NEUTRAL = ("dispatch", "layer", "require", "imports", "kit_check", "unusual")
ABOUT_NO_BACKEND = (
    "passes_everything", "demands_a_grade", "test_sizes", "asked_for_none", "what_is_declared_is_expected",
    "does_not_apply", "float32_counts",
)  # fmt: skip
"""Tests of the kit that take seconds, on batch norms that are written in the tests."""
SHOWN_HERE = ("runs_satisfies_it", "stops_the_lane")
"""Tests that start a run of their own in which nothing but the names of what is required differs from this one."""
COPIED = ("polybn", "backends", "tests", "docs", "pyproject.toml", "README.md", "Makefile")
SCRATCH = ("__pycache__", "_build", "*.egg-info", "build", ".hypothesis")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VALUES: dict[str, str] = PROJECT["entry-points"]["polybn.backends"]
ENTRIES = {name: value.partition(":")[0] for name, value in VALUES.items()}
FIRST = {module: name for name, module in reversed(ENTRIES.items())}
DELETABLE = sorted(name for module, name in FIRST.items() if name != "numpy")  # NumPy is always needed
TREES = [DELETABLE[::2], DELETABLE[1::2]]
"""Which backends to delete together: each is absent from one of two trees, or alone in the profile ``nightly``."""
if settings().max_examples >= NIGHTLY:
    TREES = [[name] for name in DELETABLE]


def delete(tree: Path, name: str) -> None:
    """Delete a backend as backends/README.md says."""
    module = ENTRIES[name]
    shutil.rmtree(tree / "backends" / module)
    path = tree / "pyproject.toml"
    gone = {entry for entry, served in ENTRIES.items() if served == module}
    gone |= {extra for extra, wanted in PROJECT["optional-dependencies"].items() if f"polybn[{name}]" in wanted}
    names = "|".join(sorted(gone))
    mentions = re.compile(rf"^({names})(-\w+)? = |{module}|polybn\[({names})\]\"")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not mentions.search(line)))


@pytest.mark.parametrize("names", TREES, ids="-".join)
def test_the_neutral_tests_pass_without_backends(names: list[str], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for item in COPIED:
        source = ROOT / item
        if source.is_dir():
            shutil.copytree(source, tree / item, ignore=shutil.ignore_patterns(*SCRATCH))
        else:
            shutil.copy(source, tree)
    for name in names:
        delete(tree, name)
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    entries = project["entry-points"]["polybn.backends"]
    left = {FIRST[ENTRIES[name]] for name in entries}
    assert left == {"numpy", *DELETABLE} - set(names)
    announce(tree, entries, project["optional-dependencies"])
    paths = [tree, tree / "backends"]
    # That the other backends keep to the contract does not depend on these: test_imports.py holds them apart.
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "POLYBN_REQUIRE": "numpy", "POLYBN_ONLY": "numpy"}
    environment = os.environ | own
    files = [f"tests/test_{test}.py" for test in NEUTRAL]
    skipped = " or ".join(ABOUT_NO_BACKEND + SHOWN_HERE)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"not ({skipped})"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert not [name for name in names if f"polybn {name}:" in done.stdout]


def announce(tree: Path, entries: dict[str, str], extras: Iterable[str]) -> None:
    """Write the metadata of an installation of the tree, which hide the metadata of this one."""
    info = tree / "polybn-0.1.0.dist-info"
    info.mkdir()
    offered = "".join(f"Provides-Extra: {extra.replace('_', '-')}\n" for extra in extras)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: polybn\nVersion: 0.1.0\n{offered}")
    lines = ["[polybn.backends]", *(f"{name} = {module}" for name, module in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
