"""The cost of the kernels, counted in their machine code: ``python -m tests.gpu.budget`` writes the record.

A kernel handles values in loops of four kinds. ``load`` copies them to shared memory, ``sum`` adds up terms,
``write`` computes results from shared memory, and ``move`` is all of inference. The count is for the hot loop of each
kind, the one for whole tiles: the instructions of a thread divided by the values that it handles in a turn.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tests.gpu import nvrtc, sass

RECORD = Path(__file__).parents[2] / "docs" / "results" / "cupy-budget.json"
TARGET = "sm_90"
INPUTS = {"inference": 1, "forward": 1, "backward": 2, "second": 3}
LIMITS = {"inference": 12.0, "forward": 32.0, "backward": 45.0, "second": 105.0}
"""The most instructions per value. Under the first three limits, memory is slower than the instructions."""
ITEM_BYTES = {"Half": 2, "Bfloat": 2, "float": 4, "double": 8}
DTYPES = {"Half": "float16", "Bfloat": "bfloat16", "float": "float32", "double": "float64"}
LAYOUTS = {"ROWS": "NCHW", "CHANNELS": "NHWC"}
CHUNK_VALUES = 16
"""The values that each lane adds up in one turn of a loop: EACH in tile.cuh."""
REGISTERS, THREADS, MOST_BLOCKS, MOST_TRAINING = 65536, 256, 8, 3
"""Registers of a multiprocessor; threads of a block; the most blocks per multiprocessor, and the most of 70 KB."""

# For the prediction: an H200. A device copy moves some 4.3 TB/s; 132 multiprocessors issue 4 warp instructions at
# 1.75 GHz, of which the prediction uses two thirds. LATENCY, in us, is for a launch and a group's barrier.
COPY_BYTES, ISSUED = 4.3e6, 2 / 3 * 132 * 4 * 1750 * 32  # per us; ISSUED counts each lane
LATENCY = {"inference": 2.5, "forward": 4.0, "backward": 4.0, "second": 4.0}
LARGE = (256, 64, 56, 56)


class Subject(NamedTuple):
    """A kernel whose hot path is counted."""

    kernel: str
    stored: str
    walk: str
    length: int

    @property
    def expression(self) -> str:
        """Return the kernel's name in C++."""
        return f"{self.kernel}<{self.stored}, {self.walk}, {self.length}>"

    @property
    def label(self) -> str:
        """Return the kernel's name for readers."""
        return f"{self.kernel} {DTYPES[self.stored]} {LAYOUTS[self.walk]}"


def subjects() -> Iterator[Subject]:
    """List the kernels for NCHW and NHWC in float32 and float16, for shapes that vector loads fit."""
    for kernel in INPUTS:
        for stored, rows in (("float", 4), ("Half", 8)):
            yield Subject(kernel, stored, "ROWS", rows)
            yield Subject(kernel, stored, "CHANNELS", 4)


def count(subject: Subject, text: str | None = None) -> dict[str, Any]:
    """Compile a kernel from its own text or from ``text``, and count."""
    file, sources = f"{subject.kernel}.cu", nvrtc.kernels()
    cubin, log = nvrtc.to_cubin(text or sources.source(file), file, subject.expression, TARGET, sources.OPTIONS)
    lines = sass.disassemble(cubin)
    found: dict[str, list[tuple[float, sass.Loop]]] = {}
    for loop in sass.loops(lines):
        if loop.kind:
            found.setdefault(loop.kind, []).append((_values(loop, subject), loop))
    shares = {kind: _share(kind, loops, subject) for kind, loops in sorted(found.items())}
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    resident = min(REGISTERS // (math.ceil(registers / 8) * 8 * THREADS), MOST_BLOCKS)
    hot = [loop for kind, loops in found.items() for loop in _hot(kind, loops)]
    vectors = 16 / ITEM_BYTES[subject.stored]
    return {
        "instructions": {kind: round(share[0], 2) for kind, share in shares.items()},
        "instructions a value": round(sum(share[0] for share in shares.values()), 2),
        "memory instructions a 16 bytes": round(sum(share[1] for share in shares.values()) * vectors, 2),
        "local or generic": sum(loop.count("LDL", "STL", "LD.E", "ST.E") for loop in hot),
        "spilled bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", log)),
        "registers": registers,
        "blocks": resident if subject.kernel == "inference" else min(resident, MOST_TRAINING),
        "code": sum(not line.endswith(":") for line in lines),
        "fences": {} if subject.kernel == "inference" else sass.fences(lines),
    }


def complaints(subject: Subject, counted: dict[str, Any], recorded: dict[str, Any] | None) -> list[str]:
    """Report whatever breaks a limit or is worse than in the record, if the record is of the same compiler."""
    kinds = {"move"} if subject.kernel == "inference" else {"load", "sum", "write"}
    found = [f"no hot loop that does: {kind}" for kind in kinds - counted["instructions"].keys()]
    total = counted["instructions a value"]
    if total > LIMITS[subject.kernel]:
        found.append(f"{total} instructions a value, the limit is {LIMITS[subject.kernel]:g}")
    if counted["local or generic"]:
        found.append(f"{counted['local or generic']} local or generic accesses in hot loops")
    found += [f"no fence {where}" for where, there in counted["fences"].items() if not there]
    for name in ("instructions a value", "memory instructions a 16 bytes", "spilled bytes", "registers"):
        if recorded is not None and counted[name] > recorded[name] * 1.02:
            found.append(f"{name}: {counted[name]}, were {recorded[name]}")
    if recorded is not None and counted["blocks"] < recorded["blocks"]:
        found.append(f"{counted['blocks']} resident blocks, were {recorded['blocks']}")
    return found


def traffic(subject: Subject) -> float:
    """Return the bytes moved per value at the large shape, by the plan for an H200; this imports the backend."""
    from polybn_cupy import calls, layout, plan

    n, channels, *image = LARGE
    m, pixels = n * math.prod(image), math.prod(image)
    rows = subject.walk == "ROWS"
    sizes, stride = ((n, pixels), pixels) if rows else ((1, m), 1)
    along = (channels * pixels, 1) if rows else (0, channels)
    arrays = INPUTS[subject.kernel] + (2 if subject.kernel == "second" else 1)
    laid = layout.Layout(channels, m, sizes, (stride,) * arrays, (along,) * arrays)
    kernel, item = getattr(calls, subject.kernel.upper()), ITEM_BYTES[subject.stored]
    device = plan.Device(132, 227 << 10)
    tiling = plan.cut(laid, item, kernel, device, lambda shared: (228 << 10) // (shared + 1024), masked=False)
    again = 1 - 1 / tiling.rounds
    return float(item * (arrays + again * INPUTS[subject.kernel]))


def predict(subject: Subject, counted: dict[str, Any]) -> float:
    """Return the time at the large shape in us, the longer of memory's and the instructions'."""
    values = math.prod(LARGE)
    memory = values * counted["bytes a value"] / COPY_BYTES
    arithmetic = values * counted["instructions a value"] / ISSUED
    return float(LATENCY[subject.kernel] + max(memory, arithmetic))


def _values(loop: sass.Loop, subject: Subject) -> float:
    """Return how many values a thread handles in one turn."""
    moved = {"load": ("LDG", "LD.E"), "write": ("STG", "ST.E"), "move": ("STG", "ST.E")}
    if loop.kind == "sum":
        return CHUNK_VALUES
    return loop.moved(*moved[loop.kind]) / ITEM_BYTES[subject.stored]


def _hot(kind: str, loops: list[tuple[float, sass.Loop]]) -> list[sass.Loop]:
    """Pick the loops for whole tiles: those that handle most values at once, and the shortest of those that sum."""
    if kind == "sum":
        return [min((loop for _, loop in loops), key=lambda loop: len(loop.instructions))]
    most = max(values for values, _ in loops)
    return [loop for values, loop in loops if values == most]


def _share(kind: str, loops: list[tuple[float, sass.Loop]], subject: Subject) -> tuple[float, float]:
    """Return instructions and memory instructions per value, over all loops of a kind that a value passes through."""
    values, hot = max(values for values, _ in loops), _hot(kind, loops)
    all_of_them, memory = ([count(loop) / values for loop in hot] for count in (_length, _memory))
    if kind == "load":  # one loop for each array, and copies of it for rounds
        arrays = INPUTS[subject.kernel]
        return arrays * max(all_of_them), arrays * max(memory)
    return sum(all_of_them), sum(memory)


def _length(loop: sass.Loop) -> int:
    return len(loop.instructions)


def _memory(loop: sass.Loop) -> int:
    real = sass.Loop(tuple(line for line in loop.instructions if not sass.is_idle(line)))
    return real.count("LDG", "STG", "LDS", "STS", "LD.E", "ST.E", "LDL", "STL")


def _without_cupy() -> None:
    """Make the backend's arithmetic importable without CuPy."""
    folder = nvrtc.FOLDER
    sys.path[:0] = [str(folder.parents[1]), str(folder.parent)]
    package, stub = ModuleType("polybn_cupy"), ModuleType("cupy")
    package.__path__ = [str(folder)]
    stub.cuda = None  # type: ignore[attr-defined]
    sys.modules |= {"polybn_cupy": package, "cupy": stub}


def main() -> None:
    """Count everything, and write the record."""
    _without_cupy()
    kernels = {}
    for subject in subjects():
        counted = count(subject)
        counted["bytes a value"] = round(traffic(subject), 2)
        counted["predicted us"] = round(predict(subject, counted), 1)
        kernels[subject.label] = counted
        bad = complaints(subject, counted, None)
        sys.stdout.write(f"{subject.label}: {counted['instructions a value']} {'; '.join(bad)}\n")
    from tests.gpu import steps

    data = {"compiler": f"NVRTC {nvrtc.version()}", "target": TARGET, "shape": LARGE, "kernels": kernels}
    data["step"] = steps.record()
    RECORD.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
