"""The contenders: every backend that runs here, in each of its forms, the installed peers, and a plain copy."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from polybn import dispatch, functional
from polybn.bench import data, peers
from polybn.bench.tasks import BATCH, STEPS, Task
from polybn.lenet import networks
from polybn.lenet.program import compile
from polybn.spec import Backend

Call = Callable[[], object]


class Found(NamedTuple):
    """A contender that can run here."""

    name: str
    """The name of a peer or of a backend; a backend's form follows it, such as ``+jit``, ``+native`` or ``+out``."""
    version: str
    """The version and the device that the contender reports."""


def discover() -> list[Found]:
    """List the contenders from a child process, because finding them imports libraries that start threads."""
    command = [sys.executable, "-m", "polybn.bench.worker", str(os.getpid())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return [Found(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def found() -> list[Found]:
    """List the contenders in this process: backends, peers, and the copy."""
    rows = []
    for name in (name for name, reason in dispatch.backends().items() if reason is None):
        module = dispatch.backend(name)
        traits, facts = module.traits, _facts(module)
        forms = {"jit": traits.jit, "native": traits.native_norm, "out": "out" in traits.own & traits.own_of_pullback}
        rows += [Found(name, facts)]
        rows += [Found(f"{name}+{form}", facts) for form in forms if forms[form]]
        rows += [Found(f"{name}+{form}", _facts(module, scope)) for form, scope in traits.variants.items()]
    rows += [Found(name, version) for name in peers.PEERS if (version := peers.version(name)) is not None]
    return [*rows, Found("copy", f"numpy {np.__version__}")]


def _facts(module: Backend, scope: Callable[[], AbstractContextManager[Any]] = nullcontext) -> str:
    """Return what a backend says of itself, within a variant's scope, where it may run on something else."""
    with scope():
        return ", ".join(f"{key} {value}" for key, value in module.describe().items())


def fastest(names: Sequence[str]) -> list[str]:
    """List the form of each backend that users choose for speed: the compiled one, else the plain one."""
    compiled = [name for name in names if name.endswith("+jit")]
    plain = [name for name in names if "+" not in name and name != "copy" and name not in peers.PEERS]
    return [*compiled, *(name for name in plain if f"{name}+jit" not in compiled)]


def maker(name: str) -> Callable[[Task], Call]:
    """Return the function that makes a contender's calls; it imports no other contender."""
    if name == "copy":
        return copy
    if name in peers.PEERS:
        return peers.make(name)
    backend, _, form = name.partition("+")
    module = dispatch.backend(backend)
    return lambda task: of_backend(module, form, task)


def copy(task: Task) -> Call:
    """Copy x into another array, on two threads if it is large, to measure the speed of memory."""
    if task.kind == "lenet":
        raise NotImplementedError("a copy has no such form")
    (x, *_), _ = data.arrays(task)
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
    """Make a call as the library's users would."""
    if task.kind == "lenet":
        return _lenet(module, form)
    if form == "native":
        raise NotImplementedError("nothing of this kind to time")
    host, cotangent = data.arrays(task)
    arrays, dy = [module.asarray(a) for a in host], module.asarray(cotangent)
    if module.to_numpy(arrays[0]).dtype != host[0].dtype:
        raise NotImplementedError(f"no {task.dtype} here, as the library is installed")
    options: dict[str, Any] = {"axis": 1 if task.layout == "second" else len(task.shape) - 1}
    options["training"] = task.kind != "inference"
    out: dict[str, Any] = {}
    if form == "out":
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
    inside = module.traits.variants.get(form, nullcontext)

    def call() -> Any:
        with inside():
            results = function(*arguments)
            _wait(module, results[1].x if task.kind == "derivative" else results.y, results)
        return results

    return call


def _wait(module: Backend, large: Any, results: Any) -> None:
    """Wait until results are computed: by the library's own method, or by copying a small result to the host."""
    for word in ("block_until_ready", "wait_to_read"):
        if hasattr(large, word):
            getattr(large, word)()
            return
    module.to_numpy(results[1].gamma if isinstance(results[0], tuple) else results.running_mean)


def _lenet(module: Backend, form: str) -> Call:
    if form not in ("native", "jit" if module.traits.jit else ""):
        raise NotImplementedError("a network has one form, which is compiled where it can be")
    network = networks.lenet("native" if form == "native" else "spec")
    program = compile(network, module, networks.initial_state(network, 0), batch_size=BATCH)
    placed, order = program.place(*data.images()), np.arange(BATCH * STEPS)
    return lambda: [
        math.fsum(map(float, np.ravel(s[0]))) for s in program.train_epoch(placed, order, learning_rate=0.1)
    ]
