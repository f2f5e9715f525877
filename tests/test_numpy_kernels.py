"""The compiled kernels: bits are independent of instructions, threads, layout and deleted values; out; processes."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
import polybn_host
from polybn import dispatch
from polybn.bench import contenders, peers
from polybn.conformance.adapters.backend import BackendAdapter
from polybn.conformance.cases import DTYPES
from polybn_numpy.host import without_kernels

Array = NDArray[Any]

compiled = pytest.mark.skipif(polybn_host.missing is not None, reason=f"kernels: {polybn_host.missing}")
SHAPES = [(2, 3, 4999), (61, 3, 7, 11), (257, 131), (13, 67, 5, 5), (2, 1, 40_009), (3, 2)]
SHAPES += [(37, 3, 2), (23, 5, 3), (29, 2, 7)]  # rows that are gathered
FORKS = """
import multiprocessing, numpy, polybn

def spread(seed):
    x = numpy.random.default_rng(seed).normal(size=(67, 7, 53, 47)).astype("float32")
    result, pullback = polybn.batch_norm_vjp(x, training=True)
    gradients, second = pullback.vjp(x)
    return float(result.y.std()), float(gradients.x.std()), float(second(gradients).x.std())

expected = [spread(seed) for seed in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map_async(spread, range(3)).get(timeout=50) == expected)
"""
OUTLIVES = """
import atexit, threading, numpy

x = numpy.random.default_rng(0).normal(size=(67, 7, 53, 47)).astype("float32")

def work():
    import polybn
    print(float(polybn.batch_norm(x, training=True).y.std()))

def work_late():
    threading.main_thread().join()
    work()

BEFORE
threading.Thread(target=work_late).start()
atexit.register(work)
"""


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Restore the instruction set and the number of threads."""
    yield
    if polybn_host.missing is None:
        polybn_host.use_instructions("")
        polybn_host.use_threads(2)


def sample(shape: tuple[int, ...], dtype: str) -> tuple[Array, Array, Array, Array]:
    """Return x, dy, gamma and beta with mean and scale far from 0 and 1."""
    rng = np.random.default_rng(sum(shape))
    x, dy = (rng.normal(-70, 9, shape).astype(DTYPES[dtype]), rng.normal(3, 5, shape).astype(DTYPES[dtype]))
    gamma, beta = rng.normal(2, 3, (2, shape[1])).astype("float64" if dtype == "float64" else "float32")
    return x, dy, gamma, beta


def results(x: Array, dy: Array, gamma: Array, beta: Array, where: Array | None = None, axis: int = 1) -> list[Array]:
    """Return all results in training and inference; those with the shape of x are contiguous."""
    got = list[Array]()
    mean, var = np.full_like(gamma, -60), np.full_like(gamma, 50)
    for training in (True, False):
        result, pullback = polybn.batch_norm_vjp(x, gamma, beta, mean, var, training=training, where=where, axis=axis)
        found = (*result, *pullback(dy))
        got += [np.ascontiguousarray(np.moveaxis(a, axis, 1) if a.ndim > 1 else a) for a in found if a is not None]
    return got


def same_bits(a: list[Array], b: list[Array]) -> bool:
    """Compare results to the bit."""
    return all(p.dtype == q.dtype and p.tobytes() == q.tobytes() for p, q in zip(a, b, strict=True))


@compiled
@pytest.mark.clause("S1", "S7")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_depend_on_values_alone(shape: tuple[int, ...], dtype: str) -> None:
    """All instruction sets, numbers of threads and layouts give the same bits."""
    arguments = sample(shape, dtype)
    x, dy, gamma, beta = arguments
    polybn_host.use_threads(1)
    base = results(*arguments)
    for name in ("baseline", "avx2", "avx512"):
        if polybn_host.use_instructions(name):
            for threads in (1, 2, 5):
                polybn_host.use_threads(threads)
                assert same_bits(results(*arguments), base), (name, threads)
                last, last_dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
                moved = np.moveaxis(last, -1, 1)
                assert same_bits(results(moved, dy, gamma, beta), base), (name, threads, "mixed")
                assert same_bits(results(last, last_dy, gamma, beta, axis=-1), base), (name, threads, "last")
                gaps, turned = np.repeat(x, 2, axis=-1)[..., ::2], np.ascontiguousarray(dy[::-1])[::-1]
                assert same_bits(results(gaps, turned, gamma, beta), base), (name, threads, "gaps")


@compiled
@pytest.mark.clause("S1", "S7")
@pytest.mark.parametrize("shape", [(3, 23, 15_401), (2, 1, 600_011), (67, 29, 67, 11)])
def test_bits_of_large_calls(shape: tuple[int, ...]) -> None:
    """Threads that share passes, and threads that work on whole channels, give the bits of one thread."""
    arguments = sample(shape, "float32")
    polybn_host.use_threads(1)
    base = results(*arguments)
    for threads in (2, 3):
        polybn_host.use_threads(threads)
        assert same_bits(results(*arguments), base), threads


@compiled
@pytest.mark.clause("S8", "S9", "S10")
@pytest.mark.parametrize("dtype", DTYPES)
def test_among_many_channels_each_has_the_bits_of_itself_alone(dtype: str) -> None:
    """Channels are finished in blocks: constant ones, NaN, and ones that leave the range do not touch the others."""
    x, dy, gamma, beta = sample((13, 101), dtype)
    huge, tiny = {"float16": (2.0**8, 2.0**-14), "float64": (2.0**1016, 2.0**-1022)}.get(dtype, (2.0**120, 2.0**-126))
    x[:, ::7], x[5, 3::11] = 2.5, np.nan
    x[:, 4::13] = (x[:, 4::13].astype("float64") * huge).astype(x.dtype)
    dy[:, ::17] = (dy[:, ::17].astype("float64") * tiny).astype(x.dtype)
    with np.errstate(over="ignore"):
        got = results(x, dy, gamma, beta)
        for c in range(101):
            own = slice(c, c + 1)
            alone = results(x[:, own].copy(), dy[:, own].copy(), gamma[own], beta[own])
            parts = [a[..., own] for a in got]
            assert all(np.array_equal(p, q, equal_nan=True) for p, q in zip(parts, alone, strict=True)), c


@compiled
@pytest.mark.clause("S7", "S9")
@pytest.mark.parametrize("shape", [(20_011, 3), (61, 3, 331), (7001, 3, 2)])
def test_nan_in_one_channel_changes_no_bit_of_others_whose_results_overflow(shape: tuple[int, ...]) -> None:
    """Results of float16 that overflow as they are stored are in range: only the channel with NaN is computed again."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(-60, 7, shape).astype(np.float16), rng.normal(3, 11, shape).astype(np.float16)
    gamma, beta = np.array([3e4, 2, 3e4], np.float32), np.full(3, 7, np.float32)
    with np.errstate(over="ignore"):
        base = [a[:, ::2] if a.ndim > 1 else a[::2] for a in results(x, dy, gamma, beta)]
        assert all(np.isinf(a).any() for a in base if a.dtype == np.float16)
        x[::7, 1] = np.nan
        got = [a[:, ::2] if a.ndim > 1 else a[::2] for a in results(x, dy, gamma, beta)]
    assert same_bits([a.copy() for a in got], [a.copy() for a in base])


@compiled
@pytest.mark.clause("S10")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(257, 5), (29, 5, 2), (67, 5, 13), (29, 5, 37)])
def test_a_channel_that_overflows_in_inference_is_computed_again(shape: tuple[int, ...], masked: bool) -> None:
    """One value minus the running mean overflows, its result does not; nor do those of other channels."""
    x, _, gamma, beta = sample(shape, "float32")
    mean, var = np.full(5, -60, np.float32), np.full(5, 50, np.float32)
    mean[3], var[3], x[-1, 3] = -3e38, 1e38, 3e38
    where = np.ones(shape, np.bool_) if masked else None
    y = polybn.batch_norm(x, gamma, beta, mean, var, training=False, where=where).y
    columns = [v.astype(np.float64).reshape(5, *(1,) * (len(shape) - 2)) for v in (mean, var, gamma, beta)]
    wide = (x - columns[0]) / np.sqrt(columns[1] + 1e-5) * columns[2] + columns[3]
    np.testing.assert_allclose(y, wide, rtol=1e-5, atol=1e-5)


@compiled
@pytest.mark.clause("S12")
@pytest.mark.parametrize("dtype", DTYPES)
def test_deletion_to_the_bit(dtype: str) -> None:
    """Each channel has the bits of a call without the deleted values, which are NaN here."""
    x, dy, gamma, beta = sample((9001, 3), dtype)
    rng = np.random.default_rng(0)
    where = rng.random(x.shape) < 0.7
    x[~where] = dy[~where] = np.nan
    got = results(x, dy, gamma, beta, where=where)
    for c in range(3):
        keep = where[:, c]
        own = (x[keep, c : c + 1].copy(), dy[keep, c : c + 1].copy())
        alone = results(own[0], own[1], gamma[c : c + 1], beta[c : c + 1])
        parts = [np.ascontiguousarray(a[keep, c : c + 1] if a.ndim > 1 else a[c : c + 1]) for a in got]
        assert same_bits(parts, alone)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_out(training: bool, plain: bool) -> None:
    """Results are written to the given array, which is returned, for any strides and even for x itself."""
    x, dy, gamma, beta = sample((17, 5, 3), "float32")
    vectors = (gamma, beta, beta, gamma**2)
    with without_kernels() if plain else np.errstate():
        expected, pull = polybn.batch_norm_vjp(x, *vectors, training=training)
        dx = pull(dy).x
        for out in (np.empty_like(x), np.empty((3, 17, 5), "float32").transpose(1, 2, 0)):
            y = polybn.batch_norm(x, *vectors, training=training, out=out).y
            assert y is out
            assert np.array_equal(y, expected.y)
            assert pull(dy, out=out).x is out
            assert np.array_equal(out, dx)
        own = x.copy()
        assert np.array_equal(polybn.batch_norm(own, *vectors, training=training, out=own).y, expected.y)
        assert np.array_equal(own, expected.y)
        gradient = dy.copy()
        assert np.array_equal(pull(gradient, out=gradient).x, dx)
        shared = np.empty((18, 5, 3), "float32")
        for part, out in ((shared[:17], shared[1:]), (own[::-1], own)):  # of its memory, x is one half or all
            part[...] = x
            assert np.array_equal(polybn.batch_norm(part, *vectors, training=training, out=out).y, expected.y)
            part[...] = dy
            assert np.array_equal(pull(part, out=out).x, dx)


def foreign(array: Array) -> Array:
    """Wrap an array's memory as foreign code may, so that the result neither owns memory nor has a base."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    inner = importlib.import_module(f"numpy.{'_core' if np.__version__ >= '2' else 'core'}._multiarray_umath")
    functions = (ctypes.c_void_p * 94).from_address(pointer(inner._ARRAY_API, None))
    new = ctypes.PYFUNCTYPE(
        ctypes.py_object,
        ctypes.py_object,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
    )(functions[93] or 0)  # PyArray_New
    sizes = (ctypes.c_ssize_t * array.ndim)(*array.shape)
    strides = (ctypes.c_ssize_t * array.ndim)(*array.strides)
    wrapped: Array = new(
        np.ndarray, array.ndim, sizes, array.dtype.num, strides, array.ctypes.data, 0, array.flags.num, None
    )
    assert wrapped.base is None
    assert not wrapped.flags.owndata
    return wrapped


def test_out_may_be_memory_that_foreign_code_wrapped() -> None:
    x = sample((13, 13), "float32")[0]
    expected, out = polybn.batch_norm(np.ascontiguousarray(x.T), training=True).y, x.copy()
    assert np.array_equal(polybn.batch_norm(foreign(out.T), training=True, out=out).y, expected)


def test_out_must_fit() -> None:
    x = np.ones((4, 3), np.float32)
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    for out, error, words in (
        (np.empty((3, 4), np.float32), polybn.ShapeError, r"out must have shape \(4, 3\); got \(3, 4\)"),
        (np.empty((4, 3)), polybn.DTypeError, "out must have dtype float32; got float64"),
        ([], polybn.DTypeError, "out must be a plain NumPy array; got list"),
        (frozen, polybn.ShapeError, "out must be writeable"),
    ):
        with pytest.raises(error, match=rf"polybn\.batch_norm: {words}"):
            polybn.batch_norm(x, training=True, out=out)
        with pytest.raises(error, match=rf"polybn\.batch_norm_vjp: {words}"):
            polybn.batch_norm_vjp(x, training=True)[1](x, out=out)
    with pytest.raises(polybn.DTypeError, match=r"polybn\.moments: out must be left out"):
        polybn.moments(x, out=np.empty_like(x))


@pytest.fixture(params=["compiled", "plain"])
def run(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Run a program in a new process, where no other library has threads; return its output."""
    environment = os.environ | {"POLYBN_KERNELS": "01"[request.param == "compiled"]}

    def run(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@compiled
def test_a_library_that_was_compiled_from_other_sources_is_not_used(tmp_path: Path) -> None:
    """It may take other arguments than it is given, or compute as before a change."""
    package = tmp_path / "polybn_host"
    shutil.copytree(Path(polybn_host.__file__).parent, package)
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", "import polybn_host; print(polybn_host.missing)"],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        said.append(done.stdout)
        with (package / "kernels" / "job.h").open("a") as file:
            file.write("\n")
    assert said[0] == "None\n"
    assert said[1].startswith("compiled from other sources than these (pip install")


def test_a_forked_child_has_threads_of_its_own(run: Callable[[str], str]) -> None:
    assert run(FORKS) == "True\n"


@pytest.mark.parametrize("before", ["", "import polybn", "import polybn; polybn.batch_norm(x, training=True)"])
def test_a_thread_that_outlives_main(run: Callable[[str], str], before: str) -> None:
    """And a function that runs at exit, after all threads have ended."""
    assert np.allclose([float(line) for line in run(OUTLIVES.replace("BEFORE", before)).split()], [1, 1], atol=1e-3)


def test_info_says_which_kernels_serve() -> None:
    words = polybn.backend("numpy").describe()["kernels"]
    assert words == (polybn_host.missing or polybn_host.instructions())


@compiled
def test_the_form_without_kernels_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a report of the kit nor in the table of the bench."""
    monkeypatch.setattr(dispatch, "backends", lambda: {"numpy": None})
    monkeypatch.setattr(peers, "PEERS", {})
    versions = {form: BackendAdapter("numpy", form).info().version for form in ("", "plain")}
    versions |= {found.name: found.version for found in contenders.found() if found.name.startswith("numpy")}
    plain = {form for form, version in versions.items() if ", kernels not used, " in version}
    assert plain == {"plain", "numpy+plain"}
    assert all(polybn_host.instructions() in version for form, version in versions.items() if form not in plain)


@pytest.mark.clause("S11")
@pytest.mark.parametrize("shape", [(0, 0), (5, 0), (0, 3, 2), (2, 3, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_in_nothing_out_without_kernels(shape: tuple[int, ...], training: bool) -> None:
    statistics = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
    with without_kernels():
        result, pullback = polybn.batch_norm_vjp(
            np.empty(shape, np.float32), None, None, *statistics, training=training
        )
        gradient = pullback(np.empty(shape, np.float32)).x
    assert result.y.shape == gradient.shape == shape
    assert result.running_var is not None
    assert np.array_equal(result.running_var, statistics[1])
