"""Install a wheel in an environment that holds nothing else, and try what README says.

python -m tests.support.walk_wheel dist/polybn-0.1.0-cp311-abi3-linux_x86_64.whl
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A command of polybn, and what a user then sees."""

    command: str
    words: str
    code: int = 0


BARE = (
    Step("--help", "Begin with polybn train"),
    Step("info", "sees cpu (--device)"),
    Step("train --data sample --epochs 1 --out a", "Saved in a"),
    Step("train --resume a --epochs 2", "epoch 2, loss"),
    Step("train --data sample --epochs 1 --norm none --out b", "Saved in b"),
    Step("predict a --data sample --out c.png", "pictures need matplotlib", 2),
    Step("train --device gpu", "device must be one that NumPy sees here: cpu; got 'gpu'", 2),
    Step("train --backend jax", "jax", 2),
    Step("check --backend numpy --only P1", "this command needs", 2),
    Step("dialects", "pytorch"),
)
WITH_EXTRAS = (
    Step("compare a b --out c.png", "Curves drawn in c.png"),
    Step("check --backend numpy --only P1", "P1"),
    Step("agree numpy numpy-plain --cases 3", "numpy-plain"),
)


def walk(wheel: Path, folder: Path) -> list[str]:
    """Return a sentence for each step that showed something else."""
    venv.create(folder / "venv", with_pip=True)
    python, polybn = (folder / "venv" / "bin" / name for name in ("python", "polybn"))
    flaws = []
    for extras, steps in (("", BARE), ("[conformance,plot]", WITH_EXTRAS)):
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel.resolve()}{extras}"], check=True)
        for step in steps:
            command = [str(polybn), *step.command.split()]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            said = " ".join((done.stdout + done.stderr).split())
            if done.returncode != step.code or step.words not in said:
                wanted = f"wanted exit code {step.code} and {step.words!r}"
                flaws.append(f"polybn {step.command}: {wanted}; got {done.returncode}\n{said}")
    return flaws


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = walk(Path(sys.argv[1]), Path(scratch))
    sys.exit("\n\n".join(found))
