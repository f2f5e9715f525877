"""The peers: a small adapter for each library, with batch norm and LeNet written as its own users write them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from polybn import dispatch
from polybn.bench import data
from polybn.bench.tasks import BATCH, STEPS, Task

Call = Callable[[], object]


def torch(task: Task, compiled: bool = False) -> Call:
    """Time PyTorch on the CPU."""
    import torch

    wrap = torch.compile if compiled else lambda function: function
    if task.kind == "lenet":
        return _torch_lenet(torch, wrap)
    (x, *state), dy = data.arrays(task)

    def tensor(a: Any) -> Any:
        made = torch.from_numpy(np.asarray(a, np.float32 if task.dtype == "bfloat16" else a.dtype))
        made = made.to(getattr(torch, task.dtype)) if a.ndim > 1 else made
        # In PyTorch, channels last is a memory format; the shape keeps its order.
        return made.movedim(-1, 1) if a.ndim > 1 and task.layout == "last" else made

    x, dy, gamma, beta, mean, var = map(tensor, (x, dy, *state))
    norm = torch.nn.functional.batch_norm
    leaves = (x, gamma, beta)
    if task.kind == "derivative":
        for leaf in leaves:
            leaf.requires_grad_()
        function = wrap(lambda x, g, b: norm(x, mean, var, g, b, True, 0.1, 1e-5))
        return lambda: torch.autograd.grad(function(*leaves), leaves, dy)
    training = task.kind == "forward"
    function = wrap(lambda x, g, b: norm(x, mean, var, g, b, training, 0.1, 1e-5))

    def forward() -> object:
        with torch.no_grad():
            return function(*leaves)

    return forward


def torch_compiled(task: Task) -> Call:
    """Time ``torch.compile``, which needs a C++ compiler and several seconds for each shape."""
    if task.part == "growth" or task != Task(kind=task.kind, shape=task.shape, part=task.part):
        raise NotImplementedError("it compiles too long to be timed beyond float32 with channels second")
    return torch(task, compiled=True)


def _torch_lenet(torch: Any, wrap: Callable[[Any], Any]) -> Call:
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.Sigmoid(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.BatchNorm1d(120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.BatchNorm1d(84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer, forward = torch.optim.SGD(model.parameters(), lr=0.1), wrap(model)
    images, labels = data.images()
    x, y = torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))

    def epoch() -> None:
        for i in range(0, BATCH * STEPS, BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(x[i : i + BATCH]), y[i : i + BATCH]).backward()
            optimizer.step()

    return epoch


def flax(task: Task) -> Call:
    """Time Flax NNX on JAX's default device, in ``nnx.jit``."""
    jax, nnx = map(importlib.import_module, ("jax", "flax.nnx"))
    if task.kind == "lenet":
        return _flax_lenet()
    (x, *_), dy = data.arrays(task)
    x, dy = jax.numpy.asarray(x), jax.numpy.asarray(dy)
    if str(x.dtype) != task.dtype:
        raise NotImplementedError(f"no {task.dtype} here, as the library is installed")
    axis = 1 if task.layout == "second" else x.ndim - 1
    norm = nnx.BatchNorm(
        task.shape[1], axis=axis, momentum=0.9, epsilon=1e-5, dtype=x.dtype, rngs=nnx.Rngs(0),
        use_running_average=task.kind == "inference",
    )  # fmt: skip

    @nnx.jit
    def forward(norm: Any, x: Any, dy: Any) -> Any:
        if task.kind != "derivative":
            return norm(x)
        _, gradients = nnx.value_and_grad(lambda n, x: (n(x) * dy).sum(dtype=np.float32), argnums=(0, 1))(norm, x)
        return gradients

    return lambda: jax.block_until_ready(forward(norm, x, dy))


def _flax_lenet() -> Call:
    jax, nnx, optax = map(importlib.import_module, ("jax", "flax.nnx", "optax"))
    rngs = nnx.Rngs(0)
    size: dict[str, Any] = {"kernel_size": (5, 5), "padding": "VALID", "rngs": rngs}

    def pool(x: Any) -> Any:
        return nnx.max_pool(x, (2, 2), (2, 2))

    model = nnx.Sequential(
        nnx.Conv(1, 6, **size), nnx.BatchNorm(6, rngs=rngs), nnx.sigmoid, pool,
        nnx.Conv(6, 16, **size), nnx.BatchNorm(16, rngs=rngs), nnx.sigmoid, pool, lambda x: x.reshape(len(x), -1),
        nnx.Linear(256, 120, rngs=rngs), nnx.BatchNorm(120, rngs=rngs), nnx.sigmoid,
        nnx.Linear(120, 84, rngs=rngs), nnx.BatchNorm(84, rngs=rngs), nnx.sigmoid, nnx.Linear(84, 10, rngs=rngs),
    )  # fmt: skip
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    images, labels = data.images()
    x, y = jax.numpy.asarray(np.moveaxis(images, 1, -1).astype(np.float32) / 255), jax.numpy.asarray(labels)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return lambda: jax.block_until_ready(
        [step(model, optimizer, x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, BATCH * STEPS, BATCH)]
    )


def gluon(task: Task) -> Call:
    """Time MXNet's own operator, and Gluon's layers, hybridized."""
    dispatch.backend("mxnet")  # it makes MXNet 1.9.1 importable with today's NumPy
    import mxnet as mx

    if task.kind == "lenet":
        return _gluon_lenet(mx)
    (x, *state), dy = data.arrays(task)
    x, dy, *state = (mx.nd.array(a, dtype=a.dtype) for a in (x, dy, *state))
    options = {"eps": 1e-5, "momentum": 0.9, "fix_gamma": False, "axis": 1 if task.layout == "second" else x.ndim - 1}
    for leaf in (x, *state[:2]):
        leaf.attach_grad()

    def call() -> None:
        if task.kind == "derivative":
            with mx.autograd.record():
                y = mx.nd.BatchNorm(x, *state, **options)
            y.backward(dy)
        else:
            with mx.autograd.train_mode() if task.kind == "forward" else mx.autograd.predict_mode():
                mx.nd.BatchNorm(x, *state, **options)
        mx.nd.waitall()

    return call


def _gluon_lenet(mx: Any) -> Call:
    nn = mx.gluon.nn
    net = nn.HybridSequential()
    for channels in (6, 16):
        net.add(nn.Conv2D(channels, 5), nn.BatchNorm(), nn.Activation("sigmoid"), nn.MaxPool2D(2, 2))
    for units in (120, 84):
        net.add(nn.Dense(units), nn.BatchNorm(), nn.Activation("sigmoid"))
    net.add(nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    images, labels = data.images()
    x, y = mx.nd.array(images.astype(np.float32) / 255), mx.nd.array(labels)

    def epoch() -> None:
        for i in range(0, BATCH * STEPS, BATCH):
            with mx.autograd.record():
                found = loss(net(x[i : i + BATCH]), y[i : i + BATCH])
            found.backward()
            trainer.step(BATCH)
        mx.nd.waitall()

    return epoch


PEERS: dict[str, tuple[str, Callable[[Task], Call]]] = {
    "pytorch": ("torch", torch),
    "pytorch-compiled": ("torch", torch_compiled),
    "flax": ("flax", flax),
    "gluon": ("mxnet", gluon),
}
"""The package that each peer needs, and the function that makes its calls."""


def version(name: str) -> str | None:
    """Return the version of a peer's package without importing it, or None if it is not installed."""
    package = PEERS[name][0]
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def make(name: str) -> Callable[[Task], Call]:
    """Return the function that makes a peer's calls."""
    return PEERS[name][1]
