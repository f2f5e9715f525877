"""A network description as a JAX program: stretches of SGD as one jitted scan over the batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from numpy.typing import NDArray

from polybn.lenet.networks import Row, State
from polybn.lenet.program import Steps
from polybn_jax import parallel
from polybn_jax.chain import Chain, Values, forward, stages
from polybn_jax.processes import check_process
from polybn_jax.team import together

# A stretch reports when it is done, and each length is compiled once: at most this many steps, a divisor of the epoch.
LONGEST = 20


class Data(NamedTuple):
    """Images ``(N, H * W * C)`` and labels ``(N,)``, as bytes on the device, or on each of them."""

    images: jax.Array
    labels: jax.Array


class Report(NamedTuple):
    """Per step: the mean cross-entropy, and how many labels are right."""

    loss: jax.Array
    correct: jax.Array


def compile(rows: Sequence[Row], state: State, *, batch_size: int, devices: int = 1) -> JaxProgram:
    """Turn the layers of a network and its state, which is copied, into a program.

    ``devices`` share each step, ``batch_size / devices`` images each: the first ones of ``jax.devices()``. After
    ``jax.distributed.initialize`` these are the devices of all processes, each of which makes the same calls with the
    same arguments.
    """
    check_process("train")
    return JaxProgram(stages(rows), state, batch_size, parallel.choose(devices, batch_size))


class JaxProgram:
    """A compiled network; fits :class:`polybn.lenet.program.Program`."""

    def __init__(self, chain: Chain, state: State, batch_size: int, mesh: Mesh | None) -> None:
        self._chain, self._batch_size, self._mesh = chain, batch_size, mesh
        self._state = {name: parallel.put(np.asarray(value, np.float32), mesh) for name, value in state.items()}

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Data:
        """Bring images ``(N, C, H, W)`` and labels ``(N,)`` to the device, or to each of them."""
        rows = images.transpose(0, 2, 3, 1).reshape(len(images), -1)
        return Data(parallel.put(rows, self._mesh), parallel.put(labels, self._mesh))

    def train_epoch(self, data: Data, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        """Run SGD in the given order, stretch by stretch."""
        rate = np.float32(learning_rate)
        for batches in _stretches(order.astype(np.int32), self._batch_size):
            steps, n = batches.shape
            split = self._mesh is not None and n % self._mesh.size == 0
            placed = parallel.put(batches, self._mesh, parallel.BY_IMAGE if split else parallel.EVERYWHERE)
            with together():
                self._state, report = _train(
                    self._state, data, placed, rate, chain=self._chain, mesh=self._mesh, split=split
                )
                loss, correct = (np.asarray(parallel.here(values)) for values in report)
            yield Steps(loss.astype(np.float64), correct.astype(np.int64), np.full(steps, n))

    def logits(self, data: Data) -> NDArray[np.float32]:
        """Return class scores ``(N, classes)`` in inference mode, from one device."""
        state = {name: parallel.here(value) for name, value in self._state.items()}
        images = parallel.here(data.images)
        starts = range(0, len(images), self._batch_size)
        batches = (np.arange(start, min(start + self._batch_size, len(images)), dtype=np.int32) for start in starts)
        return np.concatenate([_infer(state, images, batch, chain=self._chain) for batch in batches])

    def state(self) -> State:
        """Copy every parameter and running statistic."""
        return {name: np.array(parallel.here(value)) for name, value in self._state.items()}


def _stretches(order: NDArray[np.int32], batch_size: int) -> Iterator[NDArray[np.int32]]:
    """Cut an epoch into ``(steps, batch_size)``, all alike, and the rest."""
    full = len(order) // batch_size
    if full:
        steps = max(k for k in range(1, LONGEST + 1) if full % k == 0)
        yield from order[: full * batch_size].reshape(-1, steps, batch_size)
    if len(order) % batch_size:
        yield order[None, full * batch_size :]


@partial(jax.jit, static_argnames=("chain", "mesh", "split"), donate_argnames=("state",))
def _train(
    state: Values, data: Data, batches: jax.Array, rate: jax.Array, *, chain: Chain, mesh: Mesh | None, split: bool
) -> tuple[Values, Report]:
    """Take a step for each batch; with ``split``, each device works on its part of it, else all on the whole."""
    shards = 1 if mesh is None else mesh.size

    def run(state: Values, data: Data, batches: jax.Array, rate: jax.Array) -> tuple[Values, Report]:
        take = partial(_step, chain, data, rate, shards, split)
        result: tuple[Values, Report] = lax.scan(take, state, batches)
        return result

    if mesh is None:
        return run(state, data, batches, rate)
    everywhere = parallel.EVERYWHERE
    specs = (everywhere, everywhere, parallel.BY_IMAGE if split else everywhere, everywhere)
    # Unchecked, values stay what they are on each device: gradients are then its own until they are added up.
    run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
    return run(state, data, batches, rate)


def _step(
    chain: Chain, data: Data, rate: jax.Array, shards: int, split: bool, state: Values, batch: jax.Array
) -> tuple[Values, Report]:
    images, labels = (values.at[batch].get(mode="clip") for values in data)
    trained = {name: state[name] for stage in chain for name in stage.parameters}

    def loss_of(trained: Values) -> tuple[jax.Array, tuple[jax.Array, Values]]:
        axis = parallel.AXIS if split else None
        logits, statistics = forward(chain, state | trained, images, training=True, axis=axis)
        correct = jnp.count_nonzero(jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
        return _cross_entropy(logits, labels), (correct, statistics)

    (loss, (correct, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
    if shards > 1:
        # One message. The mean also keeps the replicas equal, to the bit, where each device saw the whole batch.
        flat, shaped = ravel_pytree((loss, correct, statistics, gradients))
        loss, correct, statistics, gradients = shaped(lax.psum(flat, parallel.AXIS) / shards)
        correct = jnp.round(correct * shards) if split else correct
    moved = {name: value - rate * gradients[name] for name, value in trained.items()}
    return state | statistics | moved, Report(loss, correct)


@partial(jax.jit, static_argnames=("chain",))
def _infer(state: Values, images: jax.Array, batch: jax.Array, *, chain: Chain) -> jax.Array:
    return forward(chain, state, images.at[batch].get(mode="clip"), training=False)[0]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss in nats."""
    logits = logits - lax.stop_gradient(logits.max(axis=1, keepdims=True))
    chosen = jnp.where(labels[:, None] == np.arange(logits.shape[1]), logits, 0).sum(axis=1)
    return jnp.mean(jnp.log(jnp.exp(logits).sum(axis=1)) - chosen)
