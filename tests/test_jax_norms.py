"""The batch norm that LeNet trains with on JAX, graded like the public function."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from polybn.conformance.adapter import Info
from polybn.conformance.grades import at_least, grade
from polybn.conformance.runner import run

jax: Any = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from polybn_jax import norms  # noqa: E402


class Norms:
    """The functions of the network, on arrays whose last axis is the channel axis, in ``jax.jit`` as there."""

    def info(self) -> Info:
        return Info("LeNet's batch norm on JAX", jax.__version__, flushes=True, compiles=True)

    def train(
        self, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, /, *, momentum: float, eps: float, axis: int
    ) -> Any:
        y, *batch = _normalize(np.moveaxis(x, axis, -1), gamma, beta, eps=eps)
        rho, one = np.float32(momentum), np.float32(1)
        new = (rho * old + (one - rho) * np.asarray(z) for old, z in zip((mean, var), batch, strict=True))
        return np.moveaxis(np.asarray(y), -1, axis), *new

    def infer(self, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, /, *, eps: float, axis: int) -> Any:
        own = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
        y = norms.inference(jnp.asarray(np.moveaxis(x, axis, -1)), {k: jnp.asarray(v) for k, v in own.items()}, eps)
        return np.moveaxis(np.asarray(y), -1, axis)

    def vjp(self, x: Any, gamma: Any, beta: Any, dy: Any, /, *, eps: float, axis: int) -> Any:
        moved = (np.moveaxis(z, axis, -1) for z in (x, dy))
        dx, *rest = _differentiate(*moved, gamma, beta, eps=eps)
        return np.moveaxis(np.asarray(dx), -1, axis), *map(np.asarray, rest)


@partial(jax.jit, static_argnames="eps")
def _normalize(x: Any, gamma: Any, beta: Any, *, eps: float) -> Any:
    return norms.batch_norm(x, x, gamma, beta, eps, None)


@partial(jax.jit, static_argnames="eps")
def _differentiate(x: Any, dy: Any, gamma: Any, beta: Any, *, eps: float) -> Any:
    _, transpose = jax.vjp(lambda x, gamma, beta: norms.batch_norm(x, x, gamma, beta, eps, None)[0], x, gamma, beta)
    return transpose(dy)


@pytest.mark.clause("S2", "S13")
def test_it_is_independent_of_the_mean() -> None:
    """The same class of algorithms as S2, at least, by the kit's own families of values."""
    adapter = Norms()
    found = grade(adapter, adapter.info(), "float32", run)
    assert at_least(found.letter, "K"), found
