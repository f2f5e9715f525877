"""Sends one wave through every batch norm that is installed, and prints how far off each one is.

The wave has an amplitude of 0.05 around 10,000, so float32 still holds it in steps of 0.001. Each library runs in a
process of its own, through the adapters of :mod:`polybn.conformance`.

    python docs/examples/disagreement.py --json waves.json

also writes the waves; docs/results/disagreement.json was made so where all of these libraries were installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybn.conformance import oracle
from polybn.conformance.adapters import ADAPTERS, resolve

EPS = 1e-5


def wave() -> NDArray[np.float32]:
    """Return one channel of 96 values, shape (1, 1, 8, 12)."""
    return (10_000 + 0.05 * np.sin(2 * np.pi * np.arange(96) / 48)).astype(np.float32).reshape(1, 1, 8, 12)


def exact() -> oracle.ExactRow:
    """Return the batch norm of the wave in rational arithmetic."""
    channel = oracle.row(wave().ravel().tolist())
    statistics = oracle.batch_statistics(channel, Fraction(EPS))
    return oracle.output(channel, statistics, Fraction(1), Fraction(0))


def measure(name: str) -> dict[str, Any]:
    """Run one adapter in this process; return its y and its largest error."""
    adapter = resolve(name)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    y, _, _ = adapter.train(wave(), one, zero, zero.copy(), one.copy(), momentum=0.5, eps=EPS, axis=1)
    values = y.ravel().tolist()
    error = max(exact().distances(values)) if np.isfinite(y).all() else "nan"
    info = adapter.info()
    return {"adapter": name, "name": info.name, "version": info.version, "error": error, "y": list(map(_plain, values))}


def run(name: str) -> dict[str, Any]:
    """Run one adapter in a child process; return its result, or why it has none."""
    command = [sys.executable, "-W", "ignore", __file__, name]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode == 0:
        found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        return found
    why_not = (child.stderr.strip().splitlines() or ["no output"])[-1]
    return {"adapter": name, "name": name, "version": "", "error": "nan", "y": [], "why_not": why_not}


def _plain(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def main() -> None:
    """Run every adapter, or in a child process the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", nargs="?", help="run only this one, and print its wave as JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the waves to this file")
    options = parser.parse_args()
    if options.adapter:
        print(json.dumps(measure(options.adapter)))  # noqa: T201
        return
    libraries = []
    for name in (name for name in ADAPTERS if not name.endswith("channels-last")):
        libraries.append(run(name))
        found = libraries[-1]
        print(f"{name:30} {found.get('why_not') or 'largest error ' + str(found['error'])}")  # noqa: T201
    if options.json:
        facts = {"date": date.today().isoformat(), "eps": EPS, "exact": exact().floats()}
        options.json.write_text(json.dumps(facts | {"libraries": libraries}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
