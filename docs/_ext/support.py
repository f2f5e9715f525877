"""The table of support, from the records of runs in docs/results.

A record is ``docs/results/check-NAME.json``, made as :mod:`docs._ext.records` says. A second device adds a file,
``check-NAME-DEVICE.json``. ``make gpu-check`` writes that file and also ``NAME-DEVICE.json``, which says what else ran
on the device and whether it passed. The table says of a backend without a record that it was never run.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "results"
DTYPES = ("float16", "bfloat16", "float32", "float64")


def _planned() -> list[tuple[str, str]]:
    """List backends and the kinds of device that they are written for, according to the extras in pyproject.toml.

    An extra for CUDA, such as ``cupy-cuda12x`` or ``mxnet-cu112``, stands for GPUs. Any other extra stands for the CPU,
    and so does a backend without extras.
    """
    project = tomllib.loads((RESULTS.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = dict[str, str]()
    for name, module in project["entry-points"]["polybn.backends"].items():
        modules.setdefault(module, name)
    found = []
    for name in modules.values():
        extras = [extra for extra in project["optional-dependencies"] if extra.partition("-")[0] == name]
        cuda = [extra for extra in extras if "-cu" in extra]
        found += [(name, "cpu")] * (not extras or len(cuda) < len(extras)) + [(name, "gpu")] * bool(cuda)
    return found


class Record(NamedTuple):
    """One run of the conformance kit on a backend of PolyBN."""

    backend: str
    """The backend's name, and the form of the call unless it is the usual one: ``"jax, in jax.jit"``."""
    kind: str
    """``"cpu"`` or ``"gpu"``."""
    device: str
    """The device in the backend's own words, among them "emulated" for an imitated GPU."""
    versions: str
    """Versions of all that took part, and the device again, which the table shows in short."""
    date: str
    profile: str
    verdict: str
    letters: dict[str, str]

    @property
    def library(self) -> str:
        """The backend's name, without its form."""
        return self.backend.partition(",")[0]


def read(path: Path) -> Record:
    """Read a record; any other file, or a record without a date, is an error."""
    data = json.loads(path.read_text(encoding="utf-8"))
    name = data["adapter"]["name"].removeprefix("PolyBN on ")
    facts, _, device = data["adapter"]["version"].partition(", device ")
    beside = path.with_name(path.name.removeprefix("check-"))
    return Record(
        backend=name,
        kind="cpu" if "cpu" in device.lower() else "gpu",
        device=device,
        versions=f"PolyBN {facts}, Python {data['versions']['python']}; {device}",
        date=data["date"],
        profile=data["profile"],
        verdict=_verdict(data["results"]) + (_others(beside, device) if beside != path and beside.exists() else ""),
        letters={grade["dtype"]: grade["letter"] for grade in data["grades"]},
    )


PLANNED = _planned()


def to_markdown(records: list[Record]) -> str:
    """Draw the table: a row for each record, and a row for each planned kind of device that has none."""
    lines = [_line(["backend", "device", *DTYPES, "conformance kit", "versions", "date"]), _line(["---"] * 9)]
    seen = set()
    for record in sorted(records, key=lambda r: ([b for b, _ in PLANNED].index(r.library), r.kind, r.backend)):
        emulated = "emulated" in record.device.lower()
        seen.add((record.library, record.kind) if not emulated else None)
        letters = [record.letters.get(dtype, "no") for dtype in DTYPES]
        device = f"{record.kind}, **emulated**" if emulated else "cpu" if record.kind == "cpu" else record.device
        verdict = f"{record.verdict} (profile {record.profile})"
        lines.append(_line([record.backend, device, *letters, verdict, record.versions, record.date]))
    lines += [
        _line([backend, kind, *["never run"] * len(DTYPES), "never run", "", ""])
        for backend, kind in PLANNED
        if (backend, kind) not in seen
    ]
    return "\n".join(lines) + "\n"


def table() -> str:
    """Draw the table of all records in docs/results."""
    return to_markdown([read(path) for path in sorted(RESULTS.glob("check-*.json"))])


def _verdict(results: list[dict[str, Any]]) -> str:
    counts = {status: sum(r["status"] == status for r in results) for status in ("pass", "fail", "not certified")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _others(path: Path, device: str) -> str:
    """Say how the other parts of ``make gpu-check`` ended."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["device"] != device:
        raise ValueError(f"{path} must be of the device of the kit's record, {device!r}; got {data['device']!r}")
    states: dict[str, list[str]] = {}
    for part, result in data["parts"].items():
        state = "passed" if result["ok"] else "not run" if "absent" in result else "**failed**"
        states.setdefault(state, []).append(part)
    return "; gpu-check: " + "; ".join(f"{', '.join(parts)} {state}" for state, parts in states.items())


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
