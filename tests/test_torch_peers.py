"""The samples for batch norm in PyTorch's own package: results, first and second derivatives, modules."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import polybn
from tests.conftest import REASONS

if REASONS.get("torch", "absent") is not None:
    pytest.skip(f"torch: {REASONS.get('torch', 'absent')}", allow_module_level=True)
pytest.importorskip("expecttest", reason="PyTorch's samples need expecttest")

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import polybn_torch

OP = next(op for op in op_db if op.name == "nn.functional.batch_norm")
MODULES = [info for info in module_db if info.module_cls.__name__ in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")]


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, list[Any], dict[str, Any]]]:
    """Yield input, (running_mean, running_var, weight, bias) and options of each sample."""
    for sample in OP.sample_inputs("cpu", dtype, requires_grad=True):
        vectors = [*sample.args, None, None, None, None][:4]
        yield sample.input, vectors, {"training": False, "momentum": 0.1, "eps": 1e-5} | sample.kwargs


def is_ours(x: Any, options: dict[str, Any]) -> bool:
    """Skip samples outside S1 and S4: inputs without a channel axis, and a momentum below 0."""
    return x.dim() >= 2 and (not options["training"] or 0 <= options["momentum"] <= 1)


def call(x: Any, vectors: list[Any], options: dict[str, Any]) -> Any:
    mean, var, weight, bias = vectors
    return polybn.batch_norm(
        x, weight, bias, mean, var, training=options["training"], eps=options["eps"],
        momentum=1 - options["momentum"] if options["training"] else 1.0, running_variance="unbiased",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_of_the_function_give_what_pytorch_gives(dtype: torch.dtype) -> None:
    bound, seen = (2e-6, 1e-14)[dtype == torch.float64], 0
    for x, vectors, options in samples(dtype):
        if not is_ours(x, options):
            continue
        result, copies = call(x, vectors, options), [None if v is None else v.detach().clone() for v in vectors[:2]]
        expected = torch.nn.functional.batch_norm(x, *copies, *vectors[2:], **options)
        torch.testing.assert_close(result.y, expected, atol=bound, rtol=bound)
        for mine, theirs in zip(result[1:], copies, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, atol=bound, rtol=bound)
        seen += 1
    assert seen == OURS


def test_samples_of_the_function_pass_gradcheck_and_gradgradcheck() -> None:
    seen = 0
    for x, vectors, options in samples(torch.float64):
        if not is_ours(x, options):
            continue
        mean, var = (None if v is None else v.detach() for v in vectors[:2])

        def function(x: Any, *rest: Any, mean: Any = mean, var: Any = var, options: Any = options) -> Any:
            return call(x, [mean, var, *rest], options).y

        inputs = (x, *vectors[2:])
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
        seen += 1
    assert seen == OURS


OURS = 9
"""The number of the 12 samples within the specification: two have no channel axis, one a momentum of -1."""


def made(info: Any, *, training: bool, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, Any, Any]]:
    """Yield PyTorch's module, PolyBN's in the same state, and an input."""
    given = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    for one in given:
        args, options = one.constructor_input.args, one.constructor_input.kwargs
        theirs = info.module_cls(*args, **options).to(dtype).train(training)
        mine = getattr(polybn_torch, info.module_cls.__name__)(*args, **options).to(dtype).train(training)
        mine.load_state_dict(theirs.state_dict())
        yield theirs, mine, one.forward_input.args[0]


def name_of(info: Any) -> str:
    return str(info.module_cls.__name__)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", MODULES, ids=name_of)
def test_modules_give_what_pytorch_gives_in_every_sample(info: Any, training: bool) -> None:
    seen = 0
    for theirs, mine, x in made(info, training=training):
        for _ in range(2):
            torch.testing.assert_close(mine(x), theirs(x), atol=1e-13, rtol=1e-13)
        states = mine.state_dict(), theirs.state_dict()
        assert list(states[0]) == list(states[1])
        for key in states[0]:
            torch.testing.assert_close(states[0][key], states[1][key], atol=1e-13, rtol=1e-13)
        theirs.load_state_dict(states[0])
        assert repr(mine) == repr(theirs)
        again = pickle.loads(pickle.dumps(mine))
        assert torch.equal(again.eval()(x), mine.eval()(x))
        spaced = x.detach().repeat_interleave(2, dim=-1)[..., ::2]
        assert torch.equal(mine(spaced), mine(x))
        seen += 1
    assert seen >= 7


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", MODULES, ids=name_of)
def test_modules_pass_gradcheck_and_gradgradcheck_in_every_sample(info: Any, training: bool) -> None:
    for _, mine, x in made(info, training=training):
        names = [name for name, _ in mine.named_parameters()]
        state = {name: value.detach().clone() for name, value in mine.named_buffers()}

        def function(x: Any, *values: Any, mine: Any = mine, names: Any = names, state: Any = state) -> Any:
            buffers = {name: value.clone() for name, value in state.items()}
            return torch.func.functional_call(mine, {**dict(zip(names, values, strict=True)), **buffers}, (x,))

        small = x.detach()[:3, :, *[slice(2)] * (x.dim() - 2)].clone().requires_grad_()
        inputs = (small, *mine.parameters())
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("info", MODULES, ids=name_of)
def test_modules_refuse_what_pytorch_refuses_in_its_words(info: Any) -> None:
    given = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    seen = 0
    for one in given:
        inputs = one.module_error_input
        module = getattr(polybn_torch, name_of(info))(*inputs.constructor_input.args, **inputs.constructor_input.kwargs)
        with pytest.raises(one.error_type, match=one.error_regex):
            module(*inputs.forward_input.args, **inputs.forward_input.kwargs)
        seen += 1
    assert seen
