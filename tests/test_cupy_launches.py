"""The launches of the CuPy backend: one kernel per call, in the planned shape, on the stream and device of its arrays.

Emulated only: it reads what the stand-in for CuPy recorded.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import equal
from polybn.conformance.strategies import sample
from polybn.spec import BackendError

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
if "emulated" not in cupy.__version__:
    pytest.skip("it reads what the emulation recorded", allow_module_level=True)


@pytest.fixture
def launches() -> list[Any]:
    recorded: list[Any] = cupy.cuda.LAUNCHES
    recorded.clear()
    return recorded


SHAPES = ((256, 6, 24, 24), (256, 120), (7, 3, 5), (2, 70, 3), (5, 3, 60_000))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_each_call_is_one_launch(launches: list[Any], shape: tuple[int, ...], training: bool) -> None:
    case = sample(1, "float32", shape, training=training)
    arrays = [cupy.array(a) for a in case.arrays().values()]
    _, pullback = polybn.batch_norm_vjp(*arrays, training=training)
    pullback(cupy.array(case.dy))
    assert [name.partition("<")[0] for name, *_ in launches] == ["forward" if training else "inference", "backward"]


def test_a_channel_too_large_for_one_block_is_shared_by_a_group(launches: list[Any]) -> None:
    x = cupy.array(np.ones((1, 1, 50_000), np.float32))
    polybn.batch_norm(x, training=True)
    (_, blocks, together) = launches[0]
    assert blocks > 1
    assert together


@pytest.mark.parametrize("multiprocessors", [1, 2, 7])
@pytest.mark.parametrize("shared", [40 << 10, 99 << 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_device_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, multiprocessors: int, shared: int, dtype: str
) -> None:
    """Sums follow one tree for any number of blocks and rounds."""
    from polybn_cupy import launch

    case = sample(4, dtype, (9, 3, 12_007), kappa=5.0)

    def outcome() -> list[Any]:
        launch._device.cache_clear()
        launch._resident.cache_clear()
        arrays = [cupy.array(a) for a in case.arrays().values()]
        result, pullback = polybn.batch_norm_vjp(*arrays, training=True)
        gradients = pullback(cupy.array(case.dy))
        outputs: list[Any] = [*result, *gradients[:3]]
        return [a.get() for a in outputs]

    base = outcome()
    with monkeypatch.context() as patch:
        patch.setitem(cupy.cuda.ATTRIBUTES, "MultiProcessorCount", multiprocessors)
        patch.setitem(cupy.cuda.ATTRIBUTES, "MaxSharedMemoryPerBlockOptin", shared)
        other = outcome()
    launch._device.cache_clear()
    launch._resident.cache_clear()
    assert all(map(equal, base, other))


def test_a_process_that_may_use_a_part_of_a_device_takes_less(
    launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under MPS, a launch that is too large fails, and the next one is smaller; later calls are small at once."""
    from polybn_cupy import launch

    monkeypatch.setattr(launch, "_granted", {})
    x = cupy.array(np.random.default_rng(0).normal(300, 7, (3, 2, 60_013)).astype(np.float32))
    whole = polybn.batch_norm(x, training=True).y.get()
    monkeypatch.setattr(cupy.cuda, "GRANTED", [1])
    part = polybn.batch_norm(x, training=True).y.get()
    assert equal(whole, part)
    assert launch._granted == {0: 1}
    (_, all_blocks, together), (_, few_blocks, _) = launches
    assert together
    assert few_blocks < all_blocks
    monkeypatch.setattr(cupy.cuda, "GRANTED", [0])
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="720"):
        polybn.batch_norm(x, training=True)


def test_arrays_on_two_devices_are_refused() -> None:
    x = cupy.array(np.ones((4, 3), np.float32))
    with cupy.cuda.Device(1):
        gamma = cupy.array(np.ones(3, np.float32))
    words = r"polybn.batch_norm: all arrays must be on one device; got x: device 0, gamma: device 1 \(nothing is moved"
    with pytest.raises(BackendError, match=words):
        polybn.batch_norm(x, gamma, training=True)


def test_host_arrays_are_refused() -> None:
    x = cupy.array(np.ones((4, 3), np.float32))
    with pytest.raises(BackendError, match="gamma: numpy"):
        polybn.batch_norm(x, np.ones(3, np.float32), training=True)
    _, pullback = polybn.batch_norm_vjp(x, training=True)
    with pytest.raises(BackendError, match=r"dy must be a plain CuPy array; got numpy.ndarray"):
        pullback(np.ones((4, 3), np.float32))


def test_results_are_where_their_arguments_are() -> None:
    with cupy.cuda.Device(1):
        x = cupy.array(np.ones((4, 3), np.float32))
    result, pullback = polybn.batch_norm_vjp(x, training=True)
    assert result.y.device.id == 1
    assert pullback(x).x.device.id == 1
    assert cupy.cuda.runtime.getDevice() == 0


def test_work_goes_to_the_current_stream(launches: list[Any]) -> None:
    """A captured stream records launches, and repeats them."""
    x = cupy.array(np.array([[1.0], [3.0]], np.float32))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        y = polybn.batch_norm(x, training=True, eps=0).y
        graph = stream.end_capture()
    assert launches == []
    graph.launch(stream)
    assert y.get().tolist() == [[-1.0], [1.0]]


def test_streams_and_devices_have_barriers_and_mail_of_their_own() -> None:
    """Two streams run at once, so their groups of blocks must not share counters."""
    from polybn_cupy import launch

    streams, found = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], []
    for device in (0, 1):
        for stream in streams:
            with cupy.cuda.Device(device), stream:
                found += [launch.barriers(), launch.mail(10)]
    assert len({array.data.ptr for array in found}) == len(found) == 8
    assert [array.device.id for array in found] == [0] * 4 + [1] * 4


def test_a_stream_with_barriers_lives_on() -> None:
    """CUDA may give the handle of a deleted stream to a new one, while work of the old one still runs."""
    from polybn_cupy import launch

    with cupy.cuda.Stream(non_blocking=True) as stream:
        launch.barriers()
    reference = weakref.ref(stream)
    del stream
    gc.collect()
    assert reference() is not None


def test_a_call_that_ran_once_needs_nothing_new_to_be_captured() -> None:
    """Another library may capture in a mode that forbids to allocate and to wait; its users call once before."""
    from polybn_cupy import launch

    x = cupy.array(np.ones((1, 1, 50_000), np.float32))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        polybn.batch_norm(x, training=True)

        def kept() -> list[Any]:
            mail = {key: list(boxes) for key, boxes in launch._mail.items()}
            return [cupy.cuda.Stream._count, dict(launch._barriers), mail, launch._kernel.cache_info().misses]

        before = kept()
        stream.begin_capture()
        polybn.batch_norm(x, training=True)
        stream.end_capture()
    assert kept() == before


def test_mail_that_a_graph_may_know_is_kept() -> None:
    from polybn_cupy import launch

    with cupy.cuda.Stream(non_blocking=True):
        small, large = launch.mail(8).data.ptr, launch.mail(5000).data.ptr
        assert small != large
        assert (launch.mail(8).data.ptr, launch.mail(4000).data.ptr) == (small, large)


def test_barriers_that_a_capture_makes_are_zero_before_its_replay() -> None:
    from polybn_cupy import launch

    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        made = launch.barriers()
        stream.end_capture()
        assert not made.get().any()


def test_each_device_loads_its_own_kernels() -> None:
    from polybn_cupy import launch

    loaded = []
    for device in (0, 1):
        with cupy.cuda.Device(device):
            loaded.append(launch.kernel("vectors.cu", "fold<float>").function.ptr)
    assert len(set(loaded)) == 2


def test_the_emulation_refuses_to_wait_in_a_capture() -> None:
    """The emulation refuses it, so that a hidden copy to the host in a captured call is found without a GPU."""
    x = cupy.array(np.ones((4, 3), np.float32))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        for wait in (x.get, stream.synchronize, lambda: cupy.array(np.ones(3))):
            with pytest.raises(RuntimeError, match="on a stream that is being captured"):
                wait()
        stream.end_capture()
