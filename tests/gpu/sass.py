"""Machine code as text, and its parts that matter: innermost loops, by purpose, and the fences of a barrier."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.gpu import nvrtc

PACKAGE = "nvidia-cuda-nvdisasm"
_LABEL = re.compile(r"^([.\w$]+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
_TARGET = re.compile(r"\bBRA\b.*`\((.+?)\)")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_BYTES = re.compile(r"\.(8|16|32|64|128)\b|\.[US](8|16)\b")
ARITHMETIC = ("FADD", "FMUL", "FFMA", "DADD", "DMUL", "DFMA")


@cache
def tool() -> Path | None:
    """Find nvdisasm in the folders of NVIDIA's packages."""
    found = [path for root in nvrtc.roots() for path in root.glob("*/bin/nvdisasm")]
    return found[0] if found else None


def why_not() -> str | None:
    """Return why machine code cannot be read here, or None if it can."""
    missing = None if tool() else f"nvdisasm is not installed: pip install {PACKAGE}"
    return nvrtc.why_not() or missing


class Loop(NamedTuple):
    """The instructions of an innermost loop, without those that never do anything."""

    instructions: tuple[str, ...]

    def count(self, *prefixes: str) -> int:
        """Count the instructions whose names begin with one of these."""
        return sum(name.startswith(prefixes) for name in map(operation, self.instructions))

    def moved(self, *prefixes: str) -> int:
        """Add up the bytes that instructions with these names move in one turn."""
        return sum(_bytes(name) for name in map(operation, self.instructions) if name.startswith(prefixes))

    @property
    def kind(self) -> str:
        """Return the loop's purpose: ``"move"``, ``"load"``, ``"sum"``, ``"write"``, or ``""`` for any other.

        A loop that calls functions is slow anyway, and has no purpose here.
        """
        if self.count("CALL"):
            return ""
        computes = self.count(*ARITHMETIC) > 0
        reads, writes = self.count("LDG", "LD.E"), self.count("STG", "ST.E")
        if reads and writes:
            return "move" if computes else ""
        if self.count("LDGSTS") or (reads and self.count("STS") and not computes):
            return "load"
        if self.count("SHFL") and self.count("DADD", "DFMA") > self.count("SHFL") / 2:
            return "sum" if self.count("LDS") else ""
        return "write" if computes and writes and self.count("LDS") else ""


def disassemble(cubin: bytes) -> list[str]:
    """Return the lines of a kernel's machine code: labels, which end in a colon, and instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([str(tool()), "-c", file.name], capture_output=True, text=True, check=True)
    lines = []
    for line in run.stdout.splitlines():
        if label := _LABEL.match(line):
            lines.append(label[1] + ":")
        elif instruction := _INSTRUCTION.match(line):
            lines.append(instruction[1])
    return lines


def loops(lines: list[str]) -> list[Loop]:
    """Return the loops that have no other loop inside."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    ranges = {(labels[m[1]], i) for i, line in enumerate(lines) if (m := _TARGET.search(line)) and labels[m[1]] <= i}
    inner = [(a, b) for a, b in ranges if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in ranges)]
    return [Loop(tuple(line for line in lines[a : b + 1] if not line.endswith(":"))) for a, b in sorted(inner)]


def operation(instruction: str) -> str:
    """Return an instruction's name, without predicate and operands."""
    return _PREDICATE.sub("", instruction).split()[0]


def is_idle(instruction: str) -> bool:
    """Return whether an instruction is issued but never does anything."""
    return instruction.startswith("@!PT ")


def fences(lines: list[str]) -> dict[str, bool]:
    """Return which fences a group's barrier has: around the arrival, while waiting, and before the gate opens."""
    code = [line for line in lines if not line.endswith(":")]
    names = [operation(line) for line in code]

    def near(place: int, step: int, word: str) -> bool:
        return any(name.startswith(word) for name in names[place + step : place + 6 * step : step])

    arrivals = [i for i, name in enumerate(names) if name.startswith(("ATOM", "RED"))]
    loads = [i for i, name in enumerate(names) if re.match(r"LDG?\.E\.STRONG", name)]
    polls = [i for i in loads if near(i, -1, "NANOSLEEP")]
    gates = [i for i, name in enumerate(names) if re.match(r"STG?\.E\.STRONG", name)]
    return {
        "before an arrival": bool(arrivals) and all(near(i, -1, "MEMBAR") for i in arrivals),
        "after an arrival": bool(arrivals) and all(near(i, 1, "CCTL.IVALL") for i in arrivals),
        "after waiting": bool(polls) and all(near(i, 1, "CCTL.IVALL") for i in polls),
        "before the gate opens": any(near(i, -1, "MEMBAR") for i in gates),
    }


def _bytes(name: str) -> int:
    found = _BYTES.search(name)
    return int(found[1] or found[2]) // 8 if found else 4
