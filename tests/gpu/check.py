"""Run everything that needs a GPU, part by part, and record the results: ``python -m tests.gpu.check``.

It needs CuPy, Hypothesis, ml_dtypes and pytest; PyTorch and compute-sanitizer are used where they are installed. PolyBN
itself need not be installed. Each part runs in its own process, which may crash or exceed its time, and its findings
are written at once to ``docs/results/cupy-<device>.json``; a later run of some parts adds to that record. The
kit's report is ``check-cupy-<device>.json``. The table of support reads both. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SOURCES = ROOT / "backends" / "polybn_cupy"
LIMITS = {"compile": 240, "speed": 420, "lenet": 180, "kit": 480, "tests": 580, "sanitizers": 580, "bench": 300}
"""The parts in their order, with the seconds that each may take."""
NOT_RUN = {"ok": False, "absent": "not run"}


def say(words: str) -> None:
    """Print a line of progress with the time, and flush it."""
    sys.stdout.write(f"{datetime.datetime.now():%H:%M:%S} {words}\n")
    sys.stdout.flush()


class Record:
    """The record of one device, a file that is read, changed and written as a whole."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        device = self.about["device"].partition("(")[2].rstrip(")")
        label = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.path, self.report_path = folder / f"cupy-{label}.json", folder / f"check-cupy-{label}.json"

    def parts(self) -> dict[str, Result]:
        """Return the findings of every part, without those of other sources or versions."""
        found: dict[str, Result] = {name: dict(NOT_RUN) for name in LIMITS}
        if self.path.exists():
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if {key: data.get(key) for key in self.about} == self.about:
                found |= data["parts"]
        return found

    def keep(self, part: str, result: Result) -> None:
        """Write the findings of a part so far."""
        parts = self.parts() | {part: result | {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}}
        data = {"ok": all(result["ok"] for result in parts.values()), **self.about, "parts": parts}
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.path)


def main() -> int:
    """Run parts, each in its own process, so that one may fail without stopping the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(LIMITS), choices=LIMITS, help="all by default")
    parser.add_argument("--profile", default="dev", choices=("dev", "ci", "nightly"), help="of the conformance kit")
    parser.add_argument("--out", type=Path, help="folder of the record; docs/results by default")
    parser.add_argument("--inside", choices=LIMITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    introduce()
    import polybn

    reason = polybn.dispatch.why_not("cupy")
    if reason is not None:
        say(f"polybn: the CuPy backend cannot run here: {reason}")
        return 1
    about = facts()
    if about["emulated"] and (options.out is None or options.out.resolve() == RESULTS):
        say("polybn: no record of an emulated run goes to docs/results; name another folder with --out")
        return 1
    record = Record(options.out or RESULTS, about)
    record.path.parent.mkdir(parents=True, exist_ok=True)
    if options.inside:
        find(record, options.inside, options.profile)
        return 0
    for part in options.parts:
        supervise(record, part, options.profile)
    found = record.parts()
    for part, result in found.items():
        say(f"{part}: {'passed' if result['ok'] else 'FAILED'} {result.get('absent', result.get('error', ''))}")
    say(f"written to {record.path}")
    return 0 if all(found[part]["ok"] for part in options.parts) else 1


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


def supervise(record: Record, part: str, profile: str) -> None:
    """Run one part in its own process, and record if it did not finish."""
    say(f"{part} ... (at most {LIMITS[part]} s)")
    start = time.monotonic()
    record.keep(part, {"ok": False, "error": "did not come to its end"})
    command = [sys.executable, "-m", "tests.gpu.check", "--inside", part, "--profile", profile]
    try:
        status = subprocess.run(
            [*command, "--out", str(record.path.parent)], cwd=ROOT, timeout=LIMITS[part], check=False
        ).returncode
        ending = f"exit status {status}" if status else None
    except subprocess.TimeoutExpired:
        ending = f"stopped after {LIMITS[part]} s"
    result = record.parts()[part]
    if ending is not None:
        result |= {"ok": False, "error": f"{result.get('error', '')} ({ending})".strip()}
    record.keep(part, result | {"seconds": round(time.monotonic() - start, 1)})
    say(f"{part}: {'passed' if result['ok'] else 'FAILED: ' + str(result.get('error', 'see the record'))}")


def find(record: Record, part: str, profile: str) -> None:
    """Run one part in this process, and record each finding."""
    from tests.gpu import parts, speed

    sources: dict[str, Callable[[], Iterator[Result]]] = {
        "compile": parts.compile_all,
        "speed": speed.batch_norm,
        "lenet": speed.lenet,
        "kit": lambda: parts.kit(profile, record.report_path),
        "tests": parts.tests,
        "sanitizers": parts.sanitizers,
        "bench": parts.against_others,
    }
    result: Result = {}
    try:
        for result in sources[part]():
            # Until the part ends, the record says that it has not finished.
            record.keep(part, result | {"ok": False, "error": "did not come to its end"})
    except Exception as error:  # any failure goes into the record
        result |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        say(f"{part}: {result['error']}")
    record.keep(part, result)


if __name__ == "__main__":
    sys.exit(main())
