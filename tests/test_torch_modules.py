"""PyTorch modules: state, dtypes and layouts, autograd, compilation, and conversion of models."""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import polybn
from tests.conftest import REASONS

if REASONS.get("torch", "absent") is not None:
    pytest.skip(f"torch: {REASONS.get('torch', 'absent')}", allow_module_level=True)

import torch
from torch.autograd import forward_ad

import polybn_torch
from polybn.spec import DomainError
from polybn_torch import ops

KINDS = [(polybn_torch.BatchNorm1d, (7, 3)), (polybn_torch.BatchNorm2d, (7, 3, 5, 11))]
KINDS += [(polybn_torch.BatchNorm1d, (7, 3, 13)), (polybn_torch.BatchNorm3d, (7, 3, 5, 2, 3))]
FORMS = [nullcontext, polybn.backend("torch").traits.variants["operators"]]
HALVES = [torch.float16, torch.bfloat16]


def far(shape: tuple[int, ...], seed: int = 0, dtype: Any = torch.float32) -> torch.Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).add(50).to(dtype)
    )


def peers(kind: Any, **options: Any) -> tuple[Any, Any]:
    mine = kind(3, **options)
    theirs = getattr(torch.nn, kind.__name__)(3, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(torch.randn(3, generator=generator))
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.3, "eps": 0.01}, {"affine": False},
                                     {"track_running_stats": False}])  # fmt: skip
@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_digits_and_state_are_those_of_pytorch(kind: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    mine, theirs = (module.double() for module in peers(kind, **options))
    for seed in range(3):
        x = far(shape, seed, torch.float64)
        torch.testing.assert_close(mine(x), theirs(x), atol=1e-12, rtol=1e-12)
    assert repr(mine) == repr(theirs)
    mine.eval(), theirs.eval()
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-12, rtol=1e-12)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value, atol=1e-12, rtol=1e-12)
    assert list(mine.state_dict()) == list(theirs.state_dict())


def test_state_is_saved_and_loaded_either_way() -> None:
    mine, theirs = peers(polybn_torch.BatchNorm2d)
    mine(far((7, 3, 5, 11)))
    for source, target in ((mine, theirs), (theirs, copy.deepcopy(mine))):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        target.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    assert theirs.num_batches_tracked == 1


@pytest.mark.parametrize("scope", FORMS)
def test_far_from_zero_the_module_is_accurate_where_pytorch_is_not(scope: Any) -> None:
    x = far((31, 3, 5, 7)) / 3 + 1e4
    exact = torch.nn.functional.batch_norm(x.double(), None, None, training=True)
    with scope():
        mine = polybn_torch.BatchNorm2d(3)(x)
    assert (mine - exact).abs().max() < 1e-6
    assert (torch.nn.BatchNorm2d(3)(x) - exact).abs().max() > 1e-5


@pytest.mark.parametrize("scope", FORMS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("cast", [True, False])
def test_half_types_store_and_do_not_compute(dtype: Any, cast: bool, scope: Any) -> None:
    """Half types work with parameters in float32 and with the whole module cast."""
    x = far((7, 3, 5, 11), dtype=dtype).requires_grad_()
    module = polybn_torch.BatchNorm2d(3)
    module = module.to(dtype) if cast else module
    with scope():
        y = module(x)
        y.sum().backward()
    expected = torch.nn.functional.batch_norm(x.detach().double(), None, None, training=True)
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= 4 * torch.finfo(dtype).eps
    assert module.running_mean.dtype == (dtype if cast else torch.float32)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert module.weight.grad.dtype == module.weight.dtype


@pytest.mark.parametrize("scope", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_stays_so(training: bool, scope: Any) -> None:
    x = far((7, 3, 5, 11))
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    module = polybn_torch.BatchNorm2d(3).train(training)
    with scope():
        y = module(last)
        y.square().sum().backward()
        assert torch.equal(y, module(x)) or training  # training changed the running statistics only
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert last.grad is not None
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scope", FORMS)
def test_the_function_is_differentiated_twice(training: bool, masked: bool, scope: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator).add(3).requires_grad_()
    vectors = [torch.rand(3, dtype=torch.float64, generator=generator).add(0.5) for _ in range(4)]
    for vector in vectors[: 2 if training else 4]:
        vector.requires_grad_()
    where = torch.rand(4, 1, 5, generator=generator) < 0.8 if masked else None

    def function(*arrays: Any) -> Any:
        return polybn.batch_norm(*arrays, training=training, where=where).y

    with scope():
        assert torch.autograd.gradcheck(function, (x, *vectors))
        assert torch.autograd.gradgradcheck(function, (x, *vectors))


def test_what_is_derived_from_statistics_is_differentiable_too() -> None:
    x = far((5, 3), dtype=torch.float64).requires_grad_()
    vectors = [
        torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)).add(0.5).requires_grad_()
        for k in range(4)
    ]
    assert torch.autograd.gradcheck(lambda x: polybn.moments(x)[1:], (x,))
    assert torch.autograd.gradcheck(lambda *v: polybn.fold(*v), vectors)
    assert torch.autograd.gradcheck(
        lambda a, b: polybn.merge_moments(polybn.moments(a), polybn.moments(b))[1:],
        (x, x.detach()[:2].mul(2).requires_grad_()),
    )


def test_running_statistics_carry_no_gradient_and_no_third_derivative_is_claimed() -> None:
    x = far((5, 3)).requires_grad_()
    gamma = torch.ones(3, requires_grad=True)
    result = polybn.batch_norm(x, gamma, None, torch.zeros(3), torch.ones(3), training=True)
    assert result.y.requires_grad
    assert result.running_mean is not None
    assert not result.running_mean.requires_grad
    first = torch.autograd.grad(result.y.pow(3).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="backward must be asked for at most twice"):
        torch.autograd.grad(second.sum(), x)


def test_a_training_step_may_be_followed_by_another_before_backward() -> None:
    """Running statistics are updated in place, which does not disturb the derivative of an earlier step."""
    module, theirs = (module.double() for module in peers(polybn_torch.BatchNorm1d))
    batches = [far((7, 3), seed, torch.float64).requires_grad_() for seed in range(2)]
    for norm in (module, theirs):
        sum(norm(x).pow(3).sum() for x in batches).backward()
    torch.testing.assert_close(module.weight.grad, theirs.weight.grad, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_compilation_finds_no_break(training: bool) -> None:
    module = polybn_torch.BatchNorm2d(3).train(training)
    reference = copy.deepcopy(module)
    x, z = (far((7, 3, 5, 11)).requires_grad_() for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(lambda x: module(x * 2) + 1, fullgraph=True, backend="aot_eager")
        y, expected = compiled(x), reference(z * 2) + 1
    y.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, z.grad)
    assert torch.equal(module.running_mean, reference.running_mean)
    assert torch.equal(module.running_var, reference.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_pytorch_finds_the_operators_well_formed(training: bool) -> None:
    x = far((7, 3, 5), dtype=torch.float64).requires_grad_()
    vectors = [torch.rand(3, dtype=torch.float64).add(0.5) for _ in range(4)]
    options = {
        "training": training,
        "momentum": 0.9,
        "eps": 1e-5,
        "unbiased": True,
        "axis": 1,
        "function": "batch_norm",
    }
    torch.library.opcheck(torch.ops.polybn.normalize, (x, *vectors, None), options)
    saved = torch.ops.polybn.normalize(x, *vectors, None, **options)[3]
    torch.library.opcheck(torch.ops.polybn.differentiate, (x, *vectors, None, saved, None, x.detach() * 2), options)
    assert ops.FIVE.count("Tensor") == 5


@pytest.mark.parametrize(
    ("kind", "shape", "error", "words"),
    [
        (polybn_torch.BatchNorm1d, (7, 3, 5, 11), ValueError, "expected 2D or 3D input"),
        (polybn_torch.BatchNorm2d, (7, 3), ValueError, "expected 4D input"),
        (polybn_torch.BatchNorm3d, (7, 3, 5, 11), ValueError, "expected 5D input"),
        (polybn_torch.BatchNorm2d, (1, 3, 1, 1), ValueError, "input must have more than 1 value per channel"),
        (polybn_torch.BatchNorm2d, (7, 4, 5, 11), polybn.ShapeError, r"gamma must have shape \(4,\); got \(3,\)"),
    ],
)
def test_errors(kind: Any, shape: tuple[int, ...], error: type[Exception], words: str) -> None:
    module = kind(3)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=words):
        module(far(shape))
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


def model() -> Any:
    norm = torch.nn.BatchNorm2d(3)
    inner = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 2), norm, inner, norm, torch.nn.Flatten(), torch.nn.BatchNorm1d(36)
    )


def test_convert_swaps_the_norms_of_a_model_and_back() -> None:
    net = model().double()
    x = far((7, 1, 5, 4), dtype=torch.float64)
    parameters, state = list(net.parameters()), copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other = copy.deepcopy(net)
    assert polybn_torch.convert(net) is net
    norms = [module for module in net.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert [type(norm).__module__ for norm in norms] == ["polybn_torch.nn"] * 3
    assert net[1] is net[3]  # a module in two places stays one module
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    torch.testing.assert_close(net(x), other(x), atol=1e-12, rtol=1e-12)
    net(x).pow(3).sum().backward()
    optimizer.step()  # the optimizer and the model share parameters
    assert not torch.equal(net.state_dict()["1.weight"], state["1.weight"])
    polybn_torch.convert(net, back=True)
    assert {type(module).__module__.partition(".")[0] for module in net.modules()} == {"torch"}
    alone = torch.nn.BatchNorm1d(3).eval()
    assert type(polybn_torch.convert(alone)) is polybn_torch.BatchNorm1d
    assert not polybn_torch.convert(alone).training


def test_convert_keeps_hooks_and_leaves_subclasses_alone() -> None:
    class Mine(torch.nn.BatchNorm2d):
        pass

    seen: list[Any] = []
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), Mine(3))
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    polybn_torch.convert(net)(far((7, 3, 5, 11)))
    assert seen == [polybn_torch.BatchNorm2d]
    assert type(net[1]) is Mine


def test_tensors_that_are_no_plain_memory() -> None:
    """Expanded, transposed and conjugated views, parameters, and other kinds of tensors are served."""
    x = far((7, 3))
    expected = polybn.batch_norm(x.numpy(), training=True).y
    assert np.array_equal(polybn.batch_norm(x.T.contiguous().T, training=True).y.numpy(), expected)
    assert np.array_equal(polybn.batch_norm(torch.nn.Parameter(x), training=True).y.detach().numpy(), expected)
    assert np.array_equal(polybn.batch_norm((-x).neg(), training=True).y.numpy(), expected)
    wide = x[:, :, None].expand(7, 3, 4).requires_grad_()
    polybn.batch_norm(wide, training=True).y.sum().backward()
    with pytest.raises(polybn.BackendError, match="one device"):
        polybn.batch_norm(x, torch.ones(3, device="meta"), training=True)


# What the users of PyTorch's modules do beside training.


def test_hooks_that_hold_their_module_go_on_after_a_conversion() -> None:
    model, seen = torch.nn.Sequential(torch.nn.BatchNorm1d(3)), list[Any]()
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    assert polybn_torch.convert(model) is model
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]
    assert type(polybn_torch.convert(model[0], back=True)) is torch.nn.BatchNorm1d


def test_a_derivative_of_inference_outlives_a_training_step() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    for norm in (polybn_torch.BatchNorm1d(3), torch.nn.BatchNorm1d(3)):
        fake = norm.eval()(x)
        real = norm.train()(x)
        (fake.square().sum() + real.square().sum()).backward()


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 3, 1)])
def test_compiled_modules_check_their_input(shape: tuple[int, ...]) -> None:
    norm = polybn_torch.BatchNorm2d(3).eval()
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    with torch.no_grad(), pytest.raises(Exception, match=r"(?s)must have shape|Observed exception"):
        compiled(torch.ones(shape))
    with torch.no_grad():
        assert torch.equal(compiled(torch.ones(2, 3, 5, 1)), norm(torch.ones(2, 3, 5, 1)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own forward mode uses it
def test_forward_mode_and_transforms_have_the_derivatives_of_pytorch() -> None:
    x, t = (1000 + 3 * torch.randn(7, 3, dtype=torch.float64) for _ in range(2))

    def mine(x: Any) -> Any:
        return polybn.batch_norm(x, training=True).y

    def theirs(x: Any) -> Any:
        return torch.nn.functional.batch_norm(x, None, None, training=True)

    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(mine(forward_ad.make_dual(x, t))).tangent
    right = torch.func.jvp(theirs, (x,), (t,))[1]
    for found in (dual, torch.func.jvp(mine, (x,), (t,))[1]):
        assert (found - right).abs().max() <= 1e-9 * right.abs().max()
    by = [torch.func.grad(lambda x, f=f: (f(x) * t).sum())(x) for f in (mine, theirs)]
    assert (by[0] - by[1]).abs().max() <= 1e-9 * by[1].abs().max()
    moved = torch.func.jvp(lambda x: polybn.moments(x).mean, (x,), (t,))[1]
    assert (moved - t.mean(0)).abs().max() <= 1e-9 * t.abs().max()


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_vmap_is_a_loop_over_calls(axis: int, training: bool, dtype: torch.dtype) -> None:
    """Whatever is mapped: x alone, or an ensemble of layers, each with its own x, mask and state."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x = (1000 + 3 * torch.randn(5, 7, 3, 2).movedim(2, 1 + axis)).to(dtype)
    vectors = torch.randn(4, 5, 3, dtype=state) + torch.tensor([0, 1, 1000, 0])[:, None, None]
    vectors[3] = vectors[3].abs() + 1
    where = torch.rand(5, 7, 1, 2).movedim(2, 1 + axis) < 0.7

    def call(x: Any, *vectors: Any, where: Any = None) -> Any:
        return polybn.batch_norm(x, *vectors, training=training, axis=axis, where=where)

    def derivative(*arguments: Any) -> Any:
        return torch.func.grad(lambda x: (call(x, *arguments[1:]).y.double() ** 3).sum())(arguments[0])

    def close(mapped: Any, looped: Any, of: torch.dtype) -> None:
        assert mapped.dtype == looped.dtype
        assert (mapped - looped).abs().max() <= 8 * torch.finfo(of).eps * looped.abs().max()

    for mapped, looped, of in zip(
        torch.vmap(call)(x, *vectors),
        map(torch.stack, zip(*map(call, x, *vectors), strict=True)),
        (dtype, state, state),
        strict=True,
    ):
        close(mapped, looped, of)
    alone = torch.vmap(call, (0, *[None] * 4))(x, *vectors[:, 0]).y
    close(alone, torch.stack([call(one, *vectors[:, 0]).y for one in x]), dtype)
    masked = torch.vmap(lambda x, where: call(x, *vectors[:, 0], where=where).y)(x, where)
    close(masked, torch.stack([call(*one, *vectors[:, 0], where=w).y for *one, w in zip(x, where, strict=True)]), dtype)
    slopes = torch.vmap(derivative)(x, *vectors)
    close(slopes, torch.stack([*map(derivative, x, *vectors)]), dtype)


def test_vmap_of_modules_in_both_modes() -> None:
    """An ensemble in one call: the module's state is mapped, so a bad variance is NaN, not an error (S14)."""
    x = 100 + 3 * torch.randn(5, 7, 3, 2, 2)
    base = polybn_torch.BatchNorm2d(3)

    def call(parameters: Any, buffers: Any, x: Any) -> Any:
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    for training in (True, False):
        base.train(training)
        norms = [polybn_torch.BatchNorm2d(3).train(training) for _ in range(5)]
        for norm, mean in zip(norms, torch.randn(5, 3), strict=True):
            norm.running_mean.copy_(100 + mean)
        parameters, buffers = torch.func.stack_module_state(norms)
        y = torch.vmap(call)(parameters, buffers, x)
        expected = torch.stack([norm(one) for norm, one in zip(norms, x, strict=True)])
        assert (y - expected).abs().max() <= 8 * torch.finfo(torch.float32).eps * expected.abs().max()
    buffers["running_var"][1, 2] = -1
    nan = torch.vmap(call)(parameters, buffers, x).isnan()
    assert nan[1, :, 2].all()
    assert nan.sum() == nan[1, :, 2].numel()


def test_a_layer_keeps_no_tensor_of_vmap() -> None:
    layer, x = polybn.BatchNorm(3, backend="torch"), torch.randn(4, 5, 3)
    with pytest.raises(polybn.BackendError, match=r"running_mean must be an array that lasts.*torch\.vmap"):
        torch.vmap(lambda z: layer(z, training=True))(x)
    torch.vmap(lambda z: layer(z, training=False))(x)
    layer(x[0], training=True)
    assert layer.updates == 1


def test_a_counter_may_be_taken_away_and_momentum_is_a_share() -> None:
    norm = polybn_torch.BatchNorm1d(3)
    norm.num_batches_tracked = None
    norm(torch.randn(5, 3))
    norm.momentum = 1.5
    with pytest.raises(DomainError, match=r"polybn\.BatchNorm1d: momentum must lie in \[0, 1\], or be None; got 1\.5"):
        norm(torch.randn(5, 3))
