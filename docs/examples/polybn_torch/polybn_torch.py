"""PyTorch in one screen: batch norm on tensors, from a package that PolyBN finds by its entry point.

All arithmetic is in float64, on rows of one channel each; it is written for clarity, not for speed.
"""

import math

import numpy as np
import torch

from polybn import arguments
from polybn.spec import Affine, BackendError, BatchNormResult, Gradients, Moments

name = "torch"


def why_not():
    y = batch_norm(torch.tensor([[1.0], [3.0]]), training=True, eps=0).y
    return None if y.tolist() == [[-1.0], [1.0]] else f"batch_norm of [1, 3] gave {y.tolist()}"


def describe():
    return {"torch": torch.__version__, "device": "cpu"}


def asarray(host):
    host, half = np.array(host, order="C"), host.dtype.name == "bfloat16"  # which torch.from_numpy does not know
    return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(host)


def to_numpy(array):
    host, half = array.detach().cpu(), array.dtype == torch.bfloat16
    return (host.view(torch.int16).numpy().view("bfloat16") if half else host.numpy()).copy()


def batch_norm(*args, **options):
    return _batch_norm("batch_norm", *args, **options)[0]


def batch_norm_vjp(*args, **options):
    return _batch_norm("batch_norm_vjp", *args, **options)


def moments(x, *, axis=1, where=None):
    arguments.check_arrays("moments", "PyTorch", torch.is_tensor, x=x, where=where)
    problem = arguments.check_moments("moments", x, axis=axis, where=where)
    rows, kept, n = _rows(x, problem.axis, where)
    _, _, _, mean, variance = _measure(rows, kept, n, 0.0)
    return Moments(n[:, 0], *(a[:, 0].to(getattr(torch, problem.dtype)) for a in (mean, variance * n)))


def merge_moments(a, b):
    arguments.check_merge_moments("PyTorch", torch.is_tensor, a, b)
    n, apart = a.count + b.count, b.mean.double() - a.mean
    mean = (a.mean + apart * b.count / n.clamp_min(1)).to(a.mean.dtype)
    m2 = (a.m2.double() + b.m2 + apart * apart * a.count * b.count / n.clamp_min(1)).to(a.m2.dtype)
    mean, m2 = mean.where(b.count > 0, a.mean), m2.where(b.count > 0, a.m2)
    return Moments(n, mean.where(a.count > 0, b.mean), m2.where(a.count > 0, b.m2))


def fold(gamma, beta, running_mean, running_var, *, eps=1e-5):
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    arguments.check_arrays("fold", "PyTorch", torch.is_tensor, **arrays)
    arguments.check_fold(**arrays, eps=eps)
    scale = _inverse_root(_checked("fold", running_var), eps) * (1 if gamma is None else gamma)
    shift = -running_mean * scale + (0 if beta is None else beta)
    return Affine(scale.to(running_mean.dtype), shift.to(running_mean.dtype))


def compile(network, state, *, batch_size):
    raise BackendError("polybn.train: backend must train networks; got 'torch' (this one has batch norm alone)")


def _batch_norm(
    function, x, gamma=None, beta=None, running_mean=None, running_var=None, *, training, momentum=0.9, eps=1e-5,
    axis=1, running_variance="biased", where=None,
):  # fmt: skip
    given = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    arguments.check_arrays(function, "PyTorch", torch.is_tensor, x=x, **given, where=where)
    problem = arguments.check_batch_norm(
        function, x, **given, training=training, momentum=momentum, eps=eps, axis=axis,
        running_variance=running_variance, where=where,
    )  # fmt: skip
    rows, kept, n = _rows(x, problem.axis, where)
    new = running_mean, running_var
    if training:
        if running_variance == "unbiased" and (n == 1).any():
            arguments.fail_single_value(function, f"where keeps one value in channel {int((n == 1).int().argmax())}")
        c, r, power, mean, v = _measure(rows, kept, n, eps)
        v = v * (n / (n - 1).clamp_min(1)) if running_variance == "unbiased" else v
        new = [None if old is None else _blend(old, batch[:, 0], momentum, n[:, 0])
               for old, batch in zip(new, (mean, v), strict=True)]  # fmt: skip
    else:
        c, power = rows - running_mean[:, None], 1.0
        r = _inverse_root(_checked(function, running_var), eps)[:, None]
    scale, shift = (None if a is None else a.double()[:, None] for a in (gamma, beta))
    y = c * r if gamma is None else c * r * scale
    result = BatchNormResult(
        _back(y if beta is None else y + shift, x, problem.axis, kept), *(None if a is None else a.clone() for a in new)
    )

    def pullback(dy):  # S13, in PyTorch's operations: autograd has the second order
        arguments.check_arrays(function, "PyTorch", torch.is_tensor, dy=dy)
        arguments.check_dy(dy, x)
        g, m, slope = _rows(dy, problem.axis, where)[0], n.clamp_min(1), r if gamma is None else scale * r
        dbeta, dgamma = g.sum(1, keepdim=True), (g * c * r).sum(1, keepdim=True)
        dx = slope * power * (g - dbeta / m - c * r * dgamma / m if training else g)
        rest = [dgamma, dbeta, None if training else -slope * dbeta, None if training else -slope * r * dgamma / 2]
        pairs = zip(given.values(), rest, strict=True)
        rest = [None if a is None or d is None else d[:, 0].to(a.dtype) for a, d in pairs]
        return Gradients(_back(dx, x, problem.axis, kept), *rest)

    return result, pullback


def _rows(x, axis, where):  # S1: a row for each channel, which values are kept (S12), how many they are
    rows = x.movedim(axis, 0).flatten(1).contiguous().double()
    kept = torch.ones(1, dtype=torch.bool) if where is None else where
    kept = kept.expand(x.shape).movedim(axis, 0).flatten(1)
    return rows.where(kept, 0), kept, kept.sum(1, keepdim=True)


def _back(rows, x, axis, kept):
    return rows.where(kept, 0).reshape(x.movedim(axis, 0).shape).movedim(0, axis).to(x.dtype)


def _measure(rows, kept, n, eps):  # S2, in units of a power of two that no square overflows in (S10)
    m = n.clamp_min(1)
    m1 = (rows / m).sum(1, keepdim=True)
    d = (rows - m1).where(kept, 0)
    largest = torch.nn.functional.pad(d.abs(), (0, 1), value=math.sqrt(eps)).amax(1, keepdim=True)
    power = torch.exp2(-torch.frexp(largest).exponent.clamp(-1021, 1022).double())
    delta = (d * power).sum(1, keepdim=True) / m
    c = (d * power - delta).where(kept, 0)
    v = (c * c).sum(1, keepdim=True) / m
    return c, _inverse_root(v, eps * power * power), power, m1 + delta / power, v / power / power


def _inverse_root(v, eps):  # S3: 0 where both are 0
    square = v.double() + eps
    return (1 / square.where(square != 0, 1).sqrt()).where(square != 0, 0)


def _blend(old, batch, momentum, n):  # S4, exact at its ends
    new = old if momentum == 1 else batch if momentum == 0 else momentum * old.double() + (1 - momentum) * batch
    return new.to(old.dtype).where(n > 0, old)


def _checked(function, variance):
    bad = ~((variance >= 0) & (variance < math.inf))
    if bad.any():
        first = int(bad.int().argmax())
        arguments.check_negative_variance(function, int(bad.sum()), first, float(variance[first]))
    return variance
