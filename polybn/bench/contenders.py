"""Who is timed: every backend that runs here, in each of its forms, the installed peers, and a plain copy."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polybn import dispatch, functional
from polybn.bench import peers
from polybn.bench.tasks import BATCH, STEPS, Task
from polybn.lenet import networks
from polybn.lenet.program import compile
from polybn.spec import Backend

Call = Callable[[], object]


class Found(NamedTuple):
    """A contender that can run here."""

    name: str
    """Its name: of a backend, with ``+jit`` or ``+native`` or its variant after it, or of a peer."""
    version: str
    """Version and device, as it describes itself."""


def discover() -> list[Found]:
    """List the contenders, from a process of its own: finding out imports libraries, and these start threads.

    Returns
    -------
    list of Found
        The backends first, then the peers, then the copy.
    """
    command = [sys.executable, "-m", "polybn.bench.worker"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return [Found(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def found() -> list[Found]:
    """List the contenders, in this process."""
    rows = []
    for name in (name for name, reason in dispatch.backends().items() if reason is None):
        module = dispatch.backend(name)
        forms = ["jit"] * (module.traits.jit is not None) + ["native"] * module.traits.native_norm
        facts = ", ".join(f"{key} {value}" for key, value in module.describe().items())
        rows += [
            Found("+".join([name, *form]), facts) for form in ([], *([f] for f in [*forms, *module.traits.variants]))
        ]
    rows += [Found(name, version) for name in peers.PEERS if (version := peers.version(name)) is not None]
    return [*rows, Found("copy", f"numpy {np.__version__}")]


def maker(name: str) -> Callable[[Task], Call]:
    """Return what makes the calls of a contender, which imports no other one."""
    if name == "copy":
        return copy
    if name in peers.PEERS:
        return peers.make(name)
    backend, _, form = name.partition("+")
    module = dispatch.backend(backend)
    return lambda task: of_backend(module, form, task)


def data(task: Task) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Make x, gamma, beta, running mean and variance, and dy, of one seed."""
    random = np.random.default_rng(0)
    x, dy = (5 + 3 * random.standard_normal(task.shape, np.float32) for _ in range(2))
    if task.layout == "last":
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    if task.dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(task.dtype)
    wide = np.float64 if task.dtype == "float64" else np.float32
    return [x.astype(kind), *(np.full(task.shape[1], v, wide) for v in (1, 0, 5, 9))], dy.astype(kind)


def copy(task: Task) -> Call:
    """Copy x into an array that exists, in halves on two threads where it is large: what memory can do."""
    if task.kind == "multiply":
        a = np.ones(task.shape, np.float32)
        return lambda: a @ a
    if task.kind == "lenet" or task.memory == "out":
        raise NotImplementedError("a copy has no such form")
    (x, *_), _ = data(task)
    into = np.zeros_like(x)
    if x.nbytes < 1 << 20:
        return lambda: np.copyto(into, x)
    from concurrent.futures import ThreadPoolExecutor

    pool, middle = ThreadPoolExecutor(1), len(x) // 2

    def halves() -> None:
        other = pool.submit(np.copyto, into[middle:], x[middle:])
        np.copyto(into[:middle], x[:middle])
        other.result()

    return halves


def of_backend(module: Backend, form: str, task: Task) -> Call:
    """Make a call as users of the library do."""
    if task.kind == "lenet":
        return _lenet(module, form)
    if task.kind not in ("forward", "derivative", "inference") or form == "native":
        raise NotImplementedError("nothing of this kind to time")
    host, cotangent = data(task)
    arrays, dy = [module.asarray(a) for a in host], module.asarray(cotangent)
    if module.to_numpy(arrays[0]).dtype != host[0].dtype:
        raise NotImplementedError(f"no {task.dtype} here, as the library is installed")
    options: dict[str, Any] = {"axis": 1 if task.layout == "second" else len(task.shape) - 1}
    options["training"] = task.kind != "inference"
    out: dict[str, Any] = {}
    if task.memory == "out":
        if "out" not in module.traits.own & module.traits.own_of_pullback:
            raise NotImplementedError("it takes no out=")
        options["out"], out = module.asarray(host[0]), {"out": module.asarray(host[0])}

    def both(dy: Any, *arrays: Any) -> Any:
        result, pullback = functional.batch_norm_vjp(*arrays, **options)
        return result, pullback(dy, **out)

    def forward(*arrays: Any) -> Any:
        return functional.batch_norm(*arrays, **options)

    function, arguments = (both, [dy, *arrays]) if task.kind == "derivative" else (forward, arrays)
    if form == "jit":
        assert module.traits.jit is not None
        function = module.traits.jit(function)
    inside = module.traits.variants.get(form, contextlib.nullcontext)

    def call() -> Any:
        with inside():
            results = function(*arguments)
            _wait(module, results[1].x if task.kind == "derivative" else results.y, results)
        return results

    return call


def _wait(module: Backend, large: Any, results: Any) -> None:
    """Wait until a result is there: as its library waits, or by bringing a small one to the host."""
    for word in ("block_until_ready", "wait_to_read"):
        if hasattr(large, word):
            getattr(large, word)()
            return
    module.to_numpy(results[1].gamma if isinstance(results[0], tuple) else results.running_mean)


def _lenet(module: Backend, form: str) -> Call:
    if form not in ("", "native"):
        raise NotImplementedError("a network has one form")
    images, labels = lenet_data()
    network = networks.lenet("native" if form else "spec")
    program = compile(network, module, networks.initial_state(network, 0), batch_size=BATCH)
    placed, order = program.place(images, labels), np.arange(BATCH * STEPS)
    return lambda: [
        math.fsum(map(float, np.ravel(s[0]))) for s in program.train_epoch(placed, order, learning_rate=0.1)
    ]


def lenet_data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Make images and labels of one seed, a batch for each step."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH * STEPS, 1, 28, 28), dtype=np.uint8)
    return images, random.integers(0, 10, BATCH * STEPS, dtype=np.uint8)
