"""The memory of large results: it is used again when no array refers to it, and never before."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import polybn
from polybn_numpy import memory
from polybn_numpy.memory import LARGE, LIMIT, Store

Array = NDArray[Any]

SHAPE = (13, 7, 167, 97)
"""Of an array of float32 with a little more than LARGE bytes."""


def values(seed: int, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(seed).normal(1000, 3, size=shape).astype(np.float32)


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Give each test a store of its own."""
    made = Store(LIMIT)
    monkeypatch.setattr(memory, "_store", made)
    return made


def test_a_dropped_result_is_used_again(store: Store) -> None:
    """A loop that drops its results allocates once for ``y`` and once for ``dx``."""
    x, dy, places = values(1), values(2), set()
    assert x.nbytes > LARGE
    for _ in range(5):
        result, pullback = polybn.batch_norm_vjp(x, training=True)
        dx = pullback(dy).x
        places.add((address(result.y), address(dx)))
        del result, pullback, dx
    assert {place for pair in places for place in pair} == {address(piece.array) for piece in store.kept}
    assert len(store.kept) == 2


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y,
        lambda y: y[1:, :, ::2],
        lambda y: y.reshape(-1)[5:],
        lambda y: y.T.view(np.uint32),
        memoryview,
        np.nditer,
        lambda y: np.broadcast_to(y, (3, *y.shape)),
        lambda y: np.from_dlpack(y),
    ],
    ids=["itself", "slice", "flat", "other dtype", "memoryview", "iterator", "broadcast", "dlpack"],
)
def test_memory_in_use_is_left_alone(hold: Any) -> None:
    """Whatever refers to a result keeps its values, however many results come after it."""
    x = values(3)
    result = polybn.batch_norm(x, training=True)
    place, expected, held = address(result.y), result.y.copy(), hold(result.y)
    del result
    later = [polybn.batch_norm(values(seed), training=True).y for seed in (4, 5)]
    assert place not in [address(y) for y in later]
    del held
    assert address(polybn.batch_norm(x, training=True).y) == place
    again = polybn.batch_norm(x, training=True).y
    assert address(again) == place
    assert np.array_equal(again, expected)


def test_results_in_any_order_of_axes_are_used_again(store: Store) -> None:
    """Channels last, seen as channels second, and the order of Fortran."""
    for x in (np.moveaxis(values(11), -1, 1), np.asfortranarray(values(12))):
        y = polybn.batch_norm(x, training=True).y
        assert y.strides == np.empty_like(x).strides
        kept = y.nbytes
        del y
        assert [piece.size for piece in store.kept] == [kept]


def test_old_values_do_not_show() -> None:
    """A result in used memory has the bits that it has in new memory, 0 in deleted places among them."""
    x, where = values(6), np.random.default_rng(7).random(SHAPE) < 0.5
    new = polybn.batch_norm(x, training=True, where=where).y.copy()
    assert new.dtype == x.dtype
    spoilt = polybn.batch_norm(x, training=True).y
    spoilt[...] = np.nan
    place = address(spoilt)
    del spoilt
    used = polybn.batch_norm(x, training=True, where=where).y
    assert address(used) == place
    assert np.array_equal(new, used)


@given(data=st.data())
def test_arrays_are_those_of_numpy(data: st.DataObject) -> None:
    """Shape, strides, dtype and flags are those of ``np.empty_like``, whatever the layout, with and without a size."""
    shape = data.draw(st.sampled_from([(2, 3), (2, 3, 5), (5, 1, 3, 2), (1, 7), (0, 3, 2)]))
    dtype = np.dtype(data.draw(st.sampled_from(["f2", "f4", ">f8", ml_dtypes.bfloat16])))
    like = np.zeros(shape, dtype).transpose(data.draw(st.permutations(range(len(shape)))))
    if data.draw(st.booleans()):
        like = like[..., ::-1]
    native = dtype.newbyteorder("=")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LARGE", data.draw(st.sampled_from([1, LARGE])))
        made, expected = memory.empty_like(like, native), np.empty_like(like, native)
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    long = [k for k, size in enumerate(made.shape) if size > 1]  # the step along one value leads nowhere
    assert [made.strides[k] for k in long] == [expected.strides[k] for k in long]
    assert type(made) is np.ndarray
    assert made.flags.writeable
    assert made.flags.aligned
    made.flags.writeable = False
    made.flags.writeable = True


def test_no_more_than_the_limit_is_kept() -> None:
    """The oldest pieces go first, and a piece above the limit is not kept at all."""
    store = Store(100)
    first, second, third = pieces = [store.take(40) for _ in range(3)]
    for piece in pieces:
        store.keep(piece)
    assert list(store.kept) == [second, third]
    store.keep(store.take(101))
    assert list(store.kept) == [second, third]
    assert store.take(40) is third
    assert store.take(41) not in pieces
    assert store.take(40) is second
    assert store.take(40) is not first


def test_what_is_kept_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory, pieces that are kept are given back before a call fails."""
    store = Store(100)
    store.keep(store.take(40))
    empty, asked = np.empty, []

    def scarce(size: int, dtype: Any) -> Array:
        asked.append(size)
        if store.kept or size > 50:
            raise MemoryError
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", scarce)
    assert store.take(50).size == 50
    assert asked == [50, 50]
    with pytest.raises(MemoryError):
        store.take(51)


def test_the_garbage_collector_may_come_at_any_time(store: Store) -> None:
    """A result in a cycle of references is kept when the collector finds it."""
    cycle: list[Any] = [polybn.batch_norm(values(8), training=True).y]
    cycle.append(cycle)
    place = address(cycle[0])
    del cycle
    gc.collect()
    assert len(store.kept) == 1
    assert address(polybn.batch_norm(values(9), training=True).y) == place


def test_threads_never_share_a_result() -> None:
    """Of results that several threads hold at once, no two are the same memory."""
    x, wrong = values(10), []
    together = threading.Barrier(4)

    def work(mark: float) -> None:
        for _ in range(40):
            y = memory.empty_like(x, x.dtype)
            y[::5, 0, 0, 0] = mark
            together.wait()
            if not (y[::5, 0, 0, 0] == mark).all():
                wrong.append(mark)
            del y
            together.wait()

    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_process_ends_without_a_word() -> None:
    """Results that live until Python ends are dropped when modules are being taken apart."""
    program = (
        "import builtins, sys, numpy as np, polybn\n"
        f"x = np.ones({SHAPE}, np.float32)\n"
        "y = sys.held = builtins.held = polybn.batch_norm(x, training=True).y\n"
        "cycle = [polybn.batch_norm(x, training=True).y]\n"
        "cycle.append(cycle)\n"
        "import polybn_numpy.memory as memory\n"
        "memory.held = polybn.batch_norm(x, training=True).y\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
