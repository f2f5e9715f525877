"""Compare the accuracy of all installed libraries, on inputs that show their differences.

Each adapter runs in a process of its own, since Keras has one backend per process. The errors are distances
from the exact rational result, in float32, with gamma 1 and beta 0.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polybn.conformance import oracle
from polybn.conformance.adapters import ADAPTERS, resolve
from polybn.conformance.adapters.backend import forms
from polybn.conformance.cases import Array, rows
from polybn.conformance.dialects import whole
from polybn.dispatch import backend, installed, why_not
from polybn.spec import DomainError

SHAPE = (64, 4, 28, 28)
EPS = 1e-5

Maker = Callable[[np.random.Generator], Array]

FAMILIES: dict[str, Maker] = {
    "N(0, 1)": lambda rng: rng.normal(size=SHAPE),
    "N(10, 1)": lambda rng: rng.normal(10, 1, SHAPE),
    "N(1e3, 1)": lambda rng: rng.normal(1e3, 1, SHAPE),
    "N(1e4, 1e-2)": lambda rng: rng.normal(1e4, 1e-2, SHAPE),
    "constant 1234.567": lambda _: np.full(SHAPE, 1234.567),
    "1e18 N(0, 1)": lambda rng: 1e18 * rng.normal(size=SHAPE),
}
LAYOUTS = {"(N, C, H, W)": 1, "(N, H, W, C)": -1}
PLACE = re.compile(r"(<!-- peers( compact)? -->\n).*?(<!-- /peers -->)", re.DOTALL)
"""The place of the table in a page."""


class Peer(NamedTuple):
    """One adapter's row: its results, or why it could not run."""

    adapter: str
    name: str = ""
    version: str = ""
    errors: dict[str, dict[str, float | str]] = {}  # noqa: RUF012 (never written to)
    """The largest ``|error of y|`` by layout and family; an error message where the call failed."""
    single_value: str = ""
    """What was seen of training on one value per channel."""
    empty: str = ""
    """What training on no values did to the running statistics."""
    whole_range: str = ""
    """How many channels were wrong, of how many, on sizes from subnormal to largest numbers."""
    why_not: str | None = None


def everyone() -> list[str]:
    """Return the names of all adapters: PolyBN's backends in each form that they declare, then other libraries."""
    ours = []
    for name in installed():
        there = forms(backend(name)) if why_not(name) is None else ()
        ours += [f"polybn-{name}", *(f"polybn-{name}-{form}" for form in there)]
    return [*ours, *ADAPTERS]


LIMIT = 600.0
"""Seconds that an adapter has: Dask does not finish in this time where blocks hold a few values."""


def run(names: Sequence[str], limit: float = LIMIT) -> Iterator[Peer]:
    """Measure adapters by name, each in a child process with a time limit in seconds."""
    for name in names:
        try:
            child = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "polybn.conformance.peers", name],
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
                env=os.environ | {"PYTHONHASHSEED": "0"},
            )
        except subprocess.TimeoutExpired:
            yield Peer(name, why_not=f"it took longer than {limit:g} s, see --limit")
            continue
        lines = child.stdout.splitlines()
        if child.returncode == 0 and lines:
            yield Peer(**json.loads(lines[-1]))
        else:
            last = (child.stderr.strip().splitlines() or ["no output"])[-1]
            yield Peer(name, why_not=f"exit status {child.returncode}: {last}")


def measure(name: str) -> Peer:
    """Measure one adapter in this process."""
    from polybn.conformance.conventions import detect_one
    from polybn.conformance.properties.whole_range import tally

    try:
        adapter = resolve(name)
        info = whole(adapter.info())
    except Exception as error:  # the library, or what it needs, is not here
        return Peer(name, why_not=f"{type(error).__name__}: {error}")
    errors = {
        layout: {family: _largest_error(adapter, make, axis) for family, make in FAMILIES.items()}
        for layout, axis in LAYOUTS.items()
        if info.axes in ("any", "second" if axis == 1 else "last")
    }
    single, empty = (detect_one(adapter, info, what).seen for what in ("single_value", "empty"))
    wrong, judged = tally(adapter, info)
    return Peer(name, info.name, info.version, errors, single, empty, f"{wrong:,} of {judged:,}")


def to_json(peers: Sequence[Peer]) -> str:
    """Return the record of a run: date, shape, and every row."""
    facts: dict[str, Any] = {"date": date.today().isoformat(), "shape": SHAPE, "dtype": "float32", "eps": EPS}
    return json.dumps(facts | {"peers": [peer._asdict() for peer in peers]}, indent=2) + "\n"


def to_markdown(record: dict[str, Any], *, compact: bool = False) -> str:
    """Write the table of a record as Markdown: a row for each adapter and layout, then the adapters that could not run.

    ``compact`` leaves out channels last, degenerate batches, further forms of PolyBN's backends, such as
    ``polybn-jax-jit``, and adapters that could not run.
    """
    head = ["float32", *FAMILIES] if compact else ["float32", "channels", *FAMILIES, "m = 1", "N = 0"]
    ranged = not compact and any(peer.get("whole_range") for peer in record["peers"])
    head += ["wrong from end to end"] if ranged else []
    head.append("version")
    lines = [_line(head), _line(["---"] * len(head))]
    for peer in record["peers"]:
        if compact and re.match("polybn-.*-", peer["adapter"]):
            continue
        for layout, errors in peer["errors"].items():
            cells = [_cell(errors[family]) for family in FAMILIES]
            who, second = short(peer["name"]), layout == "(N, C, H, W)"
            version, _, _ = peer["version"].partition(", device ")
            if not compact:
                more = [peer.get("whole_range", "")] if ranged else []
                place = "second" if second else "last"
                lines.append(_line([who, place, *cells, peer["single_value"], peer["empty"], *more, version]))
            elif second:
                lines.append(_line([who, *cells, version]))
    shape = "x".join(map(str, record["shape"]))
    note = f"Largest error of y in training, {shape} values, eps {record['eps']:g}; recorded {record['date']}."
    absent = [f"{peer['adapter']} ({peer['why_not']})" for peer in record["peers"] if peer["why_not"] and not compact]
    return "\n".join(["", *lines, "", note, *([f"Could not run: {'; '.join(absent)}."] if absent else []), ""])


def fill(text: str, record: dict[str, Any]) -> str:
    """Put the table between ``<!-- peers -->`` (or ``<!-- peers compact -->``) and ``<!-- /peers -->``."""
    return PLACE.sub(lambda m: m[1] + to_markdown(record, compact=bool(m[2])) + "\n" + m[3], text)


def check_page(path: Path, text: str) -> None:
    """Refuse a page that has no place for the table, before the hours of work."""
    if not PLACE.search(text):
        raise DomainError(
            f"polybn check: --into must name a page with <!-- peers --> and, below it, <!-- /peers -->; got {path}"
        )


def short(name: str) -> str:
    """Shorten an adapter's name for tables and pictures, in which it stands beside numbers."""
    for long, brief in {
        ", fast variance": "", "statistics after backward": "Gluon", "ONNX reference evaluator": "ONNX reference",
        "PolyBN on ": "PolyBN, ", ", in its": "", ", in jax.jit": ".jit",
    }.items():  # fmt: skip
        name = name.replace(long, brief)
    return name


def _largest_error(adapter: Any, make: Maker, axis: int) -> float | str:
    x = make(np.random.default_rng(0)).astype(np.float32)
    exact = rows(x, 1)
    x = np.ascontiguousarray(np.moveaxis(x, 1, axis))
    one, zero = (np.full(SHAPE[1], value, np.float32) for value in (1, 0))
    try:
        with np.errstate(all="ignore"):
            y, _, _ = adapter.train(x, one, zero, zero.copy(), one.copy(), momentum=0.5, eps=EPS, axis=axis)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    worst = 0.0
    for values, got in zip(exact, rows(y, axis), strict=True):
        if not np.isfinite(got).all():
            return float("nan")
        channel = oracle.row(values.tolist())
        statistics = oracle.batch_statistics(channel, Fraction(EPS))
        right = oracle.output(channel, statistics, Fraction(1), Fraction(0))
        worst = max(worst, *right.distances(got.tolist()))
    return worst


def _cell(error: float | str) -> str:
    if isinstance(error, str):
        return "error"
    return "0" if error == 0 else f"{error:.1e}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])._asdict()))  # noqa: T201 (the parent process reads it)
