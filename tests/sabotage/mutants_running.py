"""Faults in the running statistics: momentum, wrong values or times of updates, channels of one value or none."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Normalized, Reference

R = Reference
Results = tuple[Array, Array, Array]


def after(change: Any) -> dict[str, Any]:
    """Change the results of `train`; ``change`` gets the arguments by name, y and the running statistics."""

    def train(
        self: Reference, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> Results:
        given = {"self": self, "x": x, "gamma": gamma, "beta": beta, "mean": running_mean, "var": running_var}
        results = R.train(self, x, gamma, beta, running_mean, running_var, **options)
        with np.errstate(all="ignore"):
            changed: Results = change(given | options, *results)
        return changed

    return {"train": train}


def on_variance(change: Any) -> dict[str, Any]:
    """Change the variance for the running statistic; ``change`` gets the variance and m."""
    return {"kept_variance": lambda self, variance, m: np.asarray(change(variance, m)).astype(variance.dtype)}


def updates(mean: Any, variance: Any) -> dict[str, Any]:
    """Replace the updates of the two running statistics; None keeps the reference's."""

    def change(given: dict[str, Any], y: Array, new_mean: Array, new_var: Array) -> Results:
        if not y.size:
            return y, new_mean, new_var
        self, rows = given["self"], R.load(given["self"], given["x"], given["axis"])
        n, rho = self.normalize(rows, given["eps"]), given["momentum"]
        pairs = ((mean, given["mean"], n.mean, new_mean), (variance, given["var"], n.variance, new_var))
        updated = [
            usual if update is None else np.asarray(update(self, old, batch[:, 0], rho)).astype(old.dtype)
            for update, old, batch, usual in pairs
        ]
        return y, *updated

    return after(change)


def blend(old: Array, batch: Array, momentum: float) -> Array:
    return R.blend(R(), old, batch, momentum)


def takes_in(variance: Any) -> dict[str, Any]:
    """Change the variance for the running statistic; ``variance`` gets the values that normalize a batch, and eps."""

    def normalize(self: Reference, rows: Array, eps: float) -> Normalized:
        n = R.normalize(self, rows, eps)
        return n._replace(variance=np.asarray(variance(n, rows.dtype.type(eps))).astype(rows.dtype))

    return {"normalize": normalize}


def rank_4_is_unbiased(given: dict[str, Any], y: Array, mean: Array, var: Array) -> Results:
    m, rho = y.size // max(len(mean), 1), given["momentum"]
    if y.ndim != 4 or m < 2:
        return y, mean, var
    batch = (var - rho * given["var"]) * (m / (m - 1))
    return y, mean, (rho * given["var"] + batch).astype(var.dtype)


def updated_before(given: dict[str, Any], y: Array, mean: Array, var: Array) -> Results:
    y = R.infer(R(), given["x"], given["gamma"], given["beta"], mean, var, eps=given["eps"], axis=given["axis"])
    return y, mean, var


def centred_by_updated(given: dict[str, Any], y: Array, mean: Array, var: Array) -> Results:
    if not y.size:
        return y, mean, var
    variance = R.normalize(R(), R.load(R(), given["x"], given["axis"]), given["eps"]).variance[:, 0]
    y = R.infer(R(), given["x"], given["gamma"], given["beta"], mean, variance, eps=given["eps"], axis=given["axis"])
    return y, mean, var


def updated_by_normalized(given: dict[str, Any], y: Array, mean: Array, var: Array) -> Results:
    if not y.size:
        return y, mean, var
    n, rho = R.normalize(R(), R.load(R(), y, given["axis"]), given["eps"]), given["momentum"]
    return y, blend(given["mean"], n.mean[:, 0], rho), blend(given["var"], n.variance[:, 0], rho)


def unless(frozen: Any) -> dict[str, Any]:
    """Return the old statistics if ``frozen(given, mean, var)`` holds."""

    def change(given: dict[str, Any], y: Array, mean: Array, var: Array) -> Results:
        stays = frozen(given, mean, var)
        return y, np.where(stays, given["mean"], mean), np.where(stays, given["var"], var)

    return after(change)


def without_values(factor: float) -> dict[str, Any]:
    """Multiply the running statistics by ``factor`` in a call without values."""

    def no_values(self: Reference, x: Array, *running: Array) -> tuple[Array, ...]:
        return np.empty_like(x), *(a * a.dtype.type(factor) for a in running)

    return {"no_values": no_values}


RUNNING = (
    mutant("momentum-reversed", "momentum weighs the new value, and the adapter declares the old.", "momentum",
           "pytorch#18525, onnxscript#1289", blend=lambda self, old, batch, rho: R.blend(self, old, batch, 1 - rho)),
    mutant("momentum-declared-reversed", "momentum weighs the old value, and the adapter declares the new.",
           "momentum", "oneflow#6055", conventions={"momentum": "new"},
           blend=lambda self, old, batch, rho: R.blend(self, old, batch, 1 - rho)),
    mutant("momentum-compounds", "momentum is applied twice.", "momentum", "",
           blend=lambda self, old, batch, rho: R.blend(self, old, batch, rho * rho)),
    mutant("momentum-on-variance-only", "The running mean is replaced, not blended.", "momentum", "",
           **updates(lambda self, old, new, rho: new, None)),
    mutant("momentum-on-mean-only", "The running variance is replaced, not blended.", "momentum", "",
           **updates(None, lambda self, old, new, rho: new)),
    mutant("momentum-is-0.9", "momentum is 0.9 whatever is asked for.", "momentum", "",
           blend=lambda self, old, batch, rho: R.blend(self, old, batch, 0.9)),
    mutant("momentum-zero-is-default", "momentum = 0 is taken for no momentum given.", "momentum",
           "pytorch#40074", blend=lambda self, old, batch, rho: R.blend(self, old, batch, rho or 0.9)),
    mutant("momentum-sum-above-one", "The new value is added in full.", "momentum", "",
           blend=lambda self, old, batch, rho: old * old.dtype.type(rho) + batch),
    mutant("old-value-dropped", "The update starts from 0: a test that starts there sees nothing.", "momentum",
           "TileOPs#1727", blend=lambda self, old, batch, rho: R.blend(self, 0 * old, batch, rho)),
    mutant("updated-twice", "One call updates twice.", "momentum", "mxnet#18751",
           blend=lambda self, old, batch, rho: R.blend(self, R.blend(self, old, batch, rho), batch, rho)),
    mutant("not-updated", "The update is lost.", "momentum", "pytorch#1051, mxnet#14357",
           blend=lambda self, old, batch, rho: old.copy()),
    mutant("inexact-at-the-ends", "old + (batch - old) (1 - momentum) misses the batch's value at momentum = 0.",
           "momentum", "", blend=lambda self, old, batch, rho: old + (batch - old) * old.dtype.type(1 - rho)),
    mutant("buffers-swapped", "Running mean and variance change places.", "running", "",
           **after(lambda given, y, mean, var: (y, var, mean))),
    mutant("deviation-kept", "The running variance takes in the deviation.", "running", "",
           **on_variance(lambda v, m: np.sqrt(v))),
    mutant("inverse-root-kept", "The running variance takes in the inverse root.", "running", "mxnet#9216",
           **on_variance(lambda v, m: 1 / np.sqrt(v))),
    mutant("second-moment-kept", "The running variance takes in E[x^2].", "running", "",
           **takes_in(lambda n, eps: n.variance + n.mean * n.mean)),
    mutant("recovered-from-root", "The running variance is r^-2 - eps, of which little is left.", "running",
           "MobileNet-Caffe#87", **takes_in(lambda n, eps: np.ldexp(1 / (n.root * n.root), 2 * n.exponent) - eps)),
    mutant("eps-kept", "The running variance takes in v + eps.", "running", "",
           **takes_in(lambda n, eps: n.variance + eps)),
    mutant("unbiased-undeclared", "The running variance is unbiased, and biased is declared.", "bias",
           "mxnet#21111, cudnn.torch#165", **on_variance(lambda v, m: v * (m / max(m - 1, 1)))),
    mutant("biased-undeclared", "The running variance is biased, and unbiased is declared.", "bias",
           "FastNN#11, pytorch#42151", conventions={"running_variance": "unbiased"}, **on_variance(lambda v, m: v)),
    mutant("bessel-reversed", "Bessel's correction divides.", "bias", "",
           conventions={"running_variance": "unbiased"}, **on_variance(lambda v, m: v * ((m - 1) / m))),
    mutant("bessel-on-fused-path", "Only the path for rank 4 corrects the bias.", "bias", "tensorflow#55545",
           **after(rank_4_is_unbiased)),
    mutant("updated-before", "y is normalized by the updated running statistics.", "order", "tt-metal#41127",
           **after(updated_before)),
    mutant("centred-by-updated", "y is centred by the updated running mean.", "order", "onnxruntime#29790",
           **after(centred_by_updated)),
    mutant("updated-by-normalized", "The statistics of y are taken in.", "order", "", **after(updated_by_normalized)),
    mutant("frozen-without-affine", "Nothing is taken in where gamma is 1 and beta is 0.", "running",
           "mxnet#18673", **unless(lambda given, mean, var: (given["gamma"] == 1).all() and not given["beta"].any())),
    mutant("nan-not-taken-in", "A channel of NaN keeps its running statistics.", "nan", "",
           **unless(lambda given, mean, var: np.isnan(mean) | np.isnan(var))),
    mutant("kept-in-half", "Running statistics pass through float16.", "dtype", "",
           **after(lambda given, y, mean, var: (y, *(a.astype(np.float16).astype(a.dtype) for a in (mean, var))))),
    mutant("no-values-give-nan", "N = 0 makes the running statistics NaN.", "empty",
           "pytorch#12013, pytorch#120803", **without_values(np.nan)),
    mutant("no-values-decay", "N = 0 shrinks the running statistics.", "empty", "", **without_values(0.75)),
    mutant("no-values-raise", "N = 0 divides by zero.", "empty", "pytorch#40806", crashes=True,
           no_values=lambda self, x, mean, var: divmod(1, x.size)),
    mutant("one-value-gives-nan", "m = 1 makes the running variance NaN.", "one value",
           "pytorch#1381, torch/nn#1271, tensorflow#30230, Flux#2716",
           **on_variance(lambda v, m: v / (m - 1) if m == 1 else v)),
    mutant("one-value-passes", "m = 1 is served, and an error is declared.", "one value", "",
           conventions={"single_value": "error"}, **on_variance(lambda v, m: v)),
)  # fmt: skip
