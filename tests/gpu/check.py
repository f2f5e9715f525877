"""Run everything that needs a GPU, part by part, and record the results: ``python -m tests.gpu.check``.

It needs CuPy, Hypothesis, ml_dtypes and pytest; JAX, PyTorch and compute-sanitizer are used where they are installed.
PolyBN itself need not be installed. Parts run in the order of their worth, each in its own process, which may crash or
exceed its time. Findings are written at once to ``docs/results/cupy-<device>.json``; a later run of other parts adds to
that record. The table of support reads it, and the kit's reports ``check-<backend>-<device>.json``. The exit code is 1
if a part failed. With ``--budget``, parts that do not fit into the time that is left are named and not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.gpu.record import RESULTS, ROOT, Record, Result, facts, introduce, say


class Limits(NamedTuple):
    """The seconds that a part needs to be worth starting, and the most that it may take."""

    least: float
    most: float


PARTS = {
    "compile": Limits(20, 150),
    "stress": Limits(10, 60),
    "speed": Limits(30, 150),
    "lenet": Limits(10, 60),
    "torch-lenet": Limits(15, 60),
    "jax-lenet": Limits(20, 60),
    "jax-speed": Limits(20, 90),
    "kit": Limits(60, 240),
    "first": Limits(15, 60),
    "jax-kit": Limits(120, 400),
    "tests": Limits(120, 580),
    "sanitizers": Limits(120, 580),
}
"""The parts, the most important first."""
ENDING = 3.0
"""The seconds of a budget that are kept for the summary."""
GAUGES = "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu"


def main() -> int:
    """Run parts, each in its own process, so that one may fail without stopping the others."""
    options = _options()
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
    record = Record(options.out or RESULTS, about, PARTS)
    record.path.parent.mkdir(parents=True, exist_ok=True)
    if options.inside:
        find(record, options.inside, options.profile)
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    end = time.monotonic() + options.budget
    wanted = [part for part in options.parts if not (options.missing and record.parts()[part]["ok"])]
    left_out = list(wanted)
    try:
        for part in wanted:
            limit = min(PARTS[part].most, end - time.monotonic() - ENDING)
            if limit >= PARTS[part].least:
                left_out.remove(part)
                supervise(record, part, limit, options.profile)
    except KeyboardInterrupt:
        say("interrupted")
    found = record.parts()
    for part, result in found.items():
        say(f"{part}: {_verdict(result)}")
    if left_out:
        say(f"no time was left for: {', '.join(left_out)} (run them with --parts, or with --missing)")
    say(f"written to {record.path}")
    return 0 if all(found[part]["ok"] for part in wanted if part not in left_out) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="all by default")
    parser.add_argument("--missing", action="store_true", help="only parts that have not passed yet")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for all parts together")
    parser.add_argument("--profile", default="dev", choices=("dev", "ci", "nightly"), help="of the conformance kit")
    parser.add_argument("--out", type=Path, help="folder of the record; docs/results by default")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def supervise(record: Record, part: str, limit: float, profile: str) -> None:
    """Run one part in its own process, and record if it did not finish."""
    say(f"{part} ... (at most {limit:.0f} s)")
    start, before = time.monotonic(), gauges()
    record.keep(part, {"ok": False, "error": "did not come to its end"})
    command = [sys.executable, "-m", "tests.gpu.check", "--inside", part, "--profile", profile]
    ending = "interrupted"
    try:
        ending = run([*command, "--out", str(record.path.parent)], limit)
    finally:
        result = record.parts()[part]
        if ending:
            result |= {"ok": False, "error": f"{result.get('error', '')} ({ending})".strip()}
        result |= {"seconds": round(time.monotonic() - start, 1)}
        record.keep(part, result | ({"gauges": {"before": before, "after": gauges()}} if before else {}))
    say(f"{part}: {_verdict(result)}")


def _verdict(result: Result) -> str:
    if "absent" in result:
        return str(result["absent"])
    return "passed" if result["ok"] else f"FAILED: {result.get('error', 'see the record')}"


def run(command: list[str], limit: float) -> str:
    """Run a command and end it with all its children; return what went wrong, or an empty text."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return f"exit status {status}" if status else ""


def gauges() -> dict[str, str]:
    """Return the clocks, temperature and power of the device, if nvidia-smi can tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={GAUGES}", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    values = (run.stdout.splitlines() or [""])[0].split(", ")
    return dict(zip(GAUGES.split(","), values, strict=False)) if run.returncode == 0 else {}


def find(record: Record, part: str, profile: str) -> None:
    """Run one part in this process, and record each finding."""
    result: Result = {}
    try:
        for result in _sources(record, profile)[part]():
            # Until the part ends, the record says that it has not finished.
            record.keep(part, result | {"ok": False, "error": "did not come to its end"})
    except Exception as error:  # any failure goes into the record
        result |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        say(f"{part}: {result['error']}")
    record.keep(part, result)


def _sources(record: Record, profile: str) -> dict[str, Callable[[], Iterator[Result]]]:
    """Return the functions of the parts; each yields its findings so far, again and again."""
    from tests.gpu import epochs, first, parts, peers, speed, stress

    return {
        "compile": parts.compile_all,
        "stress": stress.stress,
        "speed": speed.batch_norm,
        "lenet": epochs.ours,
        "torch-lenet": epochs.of_torch,
        "jax-lenet": epochs.of_jax,
        "jax-speed": peers.of_jax,
        "kit": lambda: parts.kit("cupy", profile, record.report_path("cupy")),
        "first": first.calls,
        "jax-kit": lambda: parts.jax_kit(profile, record.report_path("jax")),
        "tests": parts.tests,
        "sanitizers": parts.sanitizers,
    }


if __name__ == "__main__":
    sys.exit(main())
