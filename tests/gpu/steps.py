"""The cost of a training step of LeNet on CuPy, counted in machine code, and a prediction for each launch.

The record of :mod:`tests.gpu.budget` keeps both. The prediction of a launch is the sum of three terms: the launch
itself, the waits for loads that nothing hides, and the instructions of the multiprocessor that has most of them to
issue. Inner loops are counted in machine code; what surrounds them is estimated (``ESTIMATES``). Not in the model: bank
conflicts, and waits for the arithmetic itself. The sum may be wrong by a factor of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.gpu import budget, nvrtc, sass

BATCH, STEPS, THREADS, MULTIPROCESSORS = 256, 235, 256, 132
LAUNCH, CACHED, MEMORY = 1.5, 0.35, 0.7
"""Times in us: from the end of one kernel of a graph to the work of the next; until a load arrives from the cache of
the device, where everything but the images is, and from memory."""
TAPS, OUTS, ALONG, DEPTH = 25, 2, 4, 128
ESTIMATES = {"give": 90.0, "tile": 10.0, "thread": 200.0}
"""Instructions that are not in a loop of their own, so they are not counted: for a value whose gradient goes through a
sigmoid and a pool, for a value of a tile that is copied, and for a thread before and after its loops."""

LIMITS = {
    "convolve": 1.3, "spread": 1.45, "weigh": 1.25, "product": 1.35, "thin": 1.9,
    "pooled": 72.0, "activated": 48.0, "bytes": 61.0, "weights": 17.0, "lines": 32.0, "copy": 6.0,
}  # fmt: skip
"""The most instructions: per multiply-add in the inner loops of the first five; per value that is brought to shared
memory through pool and sigmoid, through a sigmoid, from bytes; per weight; per four values of a line; and per value
that is only copied."""
AHEAD = {"pooled": 8, "activated": 4}
"""The loads that a thread starts before it waits for the first, in loops that bring values to shared memory."""


Changed = tuple[str, str]
UNCHANGED = ("", "")


class Block(NamedTuple):
    """Blocks of one kind: how many, and what each does, as multiples of the costs."""

    blocks: int
    work: dict[str, float]


class Node(NamedTuple):
    """A launch that is no batch norm."""

    name: str
    cached: int
    memory: int
    """Waits in a row for the cache and for memory."""
    kinds: tuple[Block, ...]


def _executed(down: int, high: int, lanes: int) -> int:
    """Count rows of the kernel that warps go through: those that any lane of a warp needs, of 5; times 32 lanes."""
    units = [row for row in range(down) for _ in range(lanes)]
    warps = [set(units[i : i + 32]) for i in range(0, len(units), 32)]
    return 32 * sum(sum(any(0 <= row - i < high for row in rows) for i in range(5)) for rows in warps)


def _convolution(name: str, channels: int, side: int, features: int, source: str) -> tuple[Node, Node]:
    """Return the launches of a convolution with kernels of 5 x 5; a block takes an image, or weights of two images."""
    out, first = side - 4, source == "bytes"
    values, weights = channels * side**2, _up(features, OUTS) * TAPS * channels
    shares = 2 if _units(out, features) <= THREADS // 2 else 1
    depth = 5 * ALONG * OUTS  # multiply-adds of a thread for one row of a kernel
    forward = Block(BATCH, {
        "convolve": _up(_units(out, features) * shares, 32) * math.ceil(channels / shares) * 5 * depth,
        source: values, "weights": weights, "thread": THREADS,
    })  # fmt: skip
    units = (channels * 5 + 1) * features // OUTS
    pieces = THREADS // units
    rows = math.ceil(2 * out / pieces) * math.ceil(units * pieces / 32) * 32
    weigh = Block(BATCH // 2, {
        "weigh": rows * out * 5 * OUTS, "lines": 2 * (values + features * out**2) / ALONG, "thread": THREADS,
    })  # fmt: skip
    if first:
        return Node(name, 2, 1, (forward,)), Node(f"{name}, back", 1, 0, (weigh,))
    lanes = _units(side, channels) // side * 4
    spread = Block(BATCH, {
        "spread": _executed(side, out, lanes) * depth * features / 4, "weights": weights,
        "lines": features * out * (side + 4) / ALONG, "give": values, "thread": THREADS,
    })  # fmt: skip
    return Node(name, 1, 0, (forward,)), Node(f"{name}, back", 2, 0, (spread, weigh))


def _units(side: int, outs: int) -> int:
    """Return how many tasks of four places and two outputs an image has."""
    return side * math.ceil(side / ALONG) * math.ceil(outs / OUTS)


def _dense(name: str, inputs: int, features: int, source: str) -> tuple[Node, Node]:
    """Return the launches of a dense layer, whose products are cut into tiles of 32 x 8 and 32 x 32, 128 deep."""

    def tiles(rows: int, columns: int, depth: int, wide: int, source: str = "tile", given: int = 0) -> Block:
        steps = math.ceil(depth / DEPTH)
        work = {"tile": 32.0 * DEPTH * steps, "thread": THREADS, "give": given}
        work["product" if wide == 32 else "thin"] = 32 * wide * _up(depth, ALONG)
        work[source] = work.get(source, 0) + wide * DEPTH * steps
        return Block(math.ceil(rows / 32) * math.ceil(columns / wide), work)

    weigh = tiles(features, inputs, DEPTH, 32)
    back = tiles(inputs, BATCH, features, 32, given=32 * 32), weigh._replace(blocks=weigh.blocks * BATCH // DEPTH)
    forward = Node(name, math.ceil(inputs / DEPTH) + 1, 0, (tiles(features, BATCH, inputs, 8, source),))
    return forward, Node(f"{name}, back", 2, 0, back)


def _conclusion(inputs: int, classes: int) -> Node:
    """Return the launch of the last dense layer and the loss, whose blocks take eight images each."""
    products = 3 * 8 * classes * _up(inputs, 32)
    work: dict[str, float] = {
        "weigh": 4 * products,
        "activated": 8 * inputs,
        "copy": classes * inputs,
        "give": 8 * inputs,
    }
    return Node("dense 3, loss, back", 4, 0, (Block(BATCH // 8, work | {"thread": 2 * THREADS}),))


def _up(number: int, step: int) -> int:
    return math.ceil(number / step) * step


def nodes() -> list[Node]:
    """List the launches of a step that are no batch norms."""
    conv1, conv1_back = _convolution("convolution 1", 1, 28, 6, "bytes")
    conv2, conv2_back = _convolution("convolution 2", 6, 12, 16, "pooled")
    dense1, dense1_back = _dense("dense 1", 256, 120, "pooled")
    dense2, dense2_back = _dense("dense 2", 120, 84, "activated")
    descent = Node("SGD", 3, 0, (Block(270, {"thread": THREADS}),))
    forward = [conv1, conv2, dense1, dense2, _conclusion(84, 10)]
    return [*forward, dense2_back, dense1_back, conv2_back, conv1_back, descent]


NORMS = {
    "batch norm 1": (6 * 24 * 24, True), "batch norm 2": (16 * 8 * 8, True),
    "batch norm 3": (120, False), "batch norm 4": (84, False),
}  # fmt: skip
"""The values of one image in each batch norm, and whether blocks wait for each other in it."""


def _multiplies(loop: sass.Loop, vectors: range) -> bool:
    return loop.count("FFMA") >= 32 and loop.count("LDS") in vectors


Chooser = Callable[[sass.Loop], bool]
OTHER_LOADS = ("LDG.E.U8", "LDG.E.64", "LDGSTS")
CONVOLVE, PULL = ("convolution.cu", "convolve<5>"), ("convolution.cu", "pull<5>")
DENSE = ("dense.cu", "multiply_back")  # the compiler's output has both kernels
SOURCES: dict[str, tuple[tuple[str, str], Chooser, str]] = {
    "convolve": (CONVOLVE, lambda loop: _multiplies(loop, range(1, 999)), "FFMA"),
    "spread": (PULL, lambda loop: _multiplies(loop, range(7, 999)), "FFMA"),
    "weigh": (PULL, lambda loop: _multiplies(loop, range(1, 7)), "FFMA"),
    "thin": (DENSE, lambda loop: 16 <= loop.count("FFMA") < 64 and loop.count("LDS") > 0, "FFMA"),
    "product": (DENSE, lambda loop: loop.count("FFMA") >= 64 and loop.count("LDS") > 0, "FFMA"),
    "pooled": (CONVOLVE, lambda loop: loop.count("LDG.E.64") > 0 and not loop.count("LDG.E.U8"), "MUFU"),
    "activated": (CONVOLVE, lambda loop: loop.count("LDG") > loop.count(*OTHER_LOADS) == 0, "MUFU"),
    "bytes": (CONVOLVE, lambda loop: loop.count("LDG.E.U8") > 0 and not loop.count("LDG.E.64"), "LDG"),
    "weights": (CONVOLVE, lambda loop: loop.count("LDGSTS") > 0, "LDGSTS"),
    "lines": (PULL, lambda loop: loop.count("LDGSTS.E.BYPASS.128") > 0, "LDGSTS"),
    "copy": (("network.cu", "conclude"), lambda loop: loop.count("LDGSTS") >= 4, "LDGSTS"),
}
"""Where each kind of loop is, how to tell it from others, and the instruction that is counted as its turns."""
TURNS = {"MUFU": 2}
"""The number of these instructions in one turn: a sigmoid takes two."""


def loops(changed: Changed = UNCHANGED) -> dict[str, list[sass.Loop]]:
    """Return the loops of each kind, of the sources or of changed ones."""
    sources, compiled = nvrtc.kernels(), {}
    for file, expression in {source for source, _, _ in SOURCES.values()}:
        text = sources.source(file)
        cubin, _ = nvrtc.to_cubin(
            text.replace(*changed) if changed[0] else text, file, expression, "sm_90", sources.OPTIONS
        )
        compiled[file, expression] = sass.loops(sass.disassemble(cubin))
    return {kind: [loop for loop in compiled[of] if chosen(loop)] for kind, (of, chosen, _) in SOURCES.items()}


def count(found: dict[str, list[sass.Loop]]) -> dict[str, float]:
    """Return the instructions of each kind of loop per multiply-add or value; the worst where there are several."""
    costs = {}
    for kind, (_, _, name) in SOURCES.items():
        each = [len(loop.instructions) * TURNS.get(name, 1) / loop.count(name) for loop in found[kind]]
        costs[kind] = round(max(each, default=math.inf), 2)
    return costs


def ahead(found: dict[str, list[sass.Loop]]) -> dict[str, int]:
    """Return how many loads each kind of AHEAD starts before it waits for the first; the least of several loops."""
    return {kind: min((_ahead(loop) for loop in found[kind]), default=0) for kind in AHEAD}


def _ahead(loop: sass.Loop) -> int:
    names = [sass.operation(line) for line in loop.instructions]
    waits = [i for i, name in enumerate(names) if name.startswith(("FSETP", "FFMA", "FMNMX", "MUFU"))]
    return sum(name.startswith("LDG") for name in names[: waits[0]])


class Cost(NamedTuple):
    """The predicted time of a launch in us, by cause."""

    launch: float
    waits: float
    instructions: float


def busiest(node: Node, each: dict[str, float]) -> float:
    """Return the time in us that the multiprocessor with most blocks needs for the kinds of work in ``each``."""
    blocks = sum(kind.blocks for kind in node.kinds)
    work = sum(kind.blocks * each.get(name, 0) * n for kind in node.kinds for name, n in kind.work.items())
    return math.ceil(blocks / MULTIPROCESSORS) * work / blocks / (budget.ISSUED / MULTIPROCESSORS)


def costs(counted: dict[str, float]) -> dict[str, Cost]:
    """Return the predicted cost of each launch of a step, by name; batch norms are the last."""
    found = {}
    for node in nodes():
        waits = node.cached * CACHED + node.memory * MEMORY
        found[node.name] = Cost(LAUNCH, waits, busiest(node, ESTIMATES | counted))
    for name, (values, group) in NORMS.items():
        for of, kernel in ((name, "forward"), (f"{name}, back", "backward")):
            latency = budget.LATENCY[kernel if group else "inference"]
            instructions = BATCH * values * budget.LIMITS[kernel] / budget.ISSUED
            found[of] = Cost(LAUNCH, latency - LAUNCH, instructions)
    return found


def record() -> dict[str, Any]:
    """Return what the record of the budget says about a step."""
    counted = count(loops())
    launches = costs(counted)
    microseconds = sum(map(sum, launches.values()))
    multiplying = {kind: cost for kind, cost in counted.items() if SOURCES[kind][2] == "FFMA"}
    return {
        "launches": len(launches),
        "instructions": counted,
        "nodes": {name: [round(part, 2) for part in cost] for name, cost in launches.items()},
        "multiply-adds, us": round(sum(busiest(node, multiplying) for node in nodes()), 1),
        "batch norms, us": round(sum(cost.waits for name, cost in launches.items() if name.startswith("batch")), 1),
        "predicted us a step": round(microseconds, 1),
        "predicted ms an epoch": round(microseconds * STEPS / 1000, 1),
    }
