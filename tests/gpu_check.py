"""Run everything that wants a GPU, and write down what came of it: ``python -m tests.gpu_check``.

It needs CuPy, Hypothesis, ml_dtypes and pytest; PyTorch and compute-sanitizer are used where they are installed. The
record is ``docs/results/cupy-<device>.json``, beside the kit's own, ``check-cupy-<device>.json``, which the table of
support reads; the exit code is 1 if anything failed or was left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import polybn
from polybn import bench, conformance
from tests.test_cupy_emulated import CONTRACT

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PARTS = ("kit", "tests", "sanitizers", "speed", "bench")
OWN = ("cupy_layouts", "cupy_values", "cupy_program")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SHAPES = ((256, 64, 56, 56), (256, 6, 24, 24), (256, 16, 8, 8), (256, 120))
TINY = ((5, 3, 7, 2), (7, 3))
"""For the emulation, whose times mean nothing."""
REPLAYS = 50


def say(words: str) -> None:
    """Tell at once how far it is."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run all parts, each of which may fail without stopping the others, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="dev", choices=("dev", "ci", "nightly"), help="of the conformance kit")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--exercise", action="store_true", help="only call every kernel once: for the sanitizers")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="the record says which were left out")
    options = parser.parse_args()
    if options.exercise:
        exercise()
        return 0
    reason = polybn.dispatch.why_not("cupy")
    if reason is not None:
        say(f"polybn: the CuPy backend cannot run here: {reason}")
        return 1
    module = polybn.backend("cupy")
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "polybn": polybn.__version__,
        "python": platform.python_version(),
        **module.describe(),
    }
    label = re.sub(r"[^a-z0-9]+", "-", record["device"].partition("(")[2].rstrip(")").lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kit": lambda: kit(options.profile, options.out / f"check-cupy-{label}.json"),
        "tests": tests,
        "sanitizers": sanitizers,
        "speed": speed,
        "bench": against_others,
    }
    for name, part in parts.items():
        if name not in options.parts:
            record[name] = {"ok": False, "absent": "left out by --parts"}
            continue
        say(f"{name} ...")
        try:
            record[name] = part()
        except Exception as error:  # written down, not passed over: ok is False then
            record[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        say(json.dumps(record[name], indent=1))
    ok = all(record[name]["ok"] for name in parts)
    target = options.out / f"cupy-{label}.json"
    target.write_text(json.dumps({"ok": ok, **record}, indent=1) + "\n", encoding="utf-8")
    say(f"{'passed' if ok else 'FAILED'}; written to {target}")
    return 0 if ok else 1


def kit(profile: str, target: Path) -> dict[str, Any]:
    """Hold the backend to the conformance kit, and write its report."""
    report = conformance.check(conformance.resolve("polybn-cupy"), profile=profile, seed=0)
    target.write_text(report.to_json(), encoding="utf-8")
    grades = {grade.dtype: grade.letter for grade in report.grades}
    return {
        "ok": report.ok and set(grades.values()) <= {"K", "S"},
        "profile": profile,
        "grades": grades,
        "passed": sum(result.status == "pass" for result in report.results),
        "failures": [f"{result.id}: {result.words}" for result in report.failures],
    }


def tests() -> dict[str, Any]:
    """Run the tests of the contract, of networks, and CuPy's own."""
    modules = (*CONTRACT, *OWN, "program")
    files = [f"tests/test_{name}.py" for name in modules]
    finished = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cupy", *files)
    lines = finished.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"ok": finished.returncode == 0, "summary": lines[-1] if lines else finished.stderr[-500:], "failed": failed}


def sanitizers() -> dict[str, Any]:
    """Call every kernel under compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"ok": True, "absent": "compute-sanitizer is not installed"}
    found: dict[str, Any] = {"ok": True}
    for name in SANITIZERS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu_check", "--exercise"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
        found[name] = finished.stdout.strip().splitlines()[-1:] or finished.stderr[-500:]
        found["ok"] &= finished.returncode == 0
    return found


def exercise() -> None:
    """Call every kernel in every dtype: alone, in groups, in rounds, NCHW and NHWC, with and without where."""
    module = polybn.backend("cupy")
    random = np.random.default_rng(0)
    for dtype in ("float16", "float32", "float64"):
        wide = "float64" if dtype == "float64" else "float32"
        for shape, axis in (((7, 3, 5), 1), ((64, 20, 20, 48), -1), ((3, 2, 200_003), 1)):
            x, dy = (random.normal(size=shape).astype(dtype) for _ in range(2))
            vectors = [(random.random(shape[axis]) + 0.5).astype(wide) for _ in range(4)]
            for where in (None, random.random(shape) < 0.7):
                mask = None if where is None else module.asarray(where)
                for training in (True, False):
                    arrays = [module.asarray(a) for a in (x, *vectors)]
                    _, pullback = module.batch_norm_vjp(*arrays, training=training, axis=axis, where=mask)
                    gradients, second = pullback.vjp(module.asarray(dy))  # type: ignore[attr-defined]
                    second(gradients)
                part = module.moments(arrays[0], axis=axis, where=mask)
                module.to_numpy(module.merge_moments(part, part).mean)
        module.to_numpy(module.fold(*(module.asarray(v) for v in vectors)).scale)


def speed() -> dict[str, Any]:
    """Time graph replays of batch norm, of a device copy, and of PyTorch's batch norm where that is installed."""
    import cupy

    found: dict[str, Any] = {"ok": True, "unit": "microseconds, median of replays"}
    if importlib.util.find_spec("torch") is None:
        found["absent"] = "PyTorch is not installed"
    for shape in SHAPES if "emulated" not in cupy.__version__ else TINY:
        for dtype in ("float32", "float16"):
            for layout in ("NCHW", "NHWC") if len(shape) == 4 else ("NC",):
                found[f"{'x'.join(map(str, shape))} {dtype} {layout}"] = _speed(cupy, shape, dtype, layout)
    return found


def _speed(cupy: Any, shape: tuple[int, ...], dtype: str, layout: str) -> dict[str, float]:
    module = polybn.backend("cupy")
    x, dy = (cupy.empty(shape, dtype) for _ in range(2))
    if layout == "NHWC":
        x, dy = (cupy.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, dy))
    for seed, array in enumerate((x, dy)):
        array[...] = module.asarray(np.random.default_rng(seed).normal(1, 1, shape[1:]).astype(dtype))
    target = cupy.empty_like(x)
    vectors = [module.asarray(np.full(shape[1], value, np.float32)) for value in (1.5, 0.5, 0.25, 2.0)]
    _, pullback = module.batch_norm_vjp(x, *vectors, training=True)
    times = {
        "copy": _replay(cupy, lambda: cupy.copyto(target, x)),
        "forward": _replay(cupy, lambda: module.batch_norm(x, *vectors, training=True)),
        "backward": _replay(cupy, lambda: pullback(dy)),
        "inference": _replay(cupy, lambda: module.batch_norm(x, *vectors, training=False)),
    }
    return times | _torch_speed(shape, dtype, layout)


def _replay(cupy: Any, call: Callable[[], object]) -> float:
    """Return the median time of a graph replay of one call."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        call()  # compiles, and makes what the stream keeps
        stream.begin_capture()
        kept = call()
        graph = stream.end_capture()
        events = [[cupy.cuda.Event() for _ in range(2)] for _ in range(REPLAYS)]
        for start, stop in events:
            start.record(stream)
            graph.launch(stream)
            stop.record(stream)
        stream.synchronize()
        del kept
    return float(np.median([cupy.cuda.get_elapsed_time(*pair) for pair in events[5:]])) * 1e3


def _torch_speed(shape: tuple[int, ...], dtype: str, layout: str) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    x = torch.randn(shape, dtype=getattr(torch, dtype), device="cuda")
    if layout == "NHWC":
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var, gamma, beta = (torch.full((shape[1],), v, device="cuda") for v in (0.25, 2.0, 1.5, 0.5))
    times = {}
    for name, training in (("PyTorch forward", True), ("PyTorch inference", False)):

        def call(training: bool = training) -> object:
            return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, training, 0.1, 1e-5)

        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPLAYS)]
        for start, stop in events:
            start.record()
            graph.replay()
            stop.record()
        torch.cuda.synchronize()
        times[name] = float(np.median([start.elapsed_time(stop) for start, stop in events[5:]])) * 1e3
    return times


def against_others() -> dict[str, Any]:
    """Run ``polybn bench``."""
    timings = [timing._asdict() for timing in bench.run("cupy", rounds=5)]
    return {"ok": True, "timings": timings}


def _python(*command: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=root, check=False)


if __name__ == "__main__":
    sys.exit(main())
