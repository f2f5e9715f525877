"""The reference for every program: networks in plain NumPy, in float64 or complex128, images as ``(N, C, H, W)``.

Written from the layer descriptions, formula by formula; no line is shared with a backend. Complex steps
through the forward pass check the gradients, to the last digits of float64.

How far may float32 be off? *Monte Carlo arithmetic* says: run the same formulas in float64, and after
each operation add a random error, normally distributed, of the size that float32 makes there. ``size``
is that standard deviation in units of ``u = 2^-24``: ``sqrt(K)`` times the sum of magnitudes for an inner product of
length K in any order (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), a few
units for any other operation. The spread of the results over ``SAMPLES`` runs, times ``LAMBDA``, is the bound
for each value by itself. It reflects how each network amplifies errors, and has no constant to tune.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polybn.lenet import networks
from polybn.lenet.networks import Network, State

Values: TypeAlias = NDArray[Any]
Named: TypeAlias = dict[str, Values]
Rounded: TypeAlias = Callable[[Values, Callable[[], Any]], Values]
Pull: TypeAlias = Callable[[Values], tuple[Values, Named]]
"""A function from the cotangent of a layer's output to the cotangents of its input and of its parameters."""

SAMPLES, LAMBDA = 16, 8
FLOAT32 = 2.0**-24
FLOAT64 = 2.0**-53
SUM = 8  # the error of a sum in any order, in roundings of the sum of magnitudes


def exact(values: Values, size: Callable[[], Any]) -> Values:
    """Round nothing."""
    return values


def inexact(seed: int, unit: float) -> Rounded:
    """Round at random."""
    rng = np.random.default_rng(seed)
    return lambda values, size: values + unit * size() * rng.standard_normal(np.shape(values))


class Step(NamedTuple):
    """One training step, before the parameters move."""

    loss: Any
    correct: int
    gradients: Named
    running: Named
    """The updated running statistics."""


class Forward(NamedTuple):
    """One forward pass of a network."""

    logits: Values
    pulls: list[Pull]
    running: Named
    gap: float
    """The smallest distance between the two largest values in any square of a max-pool."""


def forward(network: Network, values: Named, images: Values, *, training: bool, rounded: Rounded = exact) -> Forward:
    """Run a network; ``values`` may be float32, float64 or complex128."""
    x = images / 255.0
    x = rounded(x, lambda: abs(x))
    pulls, running, gap = [], dict[str, Values](), math.inf
    for row in networks.rows(network):
        own = {
            name.partition(".")[2]: widened(value) for name, value in values.items() if name.startswith(row.name + ".")
        }
        pull: Pull
        match row.layer:
            case networks.Convolution():
                x, pull = convolution(x, own["weight"], own["bias"], rounded)
            case networks.Dense():
                x, pull = dense(x, own["weight"], own["bias"], rounded)
            case networks.Sigmoid():
                x, pull = sigmoid(x, rounded)
            case networks.MaxPool(size):
                x, pull, least = max_pool(x, size)
                gap = min(gap, least)
            case networks.BatchNorm(_, momentum, eps):
                x, pull, updated = batch_norm(x, own, momentum, eps, training, rounded)
                running |= {f"{row.name}.{name}": value for name, value in updated.items()}
        pulls.append(_naming(row.name, pull))
    return Forward(x, pulls, running, gap)


def loss_of(network: Network, values: Named, images: Values, labels: Values) -> Any:
    """Return the mean cross-entropy in training, in nats; complex arguments serve complex steps."""
    return cross_entropy(forward(network, values, images, training=True).logits, labels, exact)[0]


def step(network: Network, values: Named, images: Values, labels: Values, rounded: Rounded = exact) -> Step:
    """Differentiate the mean cross-entropy by every parameter."""
    way = forward(network, values, images, training=True, rounded=rounded)
    loss, g = cross_entropy(way.logits, labels, rounded)
    gradients: Named = {}
    for pull in reversed(way.pulls):
        g, own = pull(g)
        gradients |= own
    return Step(loss, int(np.count_nonzero(way.logits.argmax(axis=1) == labels)), gradients, way.running)


def sgd(
    network: Network,
    state: State,
    images: Values,
    labels: Values,
    batches: list[Values],
    learning_rate: float,
    rounded: Rounded = exact,
) -> tuple[Values, list[int], Named]:
    """Train on batches of indices; return losses, counts of right labels, and the state."""
    values: Named = {name: widened(value) for name, value in state.items()}
    losses, correct = [], []
    for batch in batches:
        taken = step(network, values, images[batch], labels[batch], rounded)
        losses.append(taken.loss)
        correct.append(taken.correct)
        values |= taken.running
        for name, gradient in taken.gradients.items():
            moved = values[name] - learning_rate * gradient
            values[name] = rounded(moved, lambda: abs(moved) + learning_rate * abs(gradient))  # noqa: B023
    return np.array(losses), correct, values


def allowed(measure: Callable[[Rounded], Named], unit: float = FLOAT32) -> Named:
    """Return the error that each value of ``measure`` may have in arithmetic with the given unit roundoff."""
    right = measure(exact)
    squares = {name: np.zeros(np.shape(value)) for name, value in right.items()}
    for seed in range(SAMPLES):
        for name, value in measure(inexact(seed, unit)).items():
            squares[name] += (value - right[name]) ** 2
    return {name: LAMBDA * np.sqrt(total / SAMPLES) for name, total in squares.items()}


def convolution(x: Values, weight: Values, bias: Values, rounded: Rounded) -> tuple[Values, Pull]:
    kernel, (height, width) = weight.shape[2], x.shape[2:]
    out = (height - kernel + 1, width - kernel + 1)
    places = [(i, j, (..., slice(i, i + out[0]), slice(j, j + out[1]))) for i in range(kernel) for j in range(kernel)]

    def correlate(x: Values, weight: Values) -> Any:
        return sum(np.einsum("nchw,oc->nohw", x[window], weight[..., i, j]) for i, j, window in places)

    def pull_x(dy: Values, weight: Values) -> Values:
        dx = np.zeros(x.shape)
        for i, j, window in places:
            dx[window] += np.einsum("nohw,oc->nchw", dy, weight[..., i, j])
        return dx

    def pull_weight(dy: Values, x: Values) -> Values:
        dweight = np.zeros(weight.shape)
        for i, j, window in places:
            dweight[..., i, j] = np.einsum("nchw,nohw->oc", x[window], dy)
        return dweight

    def pull(dy: Values) -> tuple[Values, Named]:
        dx, dweight, dbias = pull_x(dy, weight), pull_weight(dy, x), dy.sum(axis=(0, 2, 3))
        terms = dy.size // len(bias)
        return rounded(dx, lambda: math.sqrt(len(bias) * kernel**2) * pull_x(abs(dy), abs(weight))), {
            "weight": rounded(dweight, lambda: math.sqrt(terms) * pull_weight(abs(dy), abs(x))),
            "bias": rounded(dbias, lambda: SUM * abs(dy).sum(axis=(0, 2, 3))),
        }

    y = correlate(x, weight) + bias[:, None, None]
    terms = weight[0].size + 1
    return rounded(y, lambda: math.sqrt(terms) * (correlate(abs(x), abs(weight)) + abs(bias)[:, None, None])), pull


def dense(x: Values, weight: Values, bias: Values, rounded: Rounded) -> tuple[Values, Pull]:
    flat = x.reshape(len(x), -1)

    def pull(dy: Values) -> tuple[Values, Named]:
        dx, dweight, dbias = dy @ weight, dy.T @ flat, dy.sum(axis=0)
        return rounded(dx, lambda: math.sqrt(len(weight)) * (abs(dy) @ abs(weight))).reshape(x.shape), {
            "weight": rounded(dweight, lambda: math.sqrt(len(x)) * (abs(dy).T @ abs(flat))),
            "bias": rounded(dbias, lambda: SUM * abs(dy).sum(axis=0)),
        }

    y = flat @ weight.T + bias
    return rounded(y, lambda: math.sqrt(flat.shape[1] + 1) * (abs(flat) @ abs(weight).T + abs(bias))), pull


def sigmoid(x: Values, rounded: Rounded) -> tuple[Values, Pull]:
    y = 1 / (1 + np.exp(-x))
    y = rounded(y, lambda: 2 + abs(x) * abs(y * (1 - y)))  # a large x may be rounded before the exponential

    def pull(dy: Values) -> tuple[Values, Named]:
        dx = dy * y * (1 - y)
        return rounded(dx, lambda: 4 * abs(dx)), {}

    return y, pull


def max_pool(x: Values, size: int) -> tuple[Values, Pull, float]:
    n, channels, height, width = x.shape
    split = (n, channels, height // size, size, width // size, size)
    squares = x.reshape(split).transpose(0, 1, 2, 4, 3, 5).reshape(n, channels, split[2], split[4], size**2)
    first = squares.real.argmax(axis=-1)[..., None]  # in row order; of equal values the first
    second, largest = (
        np.moveaxis(np.sort(squares.real, axis=-1)[..., -2:], -1, 0) if size > 1 else (-np.inf, squares.real)
    )

    def pull(dy: Values) -> tuple[Values, Named]:
        dsquares = np.zeros(squares.shape)
        np.put_along_axis(dsquares, first, dy[..., None], axis=-1)
        split = (n, channels, height // size, width // size, size, size)
        return dsquares.reshape(split).transpose(0, 1, 2, 4, 3, 5).reshape(x.shape), {}

    return np.take_along_axis(squares, first, axis=-1)[..., 0], pull, float((largest - second).min())


def batch_norm(
    x: Values, own: Named, momentum: float, eps: float, training: bool, rounded: Rounded
) -> tuple[Values, Pull, Named]:
    axes = (0, *range(2, x.ndim))
    m = x.size // x.shape[1]

    def column(values: Values) -> Values:
        return values.reshape(-1, *[1] * (x.ndim - 2))

    mean, var, running = own["running_mean"], own["running_var"], {}
    if training:
        exact_mean = x.mean(axis=axes)
        spread = abs(x - column(exact_mean)).mean(axis=axes)
        mean = rounded(exact_mean, lambda: SUM * spread)
        var = ((x - column(exact_mean)) ** 2).mean(axis=axes)
        var = rounded(var, lambda: 2 * SUM * abs(var))
        running = {
            name: rounded(momentum * own[name] + (1 - momentum) * batch, lambda: 2 * (abs(own[name]) + abs(batch)))  # noqa: B023
            for name, batch in (("running_mean", mean), ("running_var", var))
        }
    r = 1 / np.sqrt(var + eps)
    xhat = (x - column(mean)) * column(r)
    xhat = rounded(xhat, lambda: 4 * abs(xhat))
    y = xhat * column(own["gamma"]) + column(own["beta"])

    def pull(dy: Values) -> tuple[Values, Named]:
        dgamma, dbeta, magnitude = (dy * xhat).sum(axis=axes), dy.sum(axis=axes), abs(dy).sum(axis=axes)
        dgamma = rounded(dgamma, lambda: SUM * (abs(dy) * abs(xhat)).sum(axis=axes))
        dbeta = rounded(dbeta, lambda: SUM * magnitude)
        parts = dy, column(dbeta / m), xhat * column(dgamma / m)
        dx = column(own["gamma"] * r) * (parts[0] - parts[1] - parts[2])
        size = column(abs(own["gamma"]) * r)
        return rounded(dx, lambda: 4 * size * sum(map(abs, parts))), {"gamma": dgamma, "beta": dbeta}

    return rounded(y, lambda: 2 * (abs(y) + abs(column(own["beta"])))), pull, running


def cross_entropy(logits: Values, labels: Values, rounded: Rounded) -> tuple[Any, Values]:
    n = len(labels)
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    shares = np.exp(shifted)
    total = shares.sum(axis=1, keepdims=True)
    losses = np.log(total[:, 0]) - shifted[np.arange(n), labels]
    losses = rounded(losses, lambda: 4 + abs(shifted).max(axis=1))
    target = np.eye(logits.shape[1])[labels]
    g = (shares / total - target) / n
    return losses.mean(), rounded(g, lambda: (SUM * abs(shares / total) + target) / n)


def widened(values: Values) -> Values:
    """Turn float32 into float64, and keep wider types."""
    return values.astype(np.result_type(values, np.float64))


def _naming(layer: str, pull: Pull) -> Pull:
    def named(dy: Values) -> tuple[Values, Named]:
        dx, own = pull(dy)
        return dx, {f"{layer}.{name}": value for name, value in own.items()}

    return named
