"""Clause S13 over CuPy arrays: the pullback of one call, and the pullback of that pullback."""

from __future__ import annotations

import struct
from typing import Any

import cupy

from polybn.arguments import check_arrays, check_cotangents, check_dy, check_record
from polybn.spec import Gradients, SecondGradients
from polybn_cupy.calls import Call, check_device, is_array, pointers, sweep
from polybn_cupy.layout import pack_vector

Array = Any


class Pullback:
    """The derivative of one call of :func:`batch_norm_vjp`, as a function of ``dy``; call it as often as you like."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, dy: Array, /) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments, in one kernel.

        Parameters
        ----------
        dy : cupy.ndarray
            Shape ``(N, C, ...)`` and dtype of ``y``.

        Returns
        -------
        Gradients
            ``x`` in shape and dtype of ``x``; the others shape ``(C,)`` in the dtype of the statistics.

        Raises
        ------
        BackendError, ShapeError, DTypeError
            If ``dy`` is not a CuPy array of that shape and dtype, on the device of ``x``.
        """
        call = self._call
        check_arrays("batch_norm_vjp", "CuPy", is_array, dy=dy)
        check_dy(dy, call.x)
        with check_device("batch_norm_vjp", x=call.x, dy=dy):
            dx = cupy.empty_like(call.x)
            wanted = (call.gamma is not None, call.beta is not None, not call.training, not call.training)
            vectors = [_vector(call, want) for want in wanted]
            if call.x.size:
                tail = pointers(*vectors) + struct.pack("<q", call.training)
                sweep(call, "backward", (call.x, dy), (dx,), tail)
            return Gradients(dx, *vectors)

    def vjp(self, dy: Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them."""
        return self(dy), SecondPullback(self._call, dy)


class SecondPullback:
    """The derivative of a pullback: from cotangents of :class:`Gradients` to cotangents of its arguments.

    The formulas are in ``kernels/second.cu``.
    """

    def __init__(self, call: Call, dy: Array) -> None:
        self._call, self._dy = call, dy

    def __call__(self, cotangents: Gradients, /) -> SecondGradients:
        """Map cotangents of the gradients (None stands for 0) to cotangents of ``dy`` and the arguments."""
        call, dy = self._call, self._dy
        check_record("batch_norm_vjp", "cotangents", cotangents, Gradients)
        given = cotangents._asdict()
        check_arrays("batch_norm_vjp", "CuPy", is_array, **{f"the cotangent of {k}": v for k, v in given.items()})
        statistics = None if call.training or call.normalizers is None else call.normalizers[0]
        expected = {"x": call.x, "gamma": call.gamma, "beta": call.beta}
        check_cotangents(expected | {"running_mean": statistics, "running_var": statistics}, given)
        with check_device("batch_norm_vjp", x_of_the_call=call.x, **given):
            a = cupy.zeros_like(dy) if cotangents.x is None else cotangents.x
            of_dy, of_x = cupy.empty_like(dy), cupy.empty_like(call.x)
            vectors = [_vector(call, want) for want in (call.gamma is not None, not call.training, not call.training)]
            if call.x.size:
                tail = b"".join(map(pack_vector, cotangents[1:])) + pointers(*vectors)
                sweep(call, "second", (call.x, dy, a), (of_dy, of_x), tail + struct.pack("<q", call.training))
            return SecondGradients(of_dy, of_x, *vectors)


def _vector(call: Call, wanted: bool) -> Array | None:
    """Allocate a per-channel result, which the kernel writes; zeros where there is nothing to launch it for."""
    make = cupy.empty if call.x.size else cupy.zeros
    return make(call.problem.channels, call.problem.dtype) if wanted else None
