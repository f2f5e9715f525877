"""The record of a device: the findings of every part of ``tests.gpu.check``, in one file."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SOURCES = ROOT / "backends" / "polybn_cupy"
NOT_RUN = {"ok": False, "absent": "not run"}


def say(words: str) -> None:
    """Print a line of progress with the time, and flush it."""
    sys.stdout.write(f"{datetime.datetime.now():%H:%M:%S} {words}\n")
    sys.stdout.flush()


class Record:
    """The record of one device, a file that is read, changed and written as a whole."""

    def __init__(self, folder: Path, about: Mapping[str, Any], names: Iterable[str]) -> None:
        self.about, self._names = dict(about), tuple(names)
        device = self.about["device"].partition("(")[2].rstrip(")")
        self.label = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.path = folder / f"cupy-{self.label}.json"

    def report_path(self, backend: str) -> Path:
        """Return the path of the kit's report for a backend on this device."""
        return self.path.with_name(f"check-{backend}-{self.label}.json")

    def parts(self) -> dict[str, Result]:
        """Return the findings of every part, without those of other sources or versions.

        A folder without a record continues the one in docs/results.
        """
        found: dict[str, Result] = {name: dict(NOT_RUN) for name in self._names}
        path = self.path if self.path.exists() else RESULTS / self.path.name
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            if {key: data.get(key) for key in self.about} == self.about:
                found |= {name: result for name, result in data["parts"].items() if name in found}
        return found

    def keep(self, part: str, result: Result) -> None:
        """Write the findings of a part so far."""
        parts = self.parts() | {part: result | {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}}
        data = {"ok": all(result["ok"] for result in parts.values()), **self.about, "parts": parts}
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.path)


def introduce() -> None:
    """If PolyBN is not installed, announce this tree's backends to this process and to its children."""
    from importlib.metadata import entry_points

    if entry_points(group="polybn.backends"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = project["entry-points"]["polybn.backends"].items()
    folder = Path(tempfile.mkdtemp(prefix="polybn-"))
    (folder / "polybn-0.dist-info").mkdir()
    (folder / "polybn-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: polybn\nVersion: 0\n")
    lines = ["[polybn.backends]", *(f"{name} = {module}" for name, module in entries)]
    (folder / "polybn-0.dist-info" / "entry_points.txt").write_text("\n".join(lines) + "\n")
    paths = [str(ROOT), str(ROOT / "backends"), str(folder)]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join((*paths, os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)


def facts() -> dict[str, Any]:
    """Return the facts that a record begins with: the device, the versions, and a digest of the sources."""
    import polybn

    described = polybn.backend("cupy").describe()
    digest = hashlib.sha256()
    for path in sorted(path for suffix in ("*.py", "*.cu", "*.cuh") for path in SOURCES.rglob(suffix)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {"polybn": polybn.__version__, "python": platform.python_version(), "sources": digest.hexdigest()[:16]}
    return {"emulated": "emulated" in described["device"] + described["cupy"], **described, **versions}


def emulated() -> bool:
    """Return whether the device is emulated: then times mean nothing, and large tensors take too long."""
    import cupy

    return "emulated" in cupy.__version__
