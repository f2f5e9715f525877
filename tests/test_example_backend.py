"""The example of a third party's backend, installed and found by its entry point: ``make lane-torch``."""

from __future__ import annotations

import importlib.util
import os
import warnings
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest

import polybn
from polybn import conformance

try:
    version("polybn-torch")
except PackageNotFoundError:
    pytest.skip("docs/examples/polybn_torch is not installed: make lane-torch", allow_module_level=True)

torch = pytest.importorskip("torch", "2.13.0")

test_conformance = conformance.parametrize(
    lambda: conformance.resolve("polybn-torch"), profile=os.environ.get("POLYBN_PROFILE", "dev")
)


def test_it_is_found_by_its_entry_point_and_tensors_choose_it() -> None:
    assert polybn.backends()["torch"] is None
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    y = polybn.batch_norm(x, training=True, eps=0).y
    assert type(y) is torch.Tensor
    assert y.dtype == torch.float32
    assert np.abs(y.numpy() - polybn.batch_norm(x.numpy(), training=True, eps=0).y).max() <= 2.0**-22  # 2 ulp of 1


def test_grades_are_k_or_better() -> None:
    report = conformance.check(
        conformance.resolve("polybn-torch"), only=[f"grade-{dtype}" for dtype in ("float16", "float32", "float64")]
    )
    assert [grade.letter for grade in report.grades] == ["K", "S", "S"]


def test_where_deletes() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(50, 3, (7, 3, 5)).astype(np.float32)
    where = rng.random((7, 1, 5)) < 0.7
    poisoned = np.where(where, x, np.nan).astype(np.float32)
    dy = rng.normal(0.3, 1, x.shape).astype(np.float32)
    result, pullback = polybn.batch_norm_vjp(torch.from_numpy(poisoned), training=True, where=torch.from_numpy(where))
    expected, back = polybn.batch_norm_vjp(poisoned, training=True, where=where)
    assert np.abs(result.y.numpy() - expected.y).max() < 1e-6
    assert np.abs(pullback(torch.from_numpy(dy)).x.numpy() - back(dy).x).max() < 1e-6
    assert not result.y.numpy()[~np.broadcast_to(where, x.shape)].any()


@pytest.mark.parametrize("sizes", [(5, 11), (0, 4), (4, 0)])
def test_moments_merge(sizes: tuple[int, int]) -> None:
    x = np.random.default_rng(4).normal(1e3, 2, (sum(sizes), 3)).astype(np.float32)
    parts = [polybn.moments(torch.from_numpy(part)) for part in np.split(x, [sizes[0]])]
    merged, whole = polybn.merge_moments(*parts), polybn.moments(x)
    assert merged.count.tolist() == whole.count.tolist()
    assert np.abs(merged.mean.numpy() / whole.mean - 1).max() < 1e-6
    assert np.abs(merged.m2.numpy() / whole.m2 - 1).max() < 1e-3  # first order in u * kappa = 3e-5 (S15)


def test_fold_is_inference() -> None:
    rng = np.random.default_rng(5)
    vectors = [torch.from_numpy(rng.uniform(0.5, 2, 3).astype(np.float32)) for _ in range(4)]
    x = torch.from_numpy(rng.normal(0.5, 1, (6, 3)).astype(np.float32))
    scale, shift = polybn.fold(*vectors)
    y = polybn.batch_norm(x, *vectors, training=False).y
    assert (scale * x + shift - y).abs().max() < 2e-6


def test_autograd_agrees_with_the_pullback_and_goes_to_the_second_order() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gamma = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result, pullback = polybn.batch_norm_vjp(x, gamma, training=True)
    (by_autograd,) = torch.autograd.grad(result.y, x, dy, retain_graph=True)
    assert (by_autograd - pullback(dy).x).abs().max() < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradgradcheck(lambda x, g: polybn.batch_norm(x, g, training=True).y, (x, gamma))
        assert torch.autograd.gradcheck(
            lambda x, g, dy: polybn.batch_norm_vjp(x, g, training=True)[1](dy)[:2], (x, gamma, dy.requires_grad_())
        )


def test_the_pullback_of_inference_reaches_the_running_statistics() -> None:
    rng = np.random.default_rng(6)
    x, dy = (rng.normal(1, 2, (6, 3)) for _ in range(2))
    vectors = [rng.uniform(0.5, 2, 3) for _ in range(4)]
    expected = polybn.batch_norm_vjp(x, *vectors, training=False)[1](dy)
    _, pullback = polybn.batch_norm_vjp(torch.from_numpy(x), *map(torch.from_numpy, vectors), training=False)
    for got, right in zip(pullback(torch.from_numpy(dy)), expected, strict=True):
        assert np.abs(got.numpy() - right).max() < 1e-12
    _, pullback = polybn.batch_norm_vjp(torch.from_numpy(x), *map(torch.from_numpy, vectors), training=True)
    assert pullback(torch.from_numpy(dy))[3:] == (None, None)


def test_errors_are_those_of_every_backend() -> None:
    x = torch.ones(4, 3)
    with pytest.raises(polybn.ShapeError, match=r"^polybn.batch_norm: gamma must have shape \(3,\); got \(2,\)"):
        polybn.batch_norm(x, torch.ones(2), training=True)
    with pytest.raises(polybn.DomainError, match="in channel 1"):
        polybn.batch_norm(x, None, None, torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), training=False)
    with pytest.raises(polybn.BackendError, match="must train networks"):
        polybn.train(polybn.networks.lenet(), "torch", data=polybn.fashion_mnist.load("sample"), epochs=1)
    assert importlib.util.find_spec("polybn_torch") is not None
