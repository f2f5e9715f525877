"""PolyBN on PyTorch tensors: a backend in one screen, from a package that PolyBN has never heard of."""

import numpy as np
import torch
import torch.nn.functional as F

from polybn import networks
from polybn.arguments import check_arrays, check_batch_norm, check_dy, check_fold, check_merge_moments, check_moments
from polybn.arguments import check_negative_variance, fail_single_value
from polybn.spec import Affine, BatchNormResult, Gradients, Moments, Steps

name = "torch"
BITS = {torch.bfloat16: torch.int16}  # NumPy has no bfloat16 of its own

def why_not():
    y = batch_norm(torch.tensor([[1.0], [3.0]]), training=True, eps=0).y
    return None if y.tolist() == [[-1.0], [1.0]] else f"batch_norm of [1, 3] gave {y.tolist()}"

def describe():
    return {"torch": torch.__version__, "device": f"cpu, {torch.get_num_threads()} threads"}

def asarray(host):
    host = np.array(host, order="C")
    half = host.dtype.name == "bfloat16"
    return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(host)

def to_numpy(array):
    array = array.detach().cpu()
    if array.dtype != torch.bfloat16:
        return np.array(array.numpy())
    import ml_dtypes
    return np.array(array.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)

def batch_norm(x, gamma=None, beta=None, running_mean=None, running_var=None, *, training, momentum=0.9, eps=1e-5,
               axis=1, running_variance="biased", where=None):
    return _run("batch_norm", x, gamma, beta, running_mean, running_var, training, momentum, eps, axis,
                running_variance, where)[0]

def batch_norm_vjp(x, gamma=None, beta=None, running_mean=None, running_var=None, *, training, momentum=0.9, eps=1e-5,
                   axis=1, running_variance="biased", where=None):
    result, (rows, back, centred, r, k, m) = _run("batch_norm_vjp", x, gamma, beta, running_mean, running_var, training,
                                                  momentum, eps, axis, running_variance, where)
    def pullback(dy):  # S13; made of PyTorch's operations, so that autograd has the second order
        check_arrays("batch_norm_vjp", "PyTorch", torch.is_tensor, dy=dy)
        check_dy(dy, x)
        g, xhat, scale = rows(dy), centred * r, _column(gamma, r)
        dbeta, dgamma = _sum(g), _sum(g * xhat)
        change = g - dbeta / m - xhat * (dgamma / m) if training else g
        dx = back(_times_power(scale * r * change.to(r.dtype), -k)).to(x.dtype)
        of_mean, of_var = -scale * r * dbeta, -scale * r * r * dgamma / 2
        parts = [None if a is None else d.flatten().to(r.dtype) for a, d in zip(
            (gamma, beta, None if training else running_mean, None if training else running_var),
            (dgamma, dbeta, of_mean, of_var), strict=True)]
        return Gradients(dx, *parts)
    return result, pullback

def moments(x, *, axis=1, where=None):
    check_arrays("moments", "PyTorch", torch.is_tensor, x=x, where=where)
    problem = check_moments("moments", x, axis=axis, where=where)
    rows, _, count = _layout(x, problem, where)
    _, m1, delta, v, k = _centre(rows(x), count.clamp_min(1), 0.0, rows.kept)
    return Moments(count.flatten(), _times_power(m1 + delta, k).flatten(), _times_power(v * count, 2 * k).flatten())
