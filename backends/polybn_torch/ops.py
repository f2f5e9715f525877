"""Batch norm as operators of PyTorch: autograd differentiates them twice, ``torch.compile`` calls them unchanged.

All results of an operator are tensors, so an absent result is an empty tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from polybn.arguments import Arrays
from polybn.spec import Arguments, Gradients
from polybn_torch import host, operators

ARRAYS = "Tensor x, Tensor? gamma, Tensor? beta, Tensor? running_mean, Tensor? running_var, Tensor? where"
OPTIONS = "bool training, float momentum, float eps, bool unbiased, int axis, str function"
SAVED = "Tensor saved, Tensor? counts, Tensor dy"
COTANGENTS = "Tensor? a, Tensor? b, Tensor? c, Tensor? e, Tensor? f"
FIVE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"

_library = torch.library.Library("polybn", "DEF")
_library.define(f"normalize({ARRAYS}, *, {OPTIONS}) -> {FIVE}")
_library.define(f"differentiate({ARRAYS}, {SAVED}, *, {OPTIONS}) -> {FIVE}")
_library.define(f"differentiate_twice({ARRAYS}, {SAVED}, {COTANGENTS}, *, {OPTIONS}) -> {FIVE}")


def normalize(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    """Return ``y``, both running statistics, saved statistics and counts."""
    arguments = arguments_of(arrays, options)
    *found, counts = _form(arguments.x).forward(arguments)
    counts = arguments.x.new_empty(0, dtype=torch.int64) if counts is None else counts
    return *_tensors(arguments.x, found), counts


def differentiate(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the five arguments that have one."""
    arguments, (saved, counts, dy) = arguments_of(arrays[:6], options), arrays[6:]
    return _tensors(arguments.x, _form(arguments.x, saved).backward(arguments, saved, counts, dy))


def differentiate_twice(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    """Return the gradients of ``dy``, ``x``, ``gamma`` and both running statistics."""
    arguments, (saved, counts, dy), cotangents = arguments_of(arrays[:6], options), arrays[6:9], arrays[9:]
    found = _form(arguments.x, saved).double_backward(arguments, saved, counts, dy, Gradients(*cotangents))
    return _tensors(arguments.x, found)


def normalized(arguments: Arguments) -> tuple[Any, ...]:
    """Return the five results for a call: of the operator, or of PyTorch's own operations where it cannot serve.

    An operator has no derivative in forward mode and none for ``torch.func``; what it is made of has.
    """
    if transformed(*arguments[1:6]):
        *found, counts = operators.forward(arguments)
        return *found, arguments.x.new_empty(0, dtype=torch.int64) if counts is None else counts
    return torch.ops.polybn.normalize(*arguments[1:7], **options_of(arguments))


def differentiated(arguments: Arguments, saved: Tensor, counts: Tensor | None, dy: Tensor) -> Any:
    """Return the gradients of the five arguments, in the same way."""
    if not transformed(*arguments[1:6], dy):
        return torch.ops.polybn.differentiate(*arguments[1:7], saved, counts, dy, **options_of(arguments))
    if _form(arguments.x, saved) is host:
        raise NotImplementedError(
            "polybn.batch_norm_vjp: forward mode and torch.func must begin before the call; got a pullback from "
            "outside (call batch_norm_vjp inside of the function that is transformed)"
        )
    return operators.backward(arguments, saved, None, dy)


def transformed(*tensors: Tensor | None) -> bool:
    """Return whether forward mode or a transform of ``torch.func`` looks at tensors."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def arguments_of(arrays: tuple[Tensor | None, ...], options: dict[str, Any]) -> Arguments:
    """Return the checked arguments as one record again."""
    x, axis = arrays[0], options["axis"]
    assert x is not None
    channels, dtype = x.shape[axis], "float64" if x.dtype == torch.float64 else "float32"
    numbers = options["training"], options["momentum"], options["eps"], options["unbiased"]
    m = x.numel() // channels if channels else 0
    return Arguments(options["function"], *Arrays(*arrays), *numbers, axis, channels, m, dtype)


def options_of(arguments: Arguments) -> dict[str, Any]:
    """Return the options of a call in the form for the operators."""
    return {word: getattr(arguments, word) for word in ("training", "momentum", "eps", "unbiased", "axis", "function")}


def _form(x: Tensor, saved: Tensor | None = None) -> Any:
    """Choose the implementation; a derivative uses the one that computed the statistics."""
    if saved is None:
        return host if host.serves(x) else operators
    return host if saved.shape[0] == host.LINES else operators


def _tensors(x: Tensor, found: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if tensor is None else tensor for tensor in found)


def _or_none(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


# Shapes only, for torch.compile.


def _vectors(arguments: Arguments, *wanted: bool) -> tuple[Tensor, ...]:
    dtype = torch.float64 if arguments.dtype == "float64" else torch.float32
    return tuple(arguments.x.new_empty(arguments.channels if want else 0, dtype=dtype) for want in wanted)


def _shape_normalize(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    arguments = arguments_of(arrays, options)
    x, tracked, form = arguments.x, arguments.running_mean is not None, _form(arguments.x)
    saved = x.new_empty((form.LINES, arguments.channels), dtype=form.saved_dtype(x))
    counts = x.new_empty(arguments.channels if form is host and arguments.where is not None else 0, dtype=torch.int64)
    return torch.empty_like(x), *_vectors(arguments, tracked, tracked), saved, counts


def _shape_differentiate(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    arguments = arguments_of(arrays[:6], options)
    wanted = (arguments.gamma is not None, arguments.beta is not None, *[not arguments.training] * 2)
    return torch.empty_like(arguments.x), *_vectors(arguments, *wanted)


def _shape_differentiate_twice(*arrays: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    arguments = arguments_of(arrays[:6], options)
    wanted = (arguments.gamma is not None, *[not arguments.training] * 2)
    return torch.empty_like(arrays[8]), torch.empty_like(arguments.x), *_vectors(arguments, *wanted)


# Derivatives, for autograd.


def _save(ctx: Any, inputs: Any, keyword_only_inputs: dict[str, Any], output: Any) -> None:
    x, gamma, beta, mean, var, where = inputs
    if keyword_only_inputs["training"]:  # training may overwrite them before the backward pass
        mean = var = None
    ctx.options = keyword_only_inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, gamma, beta, mean, var, where, output[3], _or_none(output[4]))


def _pull(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Differentiate ``normalize``; running statistics carry a gradient in inference only (S13)."""
    found = torch.ops.polybn.differentiate(*ctx.saved_tensors, dy, **ctx.options)
    return *_wanted(ctx, found), None


def _save_twice(ctx: Any, inputs: Any, keyword_only_inputs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
    ctx.options = keyword_only_inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _pull_twice(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    ddy, *found = torch.ops.polybn.differentiate_twice(*ctx.saved_tensors, *cotangents, **ctx.options)
    dx, dgamma, dmean, dvar = _wanted(ctx, found, skip=(2,))
    return dx, dgamma, None, dmean, dvar, None, None, None, ddy


def _no_more(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "polybn.batch_norm: backward must be asked for at most twice; got a third time (there is no third derivative)"
    )


def _wanted(ctx: Any, found: Any, skip: tuple[int, ...] = ()) -> list[Tensor | None]:
    """Return gradients, without those of absent arguments."""
    places = [k for k in range(5) if k not in skip]
    given = ctx.saved_tensors
    return [
        None if given[k] is None or not ctx.needs_input_grad[k] else gradient
        for k, gradient in zip(places, found, strict=True)
    ]


def _register() -> None:
    for function, shape in (
        (normalize, _shape_normalize),
        (differentiate, _shape_differentiate),
        (differentiate_twice, _shape_differentiate_twice),
    ):
        _library.impl(function.__name__, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"polybn::{function.__name__}", shape, lib=_library)
    torch.library.register_autograd("polybn::normalize", _pull, setup_context=_save, lib=_library)
    torch.library.register_autograd("polybn::differentiate", _pull_twice, setup_context=_save_twice, lib=_library)
    torch.library.register_autograd("polybn::differentiate_twice", _no_more, lib=_library)


_register()
