"""Compiled kernels on disk: the next process finds them, and recompiles misfits. Emulated, or on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
KERNEL = ("vectors.cu", "fold<float>")


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep binaries in a folder of the test, and record what is compiled."""
    made: list[str] = []
    compiler, original = cupy.cuda.compiler, cupy.cuda.compiler.compile_using_nvrtc

    def compile_using_nvrtc(source: str, options: Any, **others: Any) -> Any:
        made.extend(others["name_expressions"])
        return original(source, options, **others)

    monkeypatch.setattr(compiler, "compile_using_nvrtc", compile_using_nvrtc)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "made" / "here"))
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
    return made


def stored(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.glob("**/*") if path.is_file()]


def test_a_kernel_is_compiled_once(compilations: list[str], tmp_path: Path) -> None:
    from polybn_cupy.binaries import binary

    first = binary(*KERNEL)
    assert binary(*KERNEL) == first
    assert compilations == [KERNEL[1]]
    assert len(stored(tmp_path)) == 1
    module = cupy.cuda.Module()
    module.load(first[0])
    module.get_function(first[1])


@pytest.mark.parametrize("change", ["options", "source", "compiler", "file"])
def test_what_does_not_fit_is_compiled_again(
    compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another text, option or compiler gives another file; half a file counts as missing."""
    from polybn_cupy.binaries import binary
    from polybn_cupy.sources import OPTIONS, source

    binary(*KERNEL)
    (path,) = stored(tmp_path)
    if change == "options":
        monkeypatch.setattr("polybn_cupy.binaries.OPTIONS", (*OPTIONS, "-DNOTHING"))
    elif change == "source":
        text = source("vectors.cu") + "// changed\n"
        monkeypatch.setattr("polybn_cupy.binaries.source", lambda _: text)
    elif change == "compiler":
        monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", lambda: (99, 9))
    else:
        path.write_bytes(path.read_bytes()[:-7])
    again = binary(*KERNEL)
    assert compilations == [KERNEL[1]] * 2
    assert binary(*KERNEL) == again
    assert len(compilations) == 2


def test_without_a_folder_everything_works(
    compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polybn_cupy.binaries import binary

    (tmp_path / "made").write_text("a file where a folder should be")
    binary(*KERNEL)
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "other"))
    binary(*KERNEL)
    assert compilations == [KERNEL[1]] * 2
    assert not (tmp_path / "other").exists()
