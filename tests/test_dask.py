"""Dask: a lazy graph of partial sums, never the whole array in one place, and what happens when a worker dies."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import polybn
from tests.conftest import REASONS

if REASONS.get("dask", "absent") is not None:
    pytest.skip(f"dask: {REASONS.get('dask', 'absent')}", allow_module_level=True)

import dask
import dask.array as da

from tests.support.dask_blocks import generated

GAMMA, BETA = np.array([0.5, -2.0, 3.0], np.float32), np.array([1.0, 0.0, -5.0], np.float32)
CHUNKS = [
    ((7,), (3,), (11,)),
    ((3, 4), (2, 1), (5, 5, 1)),
    ((0, 3, 0, 4), (1, 1, 1), (11,)),  # empty blocks
    ((1,) * 7, (3,), (1,) * 11),
]
META = np.empty((0, 0, 0), np.float32)
WHOLE, BLOCK = 5 * 2**28, 16 * 2**20
"""Bytes."""


def host(dtype: str = "float32", seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(1e4, 3, (7, 3, 11)).astype(dtype)


def gathered(*arrays: Any) -> Any:
    return dask.compute(*arrays, scheduler="synchronous")


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Small graphs are computed in this thread; tests of clusters say otherwise."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("masked", [True, False])
def test_blocks_change_nothing_but_roundings(chunks: Any, dtype: str, masked: bool) -> None:
    x, dy = host(dtype), host(dtype, 1) - 1e4
    where = np.random.default_rng(2).random((7, 1, 11)) < 0.7 if masked else None
    vectors = [v.astype(dtype) for v in (GAMMA, BETA, BETA, np.abs(GAMMA))]
    lazy = [da.from_array(v, chunks=chunks[1] if len(chunks[1]) > 1 else -1) for v in vectors]
    mask = None if where is None else da.from_array(where, chunks=(chunks[0], 1, chunks[2]))
    result, pullback = polybn.batch_norm_vjp(da.from_array(x, chunks=chunks), *lazy, training=True, where=mask)
    expected, back = polybn.batch_norm_vjp(x, *vectors, training=True, where=where)
    gradients, right = pullback(da.from_array(dy, chunks=chunks)), back(dy)
    bound = 4 * np.finfo(dtype).eps
    for got, other in zip(gathered(*result, *gradients[:3]), (*expected, *right[:3]), strict=True):
        assert got.dtype == other.dtype
        assert np.abs(got - other).max() <= bound * max(1, np.abs(other).max())
    assert result.y.chunks == chunks


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def never(block: Any) -> Any:
        raise AssertionError("a block was computed")

    x = da.from_array(host(), chunks=(3, 3, 5)).map_blocks(
        never, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    vectors = [da.from_array(v, chunks=3) for v in (GAMMA, BETA, BETA, np.abs(GAMMA))]
    for training in (True, False):
        _, pullback = polybn.batch_norm_vjp(x, *vectors, training=training)
        first, second = pullback.vjp(x)
        second(first)
    polybn.merge_moments(polybn.moments(x), polybn.moments(x))
    with pytest.raises(AssertionError, match="a block was computed"):
        gathered(polybn.moments(x).mean)


def test_no_task_holds_more_than_a_block() -> None:
    """Whatever any task returns is as large as a block of x, its values in the arithmetic's type, at most."""
    x = da.random.default_rng(0).normal(50, 3, (64, 3, 50, 50), chunks=(4, 3, 25, 50)).astype(np.float32)
    block, seen = 4 * 3 * 25 * 50, list[int]()

    class Watch(dask.callbacks.Callback):  # type: ignore[misc]
        def _posttask(self, key: Any, result: Any, *rest: Any) -> None:
            seen.append(getattr(result, "size", 0))

    with Watch():
        result, pullback = polybn.batch_norm_vjp(x, training=True)
        blocks = [*result.y.to_delayed().ravel(), *pullback(x).x.to_delayed().ravel()]
        dask.compute(*(dask.delayed(np.size)(one) for one in blocks), optimize_graph=False)
    assert max(seen) == block


def test_a_mean_that_all_blocks_share_spoils_nothing() -> None:
    """At a mean of 1e6 standard deviations, with block means far apart from each other."""
    rng = np.random.default_rng(3)
    x = (1e6 + rng.normal(0, 1, (64, 3)) + np.repeat([0, 5, -7, 3], 16)[:, None]).astype(np.float64)
    y, exact = (
        polybn.batch_norm(da.from_array(x, chunks=(16, 3)), training=True).y,
        polybn.batch_norm(x, training=True).y,
    )
    assert np.abs(gathered(y)[0] - exact).max() <= 4 * np.finfo(np.float64).eps * np.abs(exact).max()


@pytest.mark.clause("S14")
def test_sizes_that_are_not_known_are_refused() -> None:
    x = da.from_array(host(), chunks=(3, 3, 11))
    unknown = x[x[:, 0, 0] > 1e4]
    for function in (polybn.moments, lambda x: polybn.batch_norm(x, training=True)):
        with pytest.raises(
            polybn.ShapeError, match=r"x must have a shape that is known; got \(nan, 3, 11\) \(.*compute_chunk_sizes"
        ):
            function(unknown)
    kept = host()[host()[:, 0, 0] > 1e4]
    assert gathered(polybn.moments(unknown.compute_chunk_sizes()).count)[0].tolist() == [kept.size // 3] * 3


@pytest.mark.clause("S14")
def test_bad_values_are_nan_in_their_channel() -> None:
    x, var = da.from_array(host(), chunks=(3, 3, 11)), da.from_array(np.array([1.0, -1.0, 1.0], np.float32), chunks=3)
    y = gathered(polybn.batch_norm(x, running_mean=da.zeros(3, dtype=np.float32), running_var=var, training=False).y)[0]
    assert np.isnan(y).any(axis=(0, 2)).tolist() == [False, True, False]
    where = np.ones((7, 3, 11), bool)
    where[1:, 1], where[0, 1, 1:] = False, False
    stats = da.zeros(3, dtype=np.float32), da.ones(3, dtype=np.float32)
    new = polybn.batch_norm(
        x, None, None, *stats, training=True, running_variance="unbiased", where=da.from_array(where)
    ).running_var
    assert np.isnan(gathered(new)[0]).tolist() == [False, True, False]


SOURCES: dict[str, Callable[[Any], Any]] = {
    "map_blocks": lambda x: x,
    "from_array": lambda x: da.from_array(gathered(x)[0], chunks=x.chunks),
    "concatenate": lambda x: da.concatenate([x, x]),
    "rechunk": lambda x: x.rechunk((100, 3, 37)),
    "slice": lambda x: x[10:-1],
    "selection": lambda x: x[np.array([3, 7, 201, 260])],
    "stack": lambda x: da.stack([x[:, :, k] for k in range(4)], axis=2),
    "from_delayed": lambda x: da.concatenate(
        [da.from_delayed(d, (53, 3, 64), np.float32) for d in x.to_delayed().ravel()]
    ),
    "random": lambda x: da.random.default_rng(0).normal(50, 3, x.shape, chunks=x.chunks).astype(np.float32),
    "persist": lambda x: x.persist(),
    "reshape": lambda x: x.reshape(x.shape[0], 3, 8, 8),
}


@pytest.mark.parametrize("source", SOURCES)
def test_arrays_of_any_source(source: str) -> None:
    """Dask can clone some graphs and not others; results are right for all."""
    x = SOURCES[source](da.map_blocks(generated, chunks=((53,) * 5, (3,), (64,)), dtype=np.float32, meta=META))
    whole = gathered(x)[0]
    result, pullback = polybn.batch_norm_vjp(x, training=True)
    expected, back = polybn.batch_norm_vjp(whole, training=True)
    found, right = gathered(*polybn.moments(x)[:3], result.y, pullback(x).x), (*polybn.moments(whole)[:3],)
    for got, other in zip(found, (*right, expected.y, back(whole).x), strict=True):
        assert np.abs(got - other).max() <= 16 * np.finfo(np.float32).eps * max(1, np.abs(other).max())


def test_blocks_are_made_again_and_not_kept() -> None:
    """A process needs memory for some blocks, and not for the array, between one pass and the next."""
    code = """
import resource, sys
import dask, dask.array as da, numpy as np, polybn
from tests.support.dask_blocks import generated
chunks = (5461,) * int(sys.argv[1]), (3,), (256,)
x = da.map_blocks(generated, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
found = polybn.moments(x), polybn.batch_norm(x, training=True).y.max()
dask.compute(*found, scheduler="threads", num_workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def peak(blocks: int) -> int:
        command = [sys.executable, "-c", code, str(blocks)]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) * 1024

    assert peak(40) - peak(8) < 32 * BLOCK / 4


def test_a_data_frame_is_refused() -> None:
    with pytest.raises(polybn.BackendError, match=r"x must be a plain Dask array; got dask\.delayed\.Delayed"):
        polybn.moments(dask.delayed(np.ones((3, 2))))


# Clusters of processes.


def virtual(number: int) -> Any:
    """An array of many blocks, none of which exists until it is asked for."""
    return da.map_blocks(
        generated,
        chunks=((BLOCK // 4 // 3 // 256,) * number, (3,), (256,)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )


def by_parts(x: Any) -> Any:
    """The same statistics by NumPy, block after block."""
    parts = (polybn.moments(gathered(block)[0].astype(np.float64)) for block in x.to_delayed().ravel())
    return functools.reduce(polybn.merge_moments, parts)


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    settings = {"distributed.worker.memory.pause": 0.95, "distributed.scheduler.allowed-failures": 5,
                "distributed.admin.large-graph-warning-threshold": "1GB"}  # fmt: skip
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="512MiB", dashboard_address=None
        ) as made,
        distributed.Client(made) as client,
    ):
        yield client


def test_an_array_that_no_worker_could_hold(cluster: Any) -> None:
    """1.25 GiB of generated blocks, under 512 MiB for each of two workers."""
    x = virtual(WHOLE // BLOCK)
    assert x.nbytes > 0.99 * WHOLE
    some = polybn.batch_norm(x, training=True).y.blocks[::50]
    (count, mean, m2, _), y = cluster.compute([polybn.moments(x), some], sync=True)
    expected = by_parts(x)
    assert count.tolist() == expected.count.tolist()
    assert np.abs(mean / expected.mean - 1).max() < 2**-23
    assert np.abs(m2 / expected.m2 - 1).max() < 2**-22
    deviation = np.sqrt(expected.m2 / expected.count + 1e-5)[:, None]
    right = (gathered(x.blocks[::50])[0] - expected.mean[:, None]) / deviation
    assert np.abs(y - right).max() < 2**-21 * np.abs(right).max()


def test_a_worker_that_is_killed_costs_time_and_nothing_else(cluster: Any, tmp_path: Any) -> None:
    flag = str(tmp_path / "killed")

    def fragile(block: Any, block_info: Any = None) -> Any:
        if block_info[0]["chunk-location"][0] == 5 and not os.path.exists(flag):  # noqa: PTH110
            open(flag, "w").close()  # noqa: PTH123
            os.kill(os.getpid(), 9)
        return block

    x = virtual(12)
    expected = gathered(*polybn.moments(x))
    again = x.map_blocks(fragile, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    found = cluster.compute(polybn.moments(again), sync=True)
    assert os.path.exists(flag)  # noqa: PTH110
    for got, right in zip(found, expected, strict=True):
        assert np.array_equal(got, right)
