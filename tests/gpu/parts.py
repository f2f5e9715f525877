"""The parts of ``tests.gpu.check`` that pass or fail. Each yields its findings so far, again and again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

import numpy as np

import polybn
from docs._ext import records
from polybn import conformance
from polybn.lenet import networks
from polybn.lenet.program import compile
from tests.gpu.peers import jax_on_gpu
from tests.gpu.record import ROOT, Result, emulated, say
from tests.gpu.speed import dtype_of
from tests.test_cupy_emulated import CONTRACT

OWN = (
    "cupy_large",
    "cupy_program",
    "program",
    "cupy_layouts",
    "cupy_values",
    "cupy_plan",
    "cupy_binaries",
)
AT_ONCE = min(4, os.cpu_count() or 1)
MODULE_LIMIT, SANITIZER_LIMIT = 400, 190
"""The seconds that one test module, and one tool, may take."""
SANITIZERS = {"memcheck": "large", "racecheck": "small", "synccheck": "small"}
"""The tools, and the sizes of the tensors: some tools slow kernels down several hundred times."""
WARNINGS = ("-W", "default", "-W", "error:The grid size will be reduced")
"""Only one warning is an error, CuPy's that blocks would wait in vain; others depend on the installed versions."""
SMALL = (((7, 3, 5), 1), ((16, 6, 6, 48), -1), ((3, 2, 5003), 1), ((4, 8, 1024), 1))
LARGE = (((64, 20, 20, 48), -1), ((3, 2, 200_003), 1), ((1, 1, 8_000_000), 1))
"""Shapes and channel axes. A large device needs rounds only for the last, a channel of more than 25 MB."""
QUIET = {"POLYBN_REQUIRE": "cupy", "POLYBN_PROFILE": "dev", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
"""Settings for tests. Without JAX_PLATFORMS, an installed JAX would take most of the GPU's memory in conftest.py."""


def compile_all() -> Iterator[Result]:
    """Compile every kernel, for later parts too, and record what the driver says of each."""
    import cupy

    from polybn_cupy import binaries, launch, sources

    found: Result = {"ok": True, "compiled": 0, "kernels": {}}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = {pool.submit(binaries.binary, *instance): instance for instance in sources.instances()}
        for future in as_completed(waiting):
            future.result()
            found["compiled"] += 1
            say(f"compile {found['compiled']}/{len(waiting)} {waiting[future][1]}")
            yield found
    attributes = {"registers": "NUM_REGS", "stack_bytes": "LOCAL_SIZE_BYTES", "static_shared": "SHARED_SIZE_BYTES"}
    driver = cupy.cuda.driver
    for file, expression in sources.instances():
        loaded = launch.kernel(file, expression)
        found["kernels"][expression] = {
            name: driver.funcGetAttribute(getattr(driver, f"CU_FUNC_ATTRIBUTE_{key}"), loaded.function.ptr)
            for name, key in attributes.items()
        } | {"resident_at_70_kB": loaded.resident(70 << 10)}
    found["device"] = launch.device()._asdict()
    yield found


def jax_kit(profile: str, target: Path) -> Iterator[Result]:
    """Run the conformance kit on JAX's arrays on the GPU."""
    if reason := jax_on_gpu():
        yield {"ok": True, "absent": reason}
    else:
        yield from kit("jax", profile, target)


def kit(backend: str, profile: str, target: Path) -> Iterator[Result]:
    """Run the conformance kit on a backend, and write its report."""
    started = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        say(f"kit {done}/{total}, {time.monotonic() - started:.0f} s: {what}")

    report = conformance.check(conformance.resolve(f"polybn-{backend}"), profile=profile, seed=0, progress=progress)
    target.write_text(json.dumps(records.trim(json.loads(report.to_json())), indent=1) + "\n", encoding="utf-8")
    grades = {grade.dtype: grade.letter for grade in report.grades}
    yield {
        "ok": report.ok and set(grades.values()) <= {"K", "S"},
        "profile": profile,
        "grades": grades,
        "passed": sum(result.status == "pass" for result in report.results),
        "failures": [f"{result.id}: {result.words}" for result in report.failures],
    }


def tests() -> Iterator[Result]:
    """Run the tests of the contract, of networks and of CuPy: a few modules at a time, each in its own process."""
    found: Result = {"ok": True, "modules": {}}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(_module, name): name for name in (*OWN, *chain.from_iterable(CONTRACT))}
        for future in as_completed(waiting):
            passed, lines = future.result()
            found["modules"][waiting[future]] = lines
            found["ok"] &= passed
            say(f"tests {len(found['modules'])}/{len(waiting)} {waiting[future]}: {lines[-1]}")
            yield found


def _module(name: str) -> tuple[bool, list[str]]:
    """Run one module; return whether it passed, and the lines of its failures and its last line."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *WARNINGS, "-k", "cupy", f"tests/test_{name}.py")
    try:
        run = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=os.environ | QUIET,
            timeout=MODULE_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, [f"stopped after {MODULE_LIMIT} s"]
    lines = run.stdout.strip().splitlines() or [run.stderr[-500:]]
    failures = [line for line in lines[:-1] if line.startswith(("FAILED", "ERROR", "E  "))]
    some = re.search(r"(\d+) passed", lines[-1]) is not None  # a module that ran no test has not passed
    return run.returncode == 0 and some, [*failures[:40], lines[-1]]


def sanitizers() -> Iterator[Result]:
    """Call every kernel under compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer") or _found("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        yield {"ok": True, "absent": "compute-sanitizer is not installed"}
        return
    found: Result = {"ok": True}
    for name, sizes in SANITIZERS.items():
        say(f"sanitizers {name} (at most {SANITIZER_LIMIT} s)")
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu.parts", sizes]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, env=os.environ | QUIET, timeout=SANITIZER_LIMIT,
                check=False,
            )  # fmt: skip
            said = [line for line in run.stdout.splitlines() if line.startswith("=====")]
            found[name] = {"ok": run.returncode == 0, "said": [*said[:30], *said[-1:], *run.stderr.splitlines()[-5:]]}
        except subprocess.TimeoutExpired:
            found[name] = {"ok": False, "said": [f"stopped after {SANITIZER_LIMIT} s"]}
        say(f"sanitizers {name}: {found[name]['said'][-1:]}")
        found["ok"] &= found[name]["ok"]
        yield found


def _found(path: str) -> str | None:
    return path if Path(path).exists() else None


def exercise(*, large: bool) -> None:
    """Call every kernel in every dtype: alone, in groups, NCHW and NHWC, with and without where; if large, in rounds.

    Large tensors are of float32 only.
    """
    module = polybn.backend("cupy")
    random = np.random.default_rng(0)
    for dtype in conformance.resolve("polybn-cupy").info().dtypes:
        wide = "float64" if dtype == "float64" else "float32"
        for shape, axis in (*SMALL, *LARGE) if large and dtype == "float32" and not emulated() else SMALL:
            x, dy = (module.asarray(random.normal(size=shape).astype(dtype_of(dtype))) for _ in range(2))
            vectors = [module.asarray((random.random(shape[axis]) + 0.5).astype(wide)) for _ in range(4)]
            for where in (None, random.random(shape) < 0.7):
                mask = None if where is None else module.asarray(where)
                for training in (True, False):
                    _, pullback = polybn.batch_norm_vjp(x, *vectors, training=training, axis=axis, where=mask)
                    gradients, second = pullback.vjp(dy)
                    second(gradients)
                part = polybn.moments(x, axis=axis, where=mask)
                module.to_numpy(polybn.merge_moments(part, part).mean)
            module.to_numpy(polybn.fold(*vectors).scale)
    network = networks.lenet()
    program = compile(network, module, networks.initial_state(network, 0), batch_size=32)
    images, labels = random.integers(0, 256, (80, 1, 28, 28), np.uint8), random.integers(0, 10, 80, np.uint8)
    data = program.place(images, labels)
    list(program.train_epoch(data, np.arange(80), learning_rate=0.1))
    program.logits(data)


if __name__ == "__main__":
    exercise(large=sys.argv[1:] == ["large"])
