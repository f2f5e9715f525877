"""Times of other libraries' batch norm on the same GPU: PyTorch's own kernels and cuDNN's, and PolyBN on JAX."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import polybn
from tests.gpu.record import Result, emulated, say

REPLAYS, WARM = 40, 3
SECONDS = 0.5
"""The time for which a function of JAX is called again and again."""


def torch_on_gpu() -> str | None:
    """Return why PyTorch cannot be timed here, or None if it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def torch_versions() -> Result:
    """Return the versions that PyTorch's times depend on, or why there are none."""
    if reason := torch_on_gpu():
        return {"absent": reason}
    import torch

    return {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}


def of_torch(shape: tuple[int, ...], dtype: str, layout: str) -> Iterator[tuple[str, Result]]:
    """Time ``torch.nn.functional.batch_norm`` as its users call it, and without cuDNN; record a failure."""
    if torch_on_gpu():
        return
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for label, cudnn in (("PyTorch", True), ("PyTorch without cuDNN", False)):
        # Derivatives run on the stream of their forward pass, which must be the captured one.
        with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=cudnn):
            for task, call in _torch_calls(shape, dtype, layout):
                try:
                    microseconds = torch_replay(stream, call, 4 if np.prod(shape) > 1 << 22 else 20)
                    yield f"{label} {task}", {"us": round(microseconds, 2)}
                except RuntimeError as error:
                    yield f"{label} {task}", {"error": str(error)[:300]}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def _torch_calls(shape: tuple[int, ...], dtype: str, layout: str) -> Iterator[tuple[str, Callable[[], object]]]:
    import torch

    x, dy = (torch.randn(shape, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    if layout == "NHWC":
        x, dy = (a.contiguous(memory_format=torch.channels_last) for a in (x, dy))
    mean, var, gamma, beta = (torch.full((shape[1],), v, device="cuda") for v in (0.25, 2.0, 1.5, 0.5))
    leaves = [a.detach().clone().requires_grad_() for a in (x, gamma, beta)]

    def forward(training: bool, x: Any, gamma: Any, beta: Any) -> Any:
        return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, training, 0.1, 1e-5)

    y = forward(True, *leaves)
    yield "forward", lambda: forward(True, x, gamma, beta)
    yield "backward", lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)
    yield "inference", lambda: forward(False, x, gamma, beta)


def torch_replay(stream: Any, call: Callable[[], object], repeats: int) -> float:
    """Return the median time of one of several calls in a graph that is replayed, in microseconds."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for _ in range(repeats)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(WARM + REPLAYS)]
    for start, stop in events:
        start.record(stream)
        graph.replay()
        stop.record(stream)
    torch.cuda.synchronize()
    del kept
    return float(np.median([start.elapsed_time(stop) for start, stop in events[WARM:]])) * 1e3 / repeats


def jax_on_gpu() -> str | None:
    """Return why JAX cannot be timed here, or None if it can; the emulation stands for a GPU, with JAX on the CPU.

    JAX takes memory as it needs it, because CuPy and JAX may share the device, and holds 64 bits.
    """
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_X64": "1"}
    if importlib.util.find_spec("jax") is None:
        return "JAX is not installed"
    import jax

    return None if jax.default_backend() == "gpu" or emulated() else f"JAX sees no GPU but {jax.default_backend()}"


def of_jax() -> Iterator[Result]:
    """Time PolyBN on JAX, in ``jax.jit``, at the shapes of the other backends."""
    if reason := jax_on_gpu():
        yield {"ok": True, "absent": reason}
        return
    from tests.gpu.speed import problems

    found: Result = {"ok": True, "unit": "us: calls in a row, per call", **polybn.backend("jax").describe()}
    for problem in problems():
        if problem.layout == "NHWC":
            continue  # the layout of an array is XLA's to choose
        found[problem.label] = {task: {"us": round(us, 2)} for task, us in _jax_times(problem.shape, problem.dtype)}
        say(f"jax-speed {problem.label}: {found[problem.label]}")
        yield found


def _jax_times(shape: tuple[int, ...], dtype: str) -> Iterator[tuple[str, float]]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 2)
    x, dy = (jax.random.normal(key, shape, jnp.float32).astype(dtype) for key in keys)
    vectors = [jnp.full(shape[1], value, jnp.float32) for value in (1.5, 0.5, 0.25, 2.0)]

    def normalize(x: Any, *vectors: Any, training: bool) -> Any:
        return polybn.batch_norm(x, *vectors, training=training)

    y_of = jax.jit(lambda x, *vectors: normalize(x, *vectors, training=True))
    _, pullback = jax.vjp(lambda x, *pair: normalize(x, *pair, *vectors[2:], training=True).y, x, *vectors[:2])
    back, infer = jax.jit(lambda pullback, dy: pullback(dy)), jax.jit(lambda *a: normalize(*a, training=False))
    yield "forward", _in_a_row(lambda: y_of(x, *vectors))
    yield "backward", _in_a_row(lambda: back(pullback, dy))
    yield "inference", _in_a_row(lambda: infer(x, *vectors))


def _in_a_row(call: Callable[[], object]) -> float:
    """Return microseconds per call of several that are in flight together: the median of repetitions."""
    import jax

    jax.block_until_ready(call())
    times: list[float] = []
    end = time.perf_counter() + (0 if emulated() else SECONDS)
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(10)])
        times.append((time.perf_counter() - start) / 10)
    return float(np.median(times)) * 1e6
