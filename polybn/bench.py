"""Interleaved timing: every contender runs in each round, and ratios are taken round by round.

A shared machine changes speed from second to second, and what runs side by side feels it alike: the median
of the rounds' ratios holds where single times do not. The order is another one in each round, because what ran
before leaves its threads and its data behind. Each contender is also timed against itself; how far that ratio
lies from 1 is the noise below which nothing is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.dispatch import backend as find_backend
from polybn.functional import batch_norm, batch_norm_vjp
from polybn.lenet import networks
from polybn.lenet.program import compile
from polybn.spec import traits_of

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from polybn.spec import Backend

SHAPES = ((256, 6, 24, 24), (256, 16, 8, 8), (256, 120), (32, 64, 56, 56), (32, 256, 14, 14), (32, 64, 112, 112))
BATCH = 256
CALLS = 3
"""Least number of calls in a round; the median counts, not the first one with its cold caches."""
BLOCK = 0.02
"""Seconds for which a contender is called in a round."""

Contenders = dict[str, Callable[[], object]]


class Timing(NamedTuple):
    """One contender's result in one task."""

    task: str
    contender: str
    milliseconds: float
    """Median over the rounds of the median in each."""
    ratio: float
    """Median over the rounds of its time divided by the first contender's, both of that round."""


def run(backend: str = "numpy", *, rounds: int = 9) -> Iterator[Timing]:
    """Time batch norm at six shapes, and LeNet's training step, against what else is installed.

    Parameters
    ----------
    backend : str, default "numpy"
        It comes first in every task; ratios are to it. float32 throughout.
    rounds : int, default 9
        After one that is not counted.

    Yields
    ------
    Timing
        Task by task: forward, forward and derivative, training step. Contenders are the backend, in its ``jit``
        where it has one; the same again; without ``jit``; plain NumPy, forward only; and PyTorch on the CPU, with
        NumPy's number of threads left as it is, where installed.
    """
    module, torch = find_backend(backend), _torch()
    for shape in SHAPES:
        x, dy = (1000 + np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
        for task, contenders in _batch_norm_tasks(module, torch, x, dy).items():
            yield from measure(f"{task} {'x'.join(map(str, shape))}", contenders, rounds)
    yield from measure("LeNet training step", _lenet_tasks(module, torch), rounds)


def measure(task: str, contenders: Contenders, rounds: int) -> list[Timing]:
    """Time every contender in each round, in random order, and the first one twice: the second time as ``again``."""
    first = next(iter(contenders))
    entrants = {first: contenders[first], "again": contenders[first], **contenders}
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    names, random = list(entrants), np.random.default_rng(0)
    for _ in range(rounds + 1):
        for index in random.permutation(len(names)):
            seconds[names[index]].append(_block(entrants[names[index]]))
    counted = {name: np.array(values[1:]) for name, values in seconds.items()}
    return [
        Timing(task, name, float(np.median(values)) * 1e3, float(np.median(values / counted[first])))
        for name, values in counted.items()
    ]


def _block(call: Callable[[], object]) -> float:
    """Return the median of the calls that fit into a block."""
    times: list[float] = []
    while len(times) < CALLS or sum(times) < BLOCK:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _batch_norm_tasks(
    module: Backend, torch: ModuleType | None, x: NDArray[np.float32], dy: NDArray[np.float32]
) -> dict[str, Contenders]:
    channels = x.shape[1]
    state = [np.full(channels, value, np.float32) for value in (1, 0, 0, 1)]
    arrays, cotangent = [module.asarray(a) for a in (x, *state)], module.asarray(dy)

    def forward(*arrays: Any) -> Any:
        return batch_norm(*arrays, training=True)

    def both(dy: Any, *arrays: Any) -> Any:
        result, pullback = batch_norm_vjp(*arrays, training=True)
        return pullback(dy), result

    tasks = {
        "forward": _calls(module, forward, arrays, lambda result: result.running_mean),
        "forward and derivative": _calls(module, both, (cotangent, *arrays), lambda results: results[0].gamma),
    }
    tasks["forward"]["plain NumPy"] = lambda: _plain(x)
    if torch is not None:
        tx, tdy, gamma, beta, mean, var = (torch.from_numpy(a.copy()) for a in (x, dy, *state))
        for leaf in (tx, gamma, beta):
            leaf.requires_grad_()

        def torch_forward() -> object:
            with torch.no_grad():
                return torch.nn.functional.batch_norm(tx, mean, var, gamma, beta, True, 0.1, 1e-5)

        def torch_both() -> object:
            y = torch.nn.functional.batch_norm(tx, mean, var, gamma, beta, True, 0.1, 1e-5)
            return torch.autograd.grad(y, (tx, gamma, beta), tdy)

        tasks["forward"]["PyTorch"] = torch_forward
        tasks["forward and derivative"]["PyTorch"] = torch_both
    return tasks


def _calls(
    module: Backend, function: Callable[..., Any], arguments: Sequence[Any], small: Callable[[Any], Any]
) -> Contenders:
    """Call a function as users of the library do: compiled first, where it compiles functions."""

    def timed(function: Callable[..., Any]) -> Callable[[], object]:
        return lambda: _wait(module, small(function(*arguments)))

    jit = traits_of(module).jit
    calls = {module.name: timed(function)}
    return calls if jit is None else {f"{module.name} in jit": timed(jit(function)), **calls}


def _lenet_tasks(module: Backend, torch: ModuleType | None) -> Contenders:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, 1, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, BATCH, dtype=np.uint8)
    network = networks.lenet()
    program = compile(network, module, networks.initial_state(network, 0), batch_size=BATCH)
    data, order = program.place(images, labels), np.arange(BATCH)
    tasks: Contenders = {module.name: lambda: list(program.train_epoch(data, order, learning_rate=0.1))}
    if torch is not None:
        tasks["PyTorch"] = _torch_step(torch, images, labels)
    return tasks


def _torch_step(torch: ModuleType, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Callable[[], object]:
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.Sigmoid(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.BatchNorm1d(120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.BatchNorm1d(84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _plain(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Batch norm as everybody writes it."""
    axes = (0, *range(2, x.ndim))
    centered = x - x.mean(axis=axes, keepdims=True)
    y: NDArray[np.float32] = centered / np.sqrt(np.square(centered).mean(axis=axes, keepdims=True) + np.float32(1e-5))
    return y


def _wait(module: Backend, array: Any) -> NDArray[Any]:
    """Bring a small result to the host: what it depends on has run by then, on every library."""
    return module.to_numpy(array)


def _torch() -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    return torch  # type: ignore[no-any-return]
