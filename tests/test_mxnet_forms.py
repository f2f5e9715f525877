"""The two forms: the host's functions on MXNet's memory, and MXNet's operators, which GPU contexts run.

Bounds are in units in the last place of the dtype, u. A test without a bound asks for equal bits.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
from polybn import conformance
from polybn.conformance.adapters import resolve
from tests.conftest import REASONS

if REASONS["mxnet"] is not None:
    pytest.skip(f"mxnet: {REASONS['mxnet']}", allow_module_level=True)

from polybn_mxnet.batch_norm import operators_only
from polybn_mxnet.compat import mxnet as mx

Host = NDArray[Any]

# Rows of several chunks; rows of one value, with several chunks down; rows too short for a loop of their own;
# channels first and last.
LAYOUTS = [((5, 3, 7, 41), 1), ((263, 13), 1), ((83, 5, 3), 1), ((3, 17, 11), 0), ((19, 5, 23), -1)]
MEANS = [0.0, 1e4]


class Case(NamedTuple):
    x: Host
    dy: Host
    vectors: list[Host]
    axis: int


def case(shape: tuple[int, ...], axis: int, dtype: str, mean: float = 0.0, scale: float = 1.0) -> Case:
    rng = np.random.default_rng(7)
    vector = "float64" if dtype == "float64" else "float32"
    x = (mean + scale * rng.standard_normal(shape)).astype(dtype)
    mean_and_more = rng.standard_normal((3, shape[axis]))
    vectors = [z.astype(vector) for z in (*mean_and_more, 1 + rng.random(shape[axis]))]
    return Case(x, rng.standard_normal(shape).astype(dtype), vectors, axis)


def run(given: Case, training: bool = True, eps: float = 1e-5) -> dict[str, Host]:
    x, dy, *vectors = (mx.nd.array(host, dtype=host.dtype) for host in (given.x, given.dy, *given.vectors))
    result, pullback = polybn.batch_norm_vjp(x, *vectors, training=training, axis=given.axis, eps=eps)
    arrays = {**result._asdict(), **{f"d{name}": array for name, array in pullback(dy)._asdict().items()}}
    return {name: array.asnumpy() for name, array in arrays.items() if array is not None}


def same(one: dict[str, Host], other: dict[str, Host]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def scales(given: Case, exact: dict[str, Host]) -> dict[str, Host | float]:
    """Return the scale for the errors of each result: the largest of its terms."""
    axes = tuple(a for a in range(given.x.ndim) if a != given.axis % given.x.ndim)
    g = abs(given.dy.astype(np.float64))
    wide = [1 + abs(z) for z in given.vectors]
    far = 1 + abs(given.x.astype(np.float64)).max()
    column = [1] * given.x.ndim
    column[given.axis] = -1
    xhat = abs(exact["y"] - given.vectors[1].reshape(column)) / abs(given.vectors[0].reshape(column))
    of_sums = {"dbeta": g.sum(axes), "dgamma": (g * (1 + xhat)).sum(axes)}
    return {
        "y": 1 + abs(exact["y"]).max(), "dx": 1 + abs(exact["dx"]).max(), **of_sums,
        "running_mean": far * wide[2].max(), "running_var": 1 + exact["running_var"].max(),
        "drunning_mean": wide[0] * of_sums["dbeta"], "drunning_var": wide[0] * of_sums["dgamma"],
    }  # fmt: skip


BOUND = 8  # each form may err by 4 (class S)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_forms_agree(shape: tuple[int, ...], axis: int, dtype: str, mean: float, training: bool) -> None:
    given = case(shape, axis, dtype, mean)
    ours = run(given, training)
    with operators_only():
        others = run(given, training)
    u = np.finfo(dtype).eps / 2
    assert ours.keys() == others.keys()
    far = {name: float((abs(ours[name].astype(float) - others[name]) / size / u).max())
           for name, size in scales(given, others).items() if name in ours}  # fmt: skip
    assert all(distance <= BOUND for distance in far.values()), far


@pytest.mark.parametrize("wild", [1e25, 1e-25, 0.0, np.inf])
def test_a_channel_out_of_range_leaves_the_others_their_bits(wild: float) -> None:
    given = case((7, 5, 29), 1, "float32", mean=3.0)
    tame = run(given, eps=0)
    spoiled = given._replace(x=given.x.copy())
    with np.errstate(invalid="ignore"):
        spoiled.x[:, 2] *= np.float32(wild)
    found, others = run(spoiled, eps=0), [0, 1, 3, 4]
    for name in tame:
        pick = (slice(None), others) if tame[name].ndim == 3 else others
        assert found[name][pick].tobytes() == tame[name][pick].tobytes(), name
    with operators_only():
        expected = run(spoiled, eps=0)["y"]
    u = np.finfo(np.float32).eps / 2
    assert np.array_equal(np.isnan(found["y"]), np.isnan(expected))
    assert np.nanmax(abs(found["y"] - expected)) <= 2 * u * (1 + np.nanmax(abs(expected)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wild", [1e37, 1e-37])
def test_in_operators_a_channel_computed_again_leaves_the_others_their_bits(wild: float, training: bool) -> None:
    given = case((7, 5, 29), 1, "float32", mean=3.0)
    x, dy = given.x.copy(), given.dy.copy()
    x[:, 2] *= np.float32(wild)
    dy[:, 2] /= np.float32(wild)
    with operators_only():
        tame, found = run(given, training), run(given._replace(x=x, dy=dy), training)
    spared = [0, 1, 3, 4]
    for name in tame:
        pick = (slice(None), spared) if tame[name].ndim == 3 else spared
        assert found[name][pick].tobytes() == tame[name][pick].tobytes(), name


@pytest.mark.clause("S10")
def test_in_operators_numbers_are_right_over_the_whole_range() -> None:
    """From subnormal to largest numbers, with derivatives; and what is not finite stays in its channel."""
    report = conformance.check(resolve("polybn-mxnet-operators"), only=["G1", "G2", "G3", "G4", "P38b", "P38c"], seed=7)
    assert [result.status for result in report.results] == ["pass"] * 6, str(report)


# One channel each: two or three values of x, dy, (gamma, beta, running_mean, running_var), eps, training.
FAR = {
    "a small value beside a large one": ([1, 2**-100], [1, 2**-100], (2**63, 0, 0, 2**126), 0, False),
    "beta pulls a product back into the range": ([1, 2, 9], [1, 2, -1], (3e38, -3e38, 0, 1), 1e-5, True),
    "momentum pulls a variance back into the range": ([-3e19, 3e19, 0], [1, 2, -1], (1, 0, 0, 1), 1e-5, True),
    "a large value beside NaN": ([np.nan, 3e38], [1, 1], (1, 0, -3e38, 2**100), 1e-5, False),
    "a small cotangent beside NaN": ([1, 3e5], [np.nan, 2**-140], (2**100, 0, 0, 2**100), 1e-5, False),
}


@pytest.mark.clause("S9", "S10")
@pytest.mark.parametrize("name", FAR)
def test_operators_agree_with_the_host_on_numbers_far_apart(name: str) -> None:
    x, dy, vectors, eps, training = FAR[name]
    column, of_dy = (np.array(z, "float32")[:, None] for z in (x, dy))
    given = Case(column, of_dy, [np.array([z], "float32") for z in vectors], 1)
    expected = run(given, training, eps)
    with operators_only():
        found = run(given, training, eps)
    assert found.keys() == expected.keys()
    for key, right in expected.items():
        np.testing.assert_allclose(found[key], right, rtol=1e-6, err_msg=key)


def test_calls_from_several_threads_do_not_meet() -> None:
    cases = [case(shape, axis, "float32", mean) for shape, axis in LAYOUTS for mean in MEANS] * 3
    alone = [run(given) for given in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, cases))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_what_a_call_keeps_is_its_own() -> None:
    given = case((13, 3, 17), 1, "float32")
    dy = mx.nd.array(given.dy)
    inputs = [mx.nd.array(given.x**power) for power in (1, 2, 3)]
    one_by_one = [polybn.batch_norm_vjp(x, training=True)[1](dy).x.asnumpy() for x in inputs]  # reuses memory
    pullbacks = [polybn.batch_norm_vjp(x, training=True)[1] for x in inputs]
    assert [pullback(dy).x.asnumpy().tobytes() for pullback in pullbacks] == [dx.tobytes() for dx in one_by_one]


def test_a_part_of_an_array_is_read_where_it_lies() -> None:
    given = case((13, 3, 17), 1, "float32", mean=5.0)
    whole = mx.nd.array(np.concatenate([np.full_like(given.x, np.nan), given.x, np.full_like(given.x, np.nan)]))
    part = whole[13:26].reshape((13, 3, 17))
    y = polybn.batch_norm(part, training=True).y.asnumpy()
    assert y.tobytes() == polybn.batch_norm(mx.nd.array(given.x), training=True).y.asnumpy().tobytes()


@pytest.mark.parametrize("kind", ["nd", "np"])
def test_a_transposed_array_is_read_in_its_own_order(kind: str) -> None:
    given = case((13, 3, 17), 1, "float32", mean=5.0)
    library = getattr(mx, kind)
    moved = library.array(np.ascontiguousarray(given.x.transpose(2, 0, 1)), dtype=np.float32)
    y = polybn.batch_norm(moved.transpose((1, 2, 0)), training=True).y.asnumpy()
    assert y.tobytes() == polybn.batch_norm(mx.nd.array(given.x), training=True).y.asnumpy().tobytes()


def test_the_layout_of_a_convolution_is_undone() -> None:
    rng = np.random.default_rng(3)
    x = mx.nd.array(rng.standard_normal((4, 16, 9, 9)))
    weight = mx.nd.array(rng.standard_normal((32, 16, 3, 3)))
    y = mx.nd.Convolution(x, weight, no_bias=True, kernel=(3, 3), num_filter=32)
    ours = polybn.batch_norm(y, training=True).y.asnumpy()
    assert ours.tobytes() == polybn.batch_norm(mx.nd.array(y.asnumpy()), training=True).y.asnumpy().tobytes()


def test_a_call_waits_for_what_is_still_computed() -> None:
    rng = np.random.default_rng(4)
    factor = mx.nd.array(rng.standard_normal((701, 701)) / 701**0.5)
    for _ in range(3):
        late = mx.nd.dot(mx.nd.dot(mx.nd.dot(factor, factor), factor), factor)
        y = polybn.batch_norm(late, training=True).y.asnumpy()
        assert y.tobytes() == polybn.batch_norm(mx.nd.array(late.asnumpy()), training=True).y.asnumpy().tobytes()


@pytest.mark.parametrize("scope", [contextlib.nullcontext, operators_only], ids=["host", "operators"])
def test_no_form_writes_to_its_arguments(scope: Any) -> None:
    given = case((11, 3, 19), 1, "float32", mean=5.0)
    arrays = [mx.nd.array(host) for host in (given.x, *given.vectors)]
    dy = mx.nd.array(given.dy)
    with scope():
        polybn.batch_norm_vjp(*arrays, training=True)[1](dy)
    held = [array.asnumpy().tobytes() for array in (*arrays, dy)]
    assert held == [host.tobytes() for host in (given.x, *given.vectors, given.dy)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scope", [contextlib.nullcontext, operators_only], ids=["host", "operators"])
def test_what_overflows_a_half_is_infinite_in_silence(scope: Any) -> None:
    """y, dx and second derivatives overflow to infinity without a warning."""
    given = case((11, 3, 19), 1, "float16", mean=5.0)
    x, dy = (mx.nd.array(host, dtype="float16") for host in (given.x, given.dy))
    with scope():
        result, pullback = polybn.batch_norm_vjp(x, mx.nd.full(3, 1e7), training=True)
        gradients, second = pullback.vjp(dy)
        of = second(polybn.spec.Gradients(dy, None, None))
    for array in (result.y, gradients.x, of.dy, of.x):
        assert np.isinf(array.asnumpy()).any()


def test_scales_change_no_bit_of_the_operators_results() -> None:
    """Scales within the range do not pass a channel on to the host, whose sums are rounded otherwise (S3)."""
    report = conformance.check(resolve("polybn-mxnet-operators"), only=["P7"], profile="ci", seed=3)
    assert not report.failures, str(report)
