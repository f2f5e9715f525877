"""PyTorch in one screen: batch norm in float64, on rows of one channel each, written for clarity and not for speed."""

import torch

from polybn import arguments
from polybn.spec import Affine, BackendError, BatchNormResult, Gradients, Moments

name = "torch"


def why_not():
    return None if batch_norm(torch.tensor([[1.0], [3.0]]), training=True, eps=0).y[1] == 1 else "its result is wrong"


def describe():
    return {"torch": torch.__version__, "device": "cpu"}


def asarray(host):  # NumPy's bfloat16 and PyTorch's meet in float32
    return torch.tensor(host.astype("float32")).bfloat16() if host.dtype.kind == "V" else torch.tensor(host.copy())


def to_numpy(array):
    common = array.float() if array.dtype == torch.bfloat16 else array
    return common.numpy(force=True).astype(arguments.dtype_name(array.dtype))


def batch_norm(
    x, gamma=None, beta=None, running_mean=None, running_var=None, *, training, momentum=0.9, eps=1e-5, axis=1,
    running_variance="biased", where=None, function="batch_norm",
):  # fmt: skip
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var, "where": where}
    options = {"momentum": momentum, "eps": eps, "axis": axis, "running_variance": running_variance}
    arguments.check_arrays(function, "PyTorch", torch.is_tensor, x=x, **arrays)
    arguments.check_batch_norm(function, x, **arrays, **options, training=training)
    rows, kept, n = _rows(x, axis, where)
    if training:
        if running_variance == "unbiased" and (n == 1).any():
            arguments.fail_single_value(function, f"where keeps one value in channel {int((n == 1).int().argmax())}")
        c, square, mean, v = _measure(rows, kept, n, eps)
        v = v * (n / (n - 1).clamp_min(1)) if running_variance == "unbiased" else v
        new = [a if a is None else _update(a, b, momentum, n) for a, b in ((running_mean, mean), (running_var, v))]
    else:
        bad = (~((running_var >= 0) & (running_var < torch.inf))).nonzero().flatten().tolist()
        if bad:
            arguments.check_negative_variance(function, len(bad), bad[0], float(running_var[bad[0]]))
        c, square = rows - running_mean[:, None], running_var.double()[:, None] + eps
        new = [running_mean.clone(), running_var.clone()]
    r = (1 / square.where(square != 0, 1).sqrt()).where(square != 0, 0)  # S3
    y = c * r * (1 if gamma is None else gamma[:, None]) + (0 if beta is None else beta[:, None])
    return BatchNormResult(y.where(kept, 0).reshape(x.movedim(axis, 0).shape).movedim(0, axis).to(x.dtype), *new)


def batch_norm_vjp(x, gamma=None, beta=None, running_mean=None, running_var=None, **options):
    result = batch_norm(x, gamma, beta, running_mean, running_var, **options, function="batch_norm_vjp")
    given = {"x": x, "gamma": gamma, "beta": beta}
    given |= {} if options["training"] else {"running_mean": running_mean, "running_var": running_var}

    def pullback(dy):  # S13: the derivative is PyTorch's own
        arguments.check_arrays("batch_norm_vjp", "PyTorch", torch.is_tensor, dy=dy)
        arguments.check_dy(dy, x)
        held = {name: array for name, array in given.items() if array is not None}
        _, back = torch.func.vjp(lambda held: batch_norm(**held, **options).y, held)
        return Gradients(**dict.fromkeys(given) | back(dy)[0])

    return result, pullback


def moments(x, *, axis=1, where=None):
    arguments.check_arrays("moments", "PyTorch", torch.is_tensor, x=x, where=where)
    problem = arguments.check_moments("moments", x, axis=axis, where=where)
    rows, kept, n = _rows(x, axis, where)
    _, _, mean, v = _measure(rows, kept, n, 0.0)
    return Moments(n[:, 0], *(a[:, 0].to(getattr(torch, problem.dtype)) for a in (mean, v * n)))


def merge_moments(a, b):  # S15
    arguments.check_merge_moments("PyTorch", torch.is_tensor, a, b)
    n = a.count + b.count
    apart = (b.mean.double() - a.mean).where(a.count * b.count > 0, 0)
    mean = a.mean.where(a.count > 0, b.mean) + apart * b.count / n.clamp_min(1)
    m2 = a.m2.double() + b.m2 + apart * apart * a.count * b.count / n.clamp_min(1)
    return Moments(n, mean.to(a.mean.dtype), m2.to(a.m2.dtype))


def fold(gamma, beta, running_mean, running_var, *, eps=1e-5):  # what inference makes of 1 around 0, and of 0
    arrays = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    arguments.check_arrays("fold", "PyTorch", torch.is_tensor, **arrays)
    arguments.check_fold(**arrays, eps=eps)
    zero, options = torch.zeros_like(running_mean), {"training": False, "eps": eps, "function": "fold"}
    scale = batch_norm(zero[None] + 1, gamma, None, zero, running_var, **options).y[0]
    return Affine(scale, shift=batch_norm(zero[None], **arrays, **options).y[0])


def compile(network, state, *, batch_size):
    raise BackendError("polybn.train: backend must train networks; got 'torch' (this one has batch norm alone)")


def _rows(x, axis, where):  # S1, S12: a row for each channel, which values are kept, how many they are
    kept = torch.ones((), dtype=torch.bool) if where is None else where
    rows, kept = (a.movedim(axis, 0).flatten(1) for a in (x, kept.expand(x.shape)))
    return rows.contiguous().double().where(kept, 0), kept, kept.sum(1, keepdim=True)


def _measure(rows, kept, n, eps):  # S2, in units of a power of two that no square overflows in (S10)
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
