"""A backend for PyTorch in one screen. It computes in float64 on one row per channel, and prefers clarity to speed."""

import torch

from polybn.arguments import dtype_name, fail_single_value, fail_variance
from polybn.spec import Affine, BatchNormResult, Description, Gradients, Moments, Traits

name = "torch"
traits = Traits(library="PyTorch")


def why_not():
    return None  # wherever PyTorch can be imported, it can compute on the CPU


def describe():
    return {"torch": torch.__version__, "device": "cpu"}


def inspect(value):
    if not torch.is_tensor(value):
        return None
    return Description(tuple(value.shape), dtype_name(value.dtype), str(value.device))


def asarray(host):  # bfloat16 goes through float32, which both libraries have
    return torch.tensor(host.astype("float32")).bfloat16() if host.dtype.kind == "V" else torch.tensor(host.copy())


def to_numpy(array):
    common = array.float() if array.dtype == torch.bfloat16 else array
    return common.numpy(force=True).astype(dtype_name(array.dtype))


def forward(call, *, differentiable):  # S1 to S12; the arguments are checked
    x, old_mean, old_var = call.x, call.running_mean, call.running_var
    rows, kept, n = _rows(call)
    if call.training:
        if call.unbiased and (n == 1).any():
            fail_single_value(call.function, f"where keeps one value in channel {int((n == 1).int().argmax())}")
        c, square, mean, v = _measure(rows, kept, n, call.eps)
        v = v * (n / (n - 1).clamp_min(1)) if call.unbiased else v
        new = [a if a is None else _update(a, b, call.momentum, n) for a, b in ((old_mean, mean), (old_var, v))]
    else:
        _check_variance(call)
        c, square = rows - old_mean[:, None], old_var.double()[:, None] + call.eps
        new = [old_mean.clone(), old_var.clone()]
    r = (1 / square.where(square != 0, 1).sqrt()).where(square != 0, 0)  # S3
    y = c * r * (1 if call.gamma is None else call.gamma[:, None]) + (0 if call.beta is None else call.beta[:, None])
    shape = x.movedim(call.axis, 0).shape
    return BatchNormResult(y.where(kept, 0).reshape(shape).movedim(0, call.axis).to(x.dtype), *new), None


def backward(call, residuals, dy):  # S13: the derivative is PyTorch's own
    given = ["x", "gamma", "beta"] if call.training else ["x", "gamma", "beta", "running_mean", "running_var"]
    held = {name: getattr(call, name) for name in given if getattr(call, name) is not None}
    _, back = torch.func.vjp(lambda held: forward(call._replace(**held), differentiable=True)[0].y, held)
    return Gradients(**dict.fromkeys(given) | back(dy)[0])


def moments(call):
    rows, kept, n = _rows(call)
    _, _, mean, v = _measure(rows, kept, n, 0.0)
    return Moments(n[:, 0], *(a[:, 0].to(getattr(torch, call.dtype)) for a in (mean, v * n)))


def merge_moments(a, b):  # S15
    n = a.count + b.count
    apart = (b.mean.double() - a.mean).where(a.count * b.count > 0, 0)
    mean = a.mean.where(a.count > 0, b.mean) + apart * b.count / n.clamp_min(1)
    m2 = a.m2.double() + b.m2 + apart * apart * a.count * b.count / n.clamp_min(1)
    return Moments(n, mean.to(a.mean.dtype), m2.to(a.m2.dtype))


def fold(call):  # the results of inference for 1 with mean 0, and for 0
    zero = torch.zeros_like(call.running_mean)
    one, none = (call._replace(x=zero[None] + value, axis=1, m=1) for value in (1, 0))
    scale = forward(one._replace(beta=None, running_mean=zero), differentiable=False)[0].y[0]
    return Affine(scale, shift=forward(none, differentiable=False)[0].y[0])


def _check_variance(call):
    bad = (~((call.running_var >= 0) & (call.running_var < torch.inf))).nonzero().flatten().tolist()
    if bad:
        fail_variance(call.function, len(bad), bad[0], float(call.running_var[bad[0]]))


def _rows(call):  # S1, S12: a row for each channel, the mask of kept values, and their number
    kept = torch.ones((), dtype=torch.bool) if call.where is None else call.where
    rows, kept = (a.movedim(call.axis, 0).flatten(1) for a in (call.x, kept.expand(call.x.shape)))
    return rows.contiguous().double().where(kept, 0), kept, kept.sum(1, keepdim=True)


def _measure(rows, kept, n, eps):  # S2, in units of a power of two, so that no square overflows (S10)
    m = n.clamp_min(1)
    m1 = (rows * 2.0**-32).sum(1, keepdim=True) / m * 2.0**32  # a sum of 2^32 values is in range
    d = (rows - m1).where(kept, 0)
    largest = torch.nn.functional.pad(d.abs(), (0, 1), value=eps**0.5).amax(1, keepdim=True)
    power = torch.exp2(-torch.frexp(largest).exponent.clamp(-1021, 1022).double())
    delta = (d * power).sum(1, keepdim=True) / m
    c = (d * power - delta).where(kept, 0)
    v = (c * c).sum(1, keepdim=True) / m
    return c, v + eps * power * power, m1 + delta / power, v / power / power


def _update(old, batch, momentum, n):  # S4: exact where momentum is 0 or 1
    terms = (weight * a for weight, a in ((momentum, old.double()), (1 - momentum, batch[:, 0])) if weight)
    return sum(terms).to(old.dtype).where(n[:, 0] > 0, old)
