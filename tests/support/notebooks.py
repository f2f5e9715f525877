"""Notebooks: running them, and comparing what they print with what is saved in them.

    python -m tests.support.notebooks docs/notebooks/batch-norm.ipynb

runs a notebook from top to bottom and saves its outputs in it.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, folder: Path) -> Any:
    """Run a copy in a kernel of its own, which works in ``folder``."""
    fresh = copy.deepcopy(notebook)
    for cell in code_of(fresh):
        cell.outputs = []
    resources = {"metadata": {"path": str(folder)}}
    ran = NotebookClient(fresh, timeout=300, resources=resources, record_timing=False, coalesce_streams=True).execute()
    ran.metadata = notebook.metadata  # the kernel adds its version of Python
    return ran


def printed(cell: Any) -> str:
    """Return what a cell printed, and the value of its last line."""
    texts = (out.get("text") or out.data["text/plain"] for out in cell.outputs if out.output_type != "display_data")
    return "".join(texts)


def draws(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def differences(saved: Any, ran: Any) -> list[str]:
    """Compare the outputs of all cells; those of a cell tagged ``varies`` in kind only."""
    found = []
    for old, new in zip(code_of(saved), code_of(ran), strict=True):
        if draws(old) != draws(new):
            found.append(f"{old.source}\n\ndraws a picture: saved {draws(old)}, ran {draws(new)}")
        varies = "varies" in old.metadata.get("tags", [])
        if bool(printed(old)) != bool(printed(new)) or (not varies and printed(old) != printed(new)):
            found.append(f"{old.source}\n\nsaved\n{printed(old)}\nprinted\n{printed(new)}")
    return found


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(read(path), Path(folder)), path)
