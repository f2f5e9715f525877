"""Faults of memory within a call: strides, aliases, writes to arguments, and the form of results."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tests.sabotage.mutant import mutant
from tests.sabotage.reference import Array, Reference

R = Reference


def in_memory_order(a: Array) -> Array:
    """Read an array's elements in the order of memory, as if it had C order."""
    return a.ravel(order="K").reshape(a.shape)


def as_laid_out(a: Array, like: Array) -> Array:
    """Read the memory of one array in the order of another's axes."""
    order = np.argsort([-abs(s) for s in like.strides], kind="stable")
    memory = a.ravel(order="K").reshape([a.shape[i] for i in order])
    return memory.transpose(np.argsort(order))


def packed(vector: Array) -> Array:
    """Read a vector's memory as if it had no gaps."""
    stride = vector.strides[0] if vector.size else 0
    if stride > vector.itemsize:
        return np.lib.stride_tricks.as_strided(vector, strides=(vector.itemsize,)).copy()
    return vector[::-1] if stride < 0 else vector


def overwrite(target: Array, source: Array) -> None:
    """Write to memory in spite of a read-only flag, as C code does."""
    if target.size and target.flags.c_contiguous:
        ctypes.memmove(target.ctypes.data, np.ascontiguousarray(source, target.dtype).ctypes.data, target.nbytes)


def on_arguments(method: str, change: Any) -> dict[str, Any]:
    """Change the arguments of a method; ``change`` gets the arrays and returns them."""
    return {method: lambda self, *arrays, **options: getattr(R, method)(self, *change(*arrays), **options)}


def on_results(method: str, change: Any) -> dict[str, Any]:
    """Change what a method returns; ``change`` gets the adapter, the arrays given and the result."""

    def step(self: Any, *arrays: Array, **options: Any) -> Any:
        result = getattr(R, method)(self, *arrays, **options)
        return change(self, arrays, result)

    return {method: step}


def writes(method: str, place: int, value: Any) -> dict[str, Any]:
    """Write ``value(arrays, result)`` over an argument after the call."""

    def change(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
        overwrite(arrays[place], value(arrays, result))
        return result

    return on_results(method, change)


def raises_if(method: str, place: int, bad: Any, words: str) -> dict[str, Any]:
    """Refuse a good argument: these faults raise."""

    def step(self: Any, *arrays: Array, **options: Any) -> Any:
        if bad(arrays[place]):
            raise RuntimeError(words)
        return getattr(R, method)(self, *arrays, **options)

    return {method: step}


def beta_aliased(x: Array, gamma: Array, beta: Array, mean: Array, var: Array) -> Any:
    return x, gamma, (beta + 1 if np.shares_memory(beta, mean) else beta), mean, var


def cotangent_aliased(x: Array, gamma: Array, beta: Array, dy: Array) -> Any:
    return x, gamma, beta, (dy * 2 if np.shares_memory(x, dy) else dy)


def half_strided(x: Array, *rest: Array) -> Any:
    return (in_memory_order(x) if x.dtype.itemsize == 2 else x), *rest


LAYOUT = (
    mutant("x-strides-ignored", "x is read in the order of memory.", "strides", "pytorch#107199",
           load=lambda self, x, axis: R.load(self, in_memory_order(x), axis)),
    mutant("x-strides-ignored-in-backward", "The gradient reads x in the order of memory.", "strides", "",
           **on_arguments("vjp", lambda x, *rest: (in_memory_order(x), *rest))),
    mutant("x-strides-ignored-in-inference", "Inference reads half types in the order of memory.", "strides",
           "pytorch#62594", **on_arguments("infer", half_strided)),
    mutant("dy-strides-ignored", "dy is read in the order of memory.", "strides", "",
           load_cotangent=lambda self, dy, axis: R.load(self, in_memory_order(dy), axis)),
    mutant("dy-laid-out-like-x", "dy is read by the strides of x.", "strides", "pytorch#64039, pytorch#64100",
           **on_arguments("vjp", lambda x, gamma, beta, dy: (x, gamma, beta, as_laid_out(dy, x)))),
    mutant("dy-strides-raise", "A dy that is not contiguous is refused.", "strides", "pytorch#42588, pytorch#2000",
           crashes=True, **raises_if("vjp", 3, lambda dy: not dy.flags.c_contiguous, "bad parameter")),
    mutant("gamma-strides-ignored", "gamma is read without its gaps.", "strides", "",
           **on_arguments("train", lambda x, gamma, *rest: (x, packed(gamma), *rest))),
    mutant("running-strides-ignored", "Running statistics are read without their gaps.", "strides", "",
           **on_arguments("train", lambda x, gamma, beta, *running: (x, gamma, beta, *map(packed, running)))),
    mutant("beta-is-mean", "An array that is both beta and running mean is updated before it is added.", "aliases",
           "tt-metal#45578", **on_arguments("train", beta_aliased)),
    mutant("dy-is-x", "An array that is both x and dy is read twice too large.", "aliases", "",
           **on_arguments("vjp", cotangent_aliased)),
)  # fmt: skip

WRITES = (
    mutant("x-overwritten", "y is written over x.", "writes", "FlagGems#6332, FlagGems#6435",
           **writes("train", 0, lambda arrays, result: result[0])),
    mutant("gamma-overwritten", "gamma is set to 1.", "writes", "mxnet#9624",
           **writes("train", 1, lambda arrays, result: np.ones_like(arrays[1]))),
    mutant("running-overwritten", "The running mean is updated in place, too.", "writes", "",
           **writes("train", 3, lambda arrays, result: result[1])),
    mutant("dy-overwritten", "dx is written over dy.", "writes", "",
           **writes("vjp", 3, lambda arrays, result: result[0])),
    mutant("inference-writes", "Inference moves the running mean.", "writes", "",
           **writes("infer", 3, lambda arrays, result: arrays[3] + 1)),
    mutant("running-aliased", "With momentum = 1, the running statistics handed back are the ones given.", "aliases",
           "", train=lambda self, *arrays, **options: (
               (R.train(self, *arrays, **options)[0], *arrays[3:]) if options["momentum"] == 1
               else R.train(self, *arrays, **options))),
    mutant("empty-aliased", "With N = 0, y is x, and the running statistics are the ones given.", "aliases", "",
           no_values=lambda self, x, mean, var: (x, mean, var)),
)  # fmt: skip


def cast(method: str, place: int, dtype: Any) -> dict[str, Any]:
    """Return one result in another dtype; ``dtype`` gets the dtype of x."""

    def change(self: Any, arrays: tuple[Array, ...], result: Any) -> Any:
        results = list(result) if isinstance(result, tuple) else [result]
        results[place] = results[place].astype(dtype(arrays[0].dtype))
        return tuple(results) if isinstance(result, tuple) else results[0]

    return on_results(method, change)


def at_least_single(dtype: Any) -> Any:
    return np.float32 if dtype.itemsize == 2 else dtype


RETURNS = (
    mutant("y-wide", "y of a half type is float32.", "dtype", "", **cast("train", 0, at_least_single)),
    mutant("y-single", "y of float64 is float32.", "dtype", "",
           **cast("train", 0, lambda dtype: np.float32 if dtype == np.float64 else dtype)),
    mutant("y-wide-in-inference", "Inference returns float32 for half types.", "dtype", "",
           **cast("infer", 0, at_least_single)),
    mutant("dx-wide", "dx of a half type is float32.", "dtype", "", **cast("vjp", 0, at_least_single)),
    mutant("running-like-x", "The running variance has the dtype of x.", "dtype", "",
           **cast("train", 2, lambda dtype: dtype)),
    mutant("running-double", "A Python number promotes the running mean to float64.", "dtype", "",
           **cast("train", 1, lambda dtype: np.float64)),
    mutant("dgamma-like-x", "dgamma has the dtype of x.", "dtype", "", **cast("vjp", 1, lambda dtype: dtype)),
    mutant("y-flat", "y comes back as channel rows.", "shape", "",
           store=lambda self, rows, x, axis: rows.astype(x.dtype)),
    mutant("statistics-missing", "The updated statistics are not handed back.", "shape", "",
           train=lambda self, *arrays, **options: R.train(self, *arrays, **options)[0]),
)  # fmt: skip
