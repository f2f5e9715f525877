"""xarray in one screen: labelled arrays of any library. What computes is the backend of the arrays inside."""

import numpy as np
import xarray

from polybn.arguments import dtype_name
from polybn.dispatch import backend_of
from polybn.spec import Affine, BatchNormResult, Description, Gradients, Moments, SecondGradients, Traits

name = "xarray"
traits = Traits(library="xarray")


def why_not():
    return None  # what imports xarray can compute with NumPy arrays inside


def describe():
    return {"xarray": xarray.__version__, "numpy": np.__version__, "device": "cpu"}


def inspect(value):  # Variable and Dataset mean something else
    return Description(value.shape, dtype_name(value.dtype)) if type(value) is xarray.DataArray else None


def asarray(host):
    return xarray.DataArray(np.array(host))


def to_numpy(array):
    return np.array(array.values)


def forward(call, *, differentiable):
    inner, bare = _bare(call)
    (y, *running), residuals = inner.forward(bare, differentiable=differentiable)
    return BatchNormResult(call.x.copy(data=y), *_named(running, call)), residuals


def backward(call, residuals, dy):
    inner, bare = _bare(call)
    dx, *rest = inner.backward(bare, residuals, dy.data)
    return Gradients(call.x.copy(data=dx), *_named(rest, call))


def double_backward(call, residuals, dy, cotangents):
    inner, bare = _bare(call)
    ddy, dx, *rest = inner.double_backward(bare, residuals, dy.data, Gradients(*map(_data, cotangents)))
    return SecondGradients(dy.copy(data=ddy), call.x.copy(data=dx), *_named(rest, call))


def moments(call):
    inner, bare = _bare(call)
    return Moments(*_named(inner.moments(bare), call))


def merge_moments(a, b):
    inner = backend_of("merge_moments", a=a.mean.data, b=b.mean.data)
    merged = inner.merge_moments(Moments(*map(_data, a)), Moments(*map(_data, b)))
    return Moments(*(like.copy(data=value) for like, value in zip(a, merged, strict=True)))


def fold(call):
    inner, bare = _bare(call)
    return Affine(*(call.running_mean.copy(data=vector) for vector in inner.fold(bare)))


def _data(array):
    return None if array is None else array.data


def _bare(call):  # the call without labels, and the backend of what is inside
    arrays = {name: _data(getattr(call, name)) for name in call._fields[1:7]}
    return backend_of(call.function, **arrays), call._replace(**arrays)


def _named(vectors, call):  # one value per channel: the labels of the channel axis
    dim = call.x.dims[call.axis]
    labels = {key: label for key, label in call.x.coords.items() if label.dims == (dim,)}
    return [None if v is None else xarray.DataArray(v, dims=(dim,), coords=labels) for v in vectors]
