"""Layers as Gluon blocks, and the computation of a training step as one hybridized block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polybn.lenet import networks
from polybn.lenet.networks import Row, State
from polybn.spec import Array
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.gluon import BatchNorm

nn = mx.gluon.nn


class Classifier(mx.gluon.HybridBlock):
    """A network: from bytes ``(n, C, H, W)`` to scores ``(n, classes)``."""

    def __init__(self, rows: Sequence[Row], context: Any) -> None:
        super().__init__()
        blocks = {row.name: _block(row) for row in rows}
        self.chain = nn.HybridSequential()
        self.chain.add(*blocks.values())
        self.initialize(mx.init.Zero(), ctx=context)
        self.arrays = {
            name: getattr(blocks[row.name], name.partition(".")[2])
            for row in rows
            for name in row.parameters | row.statistics
        }
        """The Gluon parameters by full name, such as ``conv1.weight``."""

    def hybrid_forward(self, F: Any, images: Any) -> Any:
        """Scale images to [0, 1] and apply the layers."""
        return self.chain(F.cast(images, "float32") / 255)

    def load(self, state: State) -> None:
        """Copy every array from the host."""
        for name, parameter in self.arrays.items():
            parameter.set_data(mx.nd.array(state[name], dtype=np.float32))

    def is_finite(self) -> bool:
        """Return whether all running statistics are finite."""
        return all(np.isfinite(p.data().asnumpy()).all() for n, p in self.arrays.items() if ".running_" in n)

    def state(self) -> State:
        """Copy every array to the host."""
        return {name: parameter.data().asnumpy() for name, parameter in self.arrays.items()}


class Objective(mx.gluon.HybridBlock):
    """Cross-entropy in nats of each image of a batch, and whether its label has the highest score."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def hybrid_forward(self, F: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        """Map bytes ``(n, C, H, W)`` and labels ``(n,)`` to two vectors ``(n,)``."""
        scores, labels = self.classifier(images), F.cast(labels, "float32")
        right = F.broadcast_equal(F.argmax(scores, axis=1), labels)
        # log_softmax of oneDNN errs by 70 u, and so does its gradient; this errs only as much as exp and log.
        scores = F.broadcast_sub(scores, F.stop_gradient(F.max(scores, axis=1, keepdims=True)))
        return F.log(F.sum(F.exp(scores), axis=1)) - F.pick(scores, labels), right


def descend(parameters: list[Array], gradients: list[Array], *, rate: float, images: int) -> None:
    """Take a step of SGD on all parameters in few calls; gradients are sums over ``images`` images."""
    for start in range(0, len(parameters), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        pairs = list(zip(parameters[some], gradients[some], strict=True))
        mx.nd.multi_sgd_update(
            *(array for pair in pairs for array in pair), out=parameters[some], num_weights=len(pairs),
            lrs=[rate] * len(pairs), wds=[0.0] * len(pairs), rescale_grad=1 / images,
        )  # fmt: skip


_AT_ONCE = 45  # the operator's limit: https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/ndarray


def _block(row: Row) -> Any:
    inputs = row.input_shape[0]
    match row.layer:
        case networks.Convolution(channels, kernel):
            return nn.Conv2D(channels, kernel, in_channels=inputs)
        case networks.Dense(features):
            return nn.Dense(features, in_units=int(np.prod(row.input_shape)))
        case networks.BatchNorm("native", momentum, eps):
            return nn.BatchNorm(momentum=momentum, epsilon=eps, in_channels=inputs)
        case networks.BatchNorm(_, momentum, eps):
            return BatchNorm(momentum=momentum, epsilon=eps, in_channels=inputs)
        case networks.Sigmoid():
            return nn.Activation("sigmoid")
        case networks.MaxPool(size):
            return nn.MaxPool2D(size)
