"""The cost of a training step of LeNet on CuPy, from machine code: instructions per multiply-add, and a prediction.

The record of :mod:`tests.gpu.budget` keeps both. A prediction adds, for each kernel of the step, the latency of a
launch, the waits for loads that nothing hides, and the instructions of the inner loops. It may be wrong by a factor
of 2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tests.gpu import budget, nvrtc, sass

BATCH, STEPS, THREADS = 256, 235, 256
WAIT = 0.7
"""The time in us until a load from memory arrives."""
LIMITS = {"convolve": 1.8, "spread": 1.8, "weigh": 4.0, "product": 3.1}
"""The most instructions per multiply-add in each inner loop."""
SOURCES = {
    "convolve": ("convolution.cu", "convolve<5>"),
    "spread": ("convolution.cu", "pull<5>"),
    "weigh": ("convolution.cu", "pull<5>"),
    "product": ("dense.cu", "multiply_back"),
}


class Node(NamedTuple):
    """A launch of a step that is no batch norm: waits in a row, and multiply-adds in each inner loop."""

    waits: int
    work: dict[str, int]


def _convolution(channels: int, side: int, features: int, *, first: bool) -> tuple[Node, Node]:
    """Return the launches of a convolution with kernels of 5 x 5; four outputs and 32 lanes always go together."""
    out, taps, images = (side - 4) ** 2, 25, BATCH
    weights = _loads(_up(features, 4) * taps * channels)
    forward = Node(
        _loads(channels * side**2, 4) + weights, {"convolve": images * out * _up(features, 4) * taps * channels}
    )
    work, waits = {"weigh": images * channels * _up(features * (taps + 1), 32) * out}, 2 * (1 + _loads(features * out))
    if not first:
        work["spread"] = images * side**2 * _up(channels, 4) * taps * features
        given = _up(side**2 * _up(channels, 4) // 4, THREADS) // THREADS * 4
        waits = max(waits, _loads((side + 4) ** 2 * features) + _loads(_up(channels, 4) * taps * features) + given)
    return forward, Node(waits, work)


def _dense(inputs: int, features: int) -> tuple[Node, Node]:
    """Return the launches of a dense layer, whose products are cut into tiles of 16 x 16, 64 deep."""
    waits = _up(inputs, 64) // 64 * 2
    forward = Node(waits, {"product": _up(features, 16) * BATCH * inputs})
    spread, weigh = _up(inputs, 16) * BATCH * features, _up(features, 16) * _up(inputs + 1, 16) * BATCH
    return forward, Node(_up(features, 64) // 64 * 2 + 1, {"product": spread + weigh})


def _loads(number: int, ahead: int = 8) -> int:
    """Return how often a thread waits while its block loads some values, several by each thread at once."""
    return math.ceil(number / (THREADS * ahead))


def _up(number: int, step: int) -> int:
    return math.ceil(number / step) * step


NODES = [
    *_convolution(1, 28, 6, first=True),
    *_convolution(6, 12, 16, first=False),
    *_dense(256, 120),
    *_dense(120, 84),
    *_dense(84, 10),
    Node(3, {}),  # the loss
    Node(6, {}),  # SGD, which adds up to 128 slices, 32 at a time
]
BATCH_NORMS = 8
"""The launches of batch norm in a step, whose tensors are so small that only latency counts."""


def count(replaced: tuple[str, str] = ("", "")) -> dict[str, float]:
    """Return the instructions per multiply-add of each inner loop, of the sources or of changed ones."""
    found, sources = {}, nvrtc.kernels()
    for kind, (file, expression) in SOURCES.items():
        text = sources.source(file)
        cubin, _ = nvrtc.to_cubin(
            text.replace(*replaced) if replaced[0] else text, file, expression, "sm_90", sources.OPTIONS
        )
        loops = [loop for loop in sass.loops(sass.disassemble(cubin)) if loop.count("FFMA") and loop.count("LDS")]
        two_loads = [loop for loop in loops if loop.count("LDS") >= 2 * loop.count("FFMA")]
        chosen = two_loads if kind == "weigh" else [loop for loop in loops if loop not in two_loads]
        costs = [len(loop.instructions) / loop.count("FFMA") for loop in chosen]
        found[kind] = round(max(costs, default=math.inf), 2)
    return found


def predict(costs: dict[str, float]) -> float:
    """Return the predicted time of a step in us."""
    launches = len(NODES) * budget.LATENCY["inference"] + BATCH_NORMS * budget.LATENCY["forward"]
    waits = sum(node.waits for node in NODES) * WAIT
    instructions = sum(costs[kind] * amount for node in NODES for kind, amount in node.work.items())
    return launches + waits + instructions / budget.ISSUED


def record() -> dict[str, Any]:
    """Return what the record of the budget says about a step."""
    costs = count()
    microseconds = predict(costs)
    return {
        "launches": len(NODES) + BATCH_NORMS,
        "instructions a multiply-add": costs,
        "predicted us a step": round(microseconds, 1),
        "predicted ms an epoch": round(microseconds * STEPS / 1000, 1),
    }
