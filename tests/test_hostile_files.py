"""Damaged and hostile model files: one sentence, the right exit code, no code run, little memory, little time."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polybn import model_files
from polybn.model_files import ModelFileError, note
from polybn.model_files.model import Norm
from tests.support import hostile, limited

ROOT = Path(__file__).parents[1]
NEEDS = {".h5": "h5py", ".keras": "h5py", ".msgpack": "msgpack", ".onnx": "onnx", ".pt": "torch"}
MOST_MEMORY = 2**24
"""The most bytes that inspecting a file may take."""
Ended = tuple[int, str, str, int]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures of memory are those of Linux")


def in_a_limited_process(names: list[str], folder: Path) -> dict[str, Ended]:
    command = [sys.executable, "-m", "tests.support.limited", *names]
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    ended: list[Ended] = json.loads(done.stdout)
    return dict(zip(names, ended, strict=True))


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ended]:
    """Inspect a file, with all others of its kind in one process; a canary would be seen in the folder."""
    found: dict[str, Ended] = {}

    def ended(name: str) -> Ended:
        kind = Path(name).suffix
        if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
            pytest.skip(f"{NEEDS[kind]} is not installed")
        if name not in found:
            folder = tmp_path_factory.mktemp("hostile")
            alike = [other for other in (*hostile.REFUSED, *hostile.HARMLESS) if Path(other).suffix == kind]
            for other in alike:
                hostile.place(other, folder)
            found.update(in_a_limited_process(alike, folder))
            assert sorted(path.name for path in folder.iterdir()) == sorted(alike)
        return found[name]

    return ended


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_it_is_refused_in_one_sentence(name: str, inspected: Callable[[str], Ended]) -> None:
    code, out, err, memory = inspected(name)
    assert (code, out) == (2, "")
    assert memory <= MOST_MEMORY
    assert err.startswith(f"error: polybn.model_files.read: {name} must ")
    assert err.count("\n") == 1
    assert len(err) < 400


@pytest.mark.parametrize("name", hostile.HARMLESS)
def test_it_can_lie_about_what_is_not_read(name: str, inspected: Callable[[str], Ended]) -> None:
    code, out, err, memory = inspected(name)
    assert memory <= MOST_MEMORY
    assert code in (0, 1)
    assert err == ""
    assert out.startswith(f"{name} (")


def test_the_page_counts_them() -> None:
    page = (ROOT / "docs" / "model-files.md").read_text(encoding="utf-8")
    assert f"{len(hostile.REFUSED) + len(hostile.HARMLESS)} damaged and hostile files" in page


def test_the_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code in these files does run where they are simply unpickled."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile.REFUSED["runs-code.pt"]())
    assert (tmp_path / hostile.CANARY).exists()


def test_the_limit_limits(tmp_path: Path) -> None:
    code = f"from tests.support import limited; limited.main([]); bytearray({limited.MEMORY})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "MemoryError" in done.stderr


def test_a_pipe_a_device_and_a_directory_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, got in (("pipe.onnx", "a pipe"), ("zero.onnx", "a device"), ("folder", "a directory without")):
        with pytest.raises(ModelFileError, match=rf"{name} must .*; got {got}"):
            model_files.read(tmp_path / name)


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        model_files.read(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "text",
    [
        '{"batch_norms": {"bn": {"eps": 1}}}',
        '{"dialect": "pytorch", "batch_norms": ["bn"]}',
        '{"dialect": "pytorch", "batch_norms": 5}',
        '{"dialect": "pytorch", "batch_norms": {"bn": 5}}',
        '{"dialect": "pytorch", "batch_norms": {"bn": {"eps": -1}}}',
        '{"dialect": "unknown", "batch_norms": {"bn": {"eps": 1}}}',
        "[" * 100_000,
    ],
    ids=range(7),
)
def test_a_damaged_note_says_nothing(text: str) -> None:
    norm = Norm("bn", "pytorch", {"weight": np.ones(3, np.float32)})
    assert not note.with_options([norm], {note.NAME: text})[0].options
