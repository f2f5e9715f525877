"""The notebooks of docs: they run, on each backend that trains, print what is saved in them, and stay small."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest

from polybn import dispatch
from tests.support.notebooks import code_of, differences, draws, execute, printed, read

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CHOICE = 'backend = "numpy"'
"""The line that a reader changes to use another library."""
MOST_BYTES = 100_000


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which a kernel works, without the settings of whoever runs the tests."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    return tmp_path


def test_one_line_picks_the_library(backend: str, kernel: Path) -> None:
    """On each backend that trains, the notebook prints the same, to the digits shown, and batch norm wins."""
    saved = read(FOLDER / "batch-norm.ipynb")
    (cell,) = (cell for cell in code_of(saved) if CHOICE in cell.source)
    assert cell.source.splitlines().count(CHOICE) == 1
    cell.source = cell.source.replace(CHOICE, f'backend = "{backend}"')
    ran = execute(saved, kernel)
    assert differences(saved, ran) == []
    (right,) = (printed(cell) for cell in code_of(ran) if "right after" in printed(cell))
    spec, none = map(int, re.findall(r"(\d+)%", right))
    assert spec > 60
    assert none < 20


def test_the_origin_runs(kernel: Path) -> None:
    if "mxnet" not in dispatch.backends() or (reason := dispatch.why_not("mxnet")) is not None:
        pytest.skip(f"mxnet: {reason}")
    saved = read(FOLDER / "origin-mxnet.ipynb")
    ran = execute(saved, kernel)
    assert differences(saved, ran) == []
    for text in (printed(cell) for cell in code_of(ran) if "epoch 1" in printed(cell)):
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
        assert losses[-1] < losses[0] < 1.5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_whole_and_small(path: Path) -> None:
    """It was run from top to bottom, is small, names no place on its author's machine, and its links lead somewhere."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert path.stat().st_size < MOST_BYTES
    words = "\n".join([*(cell.source for cell in notebook.cells), *map(printed, code_of(notebook))])
    assert re.findall(r"/(?:home|root|tmp|Users|usr)/\S*", words) == []
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", words)
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []
    for cell in code_of(notebook):
        if draws(cell):
            assert cell.metadata["mystnb"]["image"]["alt"]


def test_the_reader_of_outputs_reads() -> None:
    """Another number, a missing picture and a missing output are found; numbers of a cell that varies are not."""
    saved = read(FOLDER / "batch-norm.ipynb")
    assert differences(saved, saved) == []
    for place, cell in enumerate(code_of(saved)):
        if cell.outputs:
            none = copy.deepcopy(saved)
            code_of(none)[place].outputs = []
            assert len(differences(saved, none)) == 1
        if printed(cell):
            other = copy.deepcopy(saved)
            code_of(other)[place].outputs[0]["text"] = "0.0\n"
            assert bool(differences(saved, other)) != ("varies" in cell.metadata.get("tags", []))
