"""Faults of memory between calls: one call changes a later one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.mutants_memory import on_results
from tests.sabotage.reference import Array, Reference

R = Reference


class Memory(R):
    """Methods with state, so that each call may change the next."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}
        self.calls: defaultdict[str, int] = defaultdict(int)


def remembers(**steps: Any) -> dict[str, Any]:
    return {"__init__": Memory.__init__, **steps}


def by_shape(self: Any, rows: Array, eps: float) -> Any:
    """Keep the statistics of the first batch of each shape."""
    key = rows.shape, rows.dtype
    fresh = R.normalize(self, rows, eps)
    first = self.kept.setdefault(key, fresh)
    return fresh._replace(mean=first.mean, variance=first.variance)


def latest_forward(self: Any, x: Array, *arrays: Array, **options: Any) -> Any:
    self.kept["x"] = x.copy()
    return R.train(self, x, *arrays, **options)


def backward_of_latest(self: Any, x: Array, *arrays: Array, **options: Any) -> Any:
    latest = self.kept.get("x", x)
    fits = (latest.shape, latest.dtype) == (x.shape, x.dtype)
    return R.vjp(self, latest if fits else x, *arrays, **options)


def accumulating(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
    dx, dgamma, dbeta = result
    key = arrays[0].shape, dbeta.dtype, len(dbeta)
    self.kept[key] = self.kept.get(key, 0) + dbeta
    return dx, dgamma, self.kept[key].copy()


def first_batch_copied(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
    if self.calls["train"]:
        return result
    self.calls["train"] = 1
    return result[0], *(2 * new - old for old, new in zip(arrays[3:], result[1:], strict=True))


def every_other_lost(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
    self.calls["train"] += 1
    return result if self.calls["train"] % 2 else (result[0], arrays[3].copy(), arrays[4].copy())


def random_order(self: Any, rows: Array) -> Array:
    self.calls["total"] += 1
    order = np.random.default_rng(self.calls["total"]).permutation(rows.shape[1])
    return np.add.accumulate(rows[:, order], axis=1)[:, -1:]


def keeps_running(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
    self.kept[len(result[1]), result[1].dtype] = result[1:]
    return result


def infers_from_kept(self: Any, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, **options: Any) -> Array:
    kept = self.kept.get((len(mean), mean.dtype), (mean, var))
    return R.infer(self, x, gamma, beta, *kept, **options)


def inference_sticks(self: Any, *arrays: Array, **options: Any) -> Any:
    if self.calls.pop("infer", 0):
        options.pop("momentum")
        return R.infer(self, *arrays, **options), arrays[3].copy(), arrays[4].copy()
    return R.train(self, *arrays, **options)


def counts_inference(self: Any, *arrays: Array, **options: Any) -> Array:
    self.calls["infer"] += 1
    return R.infer(self, *arrays, **options)


def debiased(self: Any, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, **options: Any) -> Array:
    with np.errstate(all="ignore"):
        share = mean.dtype.type(1 - 0.9 ** self.calls["train"])
        return R.infer(self, x, gamma, beta, mean / share, var / share, **options)


def counts_training(self: Any, *arrays: Array, **options: Any) -> Any:
    self.calls["train"] += 1
    return R.train(self, *arrays, **options)


def first_eps(self: Any, rows: Array, eps: float) -> Any:
    return R.normalize(self, rows, self.kept.setdefault("eps", eps))


def one_scratch(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
    y = result[0]
    scratch = self.kept.setdefault((y.shape, y.dtype, "y"), np.empty_like(y))
    scratch[...] = y
    return scratch, *result[1:]


STATE = (
    mutant("y-is-scratch", "y is a buffer that the next call writes to.", "aliases", "",
           **remembers(**on_results("train", one_scratch))),
    mutant("by-shape", "The running statistics take in the first batch of each shape.", "state", "",
           **remembers(normalize=by_shape)),
    mutant("backward-of-latest", "The gradient is that of the latest forward call of its shape.", "state", "",
           **remembers(train=latest_forward, vjp=backward_of_latest)),
    mutant("dbeta-accumulates", "dbeta adds up from call to call.", "state",
           "mxnet#16297, mxnet#18475, mxnet#18492", **remembers(**on_results("vjp", accumulating))),
    mutant("first-batch-copied", "The first batch is taken in twice.", "state", "",
           **remembers(**on_results("train", first_batch_copied))),
    mutant("every-other-lost", "Every second update is lost.", "state", "TileOPs#1727",
           **remembers(**on_results("train", every_other_lost))),
    mutant("order-changes", "Sums run in another order every time.", "state", "", **remembers(total=random_order)),
    mutant("running-remembered", "Inference takes the statistics of the latest training.", "state", "pytorch#1051",
           **remembers(**on_results("train", keeps_running), infer=infers_from_kept)),
    mutant("inference-sticks", "The first training after inference still infers.", "state", "",
           **remembers(train=inference_sticks, infer=counts_inference)),
    mutant("debiased", "Inference divides by 1 - 0.9^t: by 0 before any training.", "state", "equinox#1010",
           **remembers(train=counts_training, infer=debiased)),
    mutant("eps-remembered", "The first eps is used ever after.", "state", "", **remembers(normalize=first_eps)),
)  # fmt: skip
