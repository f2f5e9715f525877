"""MXNet's tape: how a call is recorded so that ``backward`` runs clause S13.

``mxnet.autograd.Function`` is not used: its backward returns at the first argument whose ``grad_req`` is null
and leaves the gradients after it unwritten, and it ignores ``grad_req="add"`` (mxnet/autograd.py, 1.9.1).
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import traceback
from typing import TYPE_CHECKING, Any

from polybn_mxnet import memory
from polybn_mxnet.compat import mxnet as mx

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from polybn.spec import Array
    from polybn_mxnet.derivatives import Call

NULL, WRITE, ADD = 0, 1, 3  # OpReqType of MXNet
_recorded: dict[int, tuple[Call, tuple[str, ...], Any]] = {}
_keys = itertools.count(1)


def paused() -> AbstractContextManager[Any]:
    """Keep what a call does out of the user's record."""
    scope: AbstractContextManager[Any] = mx.autograd.pause(train_mode=mx.autograd.is_training())
    return scope


def record(call: Call, y: Array) -> None:
    """Put a call on the tape, where one is running."""
    if not mx.autograd.is_recording():
        return
    inputs: dict[str, Any] = {name: array for name, array in call.arrays.items() if call.carries_gradient(name)}
    key = next(_keys)
    entry = mx.base.MXCallbackList(2, _CALLBACKS, (ctypes.c_void_p * 2)(key, key))
    _recorded[key] = call, tuple(inputs), entry  # MXNet keeps the address of the entry
    handles = (ctypes.c_void_p * len(inputs))(*(array.handle.value for array in inputs.values()))
    mx.base.check_call(
        mx.base._LIB.MXCustomFunctionRecord(len(inputs), handles, 1, ctypes.byref(y.handle), ctypes.byref(entry))
    )


def _backward(outputs: int, inputs: int, pointers: Any, requests: Any, is_train: int, key: int) -> bool:
    """Fill in the gradients of one call; MXNet calls this from a thread of its own when dy is there."""
    try:
        call, names, _ = _recorded[key]
        dy, *gradients = (mx.nd.NDArray(mx.base.NDArrayHandle(pointers[i])) for i in range(1 + inputs))
        wanted = dict(zip(names, zip(gradients, requests[:inputs], strict=True), strict=True))
        differentiate(call, dy, {name: target for name, target in wanted.items() if target[1] != NULL})
    except Exception:
        traceback.print_exc()
        return False
    return True


def differentiate(call: Call, dy: Array, wanted: dict[str, tuple[Array, int]]) -> None:
    """Write or add the gradients, by name, as MXNet requests."""
    dx, request = wanted.pop("x", (None, NULL))
    into = memory.empty(dx) if dx is not None and request == ADD else dx
    vectors = call.differentiate(dy, into)
    if into is not dx:
        memory.add(into, dx)
    for name, (gradient, request) in wanted.items():
        if request == ADD:
            memory.add(memory.send(vectors[name], gradient), gradient)
        else:
            memory.put(vectors[name], gradient)


def _forget(key: int) -> bool:
    _recorded.pop(key, None)
    return True


_BACKWARD = mx.autograd.Function._bwd_functype(_backward)
_FORGET = mx.autograd.Function._del_functype(_forget)
_CALLBACKS = (ctypes.CFUNCTYPE(ctypes.c_int) * 2)(
    *(ctypes.cast(function, ctypes.CFUNCTYPE(ctypes.c_int)) for function in (_BACKWARD, _FORGET))
)

# MXNet's thread waits for ever for an interpreter that has ended, and MXNet for its thread:
# https://github.com/apache/mxnet/pull/14451
atexit.register(mx.nd.waitall)
