"""Record a call on MXNet's tape, so that ``backward`` runs clause S13.

``mxnet.autograd.Function`` is not used: its backward returns at the first argument whose ``grad_req`` is null
and leaves the gradients after it unwritten, and it ignores ``grad_req="add"`` (mxnet/autograd.py, 1.9.1).
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

from polybn.spec import Array
from polybn_mxnet import arrays
from polybn_mxnet.compat import mxnet as mx

NULL, WRITE, ADD = 0, 1, 3  # OpReqType of MXNet
Pull: TypeAlias = Callable[[Sequence[Array], Mapping[str, Array]], None]
"""A function that writes the wanted gradients, by name, for cotangents of all outputs."""


class Recorded(NamedTuple):
    """A call on the tape, which MXNet refers to by a number."""

    pull: Pull
    inputs: tuple[str, ...]
    entry: Any
    """The C structure whose address MXNet holds; it must stay alive."""


_recorded: dict[int, Recorded] = {}
_keys = itertools.count(1)


def is_recording() -> bool:
    """Return whether MXNet's tape is recording."""
    return bool(mx.autograd.is_recording())


def paused() -> AbstractContextManager[Any]:
    """Pause the tape within this block."""
    scope: AbstractContextManager[Any] = mx.autograd.pause(train_mode=mx.autograd.is_training())
    return scope


def record(pull: Pull, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
    """Put a call on the running tape."""
    key = next(_keys)
    entry = mx.base.MXCallbackList(2, _CALLBACKS, (ctypes.c_void_p * 2)(key, key))
    _recorded[key] = Recorded(pull, tuple(inputs), entry)
    given, made = ((ctypes.c_void_p * len(z))(*(a.handle.value for a in z)) for z in (inputs.values(), outputs))
    mx.base.check_call(mx.base._LIB.MXCustomFunctionRecord(len(given), given, len(made), made, ctypes.byref(entry)))


def _backward(outputs: int, inputs: int, pointers: Any, requests: Any, is_train: int, key: int) -> bool:
    """Write the gradients of one call; MXNet calls this from a thread of its own when the cotangents are computed."""
    try:
        call = _recorded[key]
        given = [mx.nd.NDArray(mx.base.NDArrayHandle(pointers[i])) for i in range(outputs + inputs)]
        targets = zip(given[outputs:], requests[:inputs], strict=True)
        write_gradients(call.pull, given[:outputs], dict(zip(call.inputs, targets, strict=True)))
    except Exception:
        traceback.print_exc()
        return False
    return True


def write_gradients(pull: Pull, cotangents: Sequence[Array], wanted: Mapping[str, tuple[Array, int]]) -> None:
    """Write or add the gradients, by name, as MXNet requests."""
    adding = {name: target for name, (target, request) in wanted.items() if request == ADD}
    writing = {name: target for name, (target, request) in wanted.items() if request == WRITE}
    parts = {name: arrays.empty(target) for name, target in adding.items()}
    pull(cotangents, writing | parts)
    for name, target in adding.items():
        arrays.add(parts[name], target)


def _forget(key: int, recorded: dict[int, Recorded] = _recorded) -> bool:
    # The dictionary is an argument, because at exit MXNet may call this when the module's names are already deleted.
    recorded.pop(key, None)
    return True


_BACKWARD = mx.autograd.Function._bwd_functype(_backward)
_FORGET = mx.autograd.Function._del_functype(_forget)
_CALLBACKS = (ctypes.CFUNCTYPE(ctypes.c_int) * 2)(
    *(ctypes.cast(function, ctypes.CFUNCTYPE(ctypes.c_int)) for function in (_BACKWARD, _FORGET))
)

# Without this, a callback that is pending at exit waits forever for the ended interpreter, and MXNet for the callback:
# https://github.com/apache/mxnet/pull/14451
atexit.register(mx.nd.waitall)
