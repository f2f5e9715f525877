"""Clauses S6 and S7: types, untouched inputs, equal bits, aliases, defaults, threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import polybn
from polybn.conformance.cases import DTYPES, Case, case_of, equal, same, statistics_dtype
from polybn.conformance.strategies import sample
from tests.support.cases import Outcome, run
from tests.support.drawing import cases

THREADS = 8


@pytest.mark.clause("S6")
@given(case=cases())
def test_types_and_shapes(backend: str, case: Case) -> None:
    """y and dx have the dtype and shape of x; the rest has shape (C,) and is float32, or float64 for float64 x."""
    outcome = run(polybn.backend(backend), case)
    wide, channels = statistics_dtype(case.x), case.x.shape[case.axis]
    for name, value in outcome._asdict().items():
        if name in ("y", "dx"):
            assert (value.dtype, value.shape) == (case.x.dtype, case.x.shape), name
        elif value is not None:
            assert (value.dtype, value.shape) == (wide, (channels,)), name


@pytest.mark.clause("S7")
@given(case=cases())
def test_absent_in_absent_out(backend: str, case: Case) -> None:
    """Running statistics, and the gradients of gamma and beta, are returned if and only if these were given."""
    outcome = run(polybn.backend(backend), case)
    pairs = {"running_mean": "running_mean", "running_var": "running_var", "gamma": "dgamma", "beta": "dbeta"}
    for given_name, back in pairs.items():
        assert (getattr(case, given_name) is None) == (getattr(outcome, back) is None), back


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.clause("S7")
@given(case=cases())
def test_inputs_are_not_written(backend: str, case: Case) -> None:
    """Every input keeps its bytes in the forward call and in two pullbacks."""
    b = polybn.backend(backend)
    host = {name: a for name, a in {**case.arrays(), "dy": case.dy}.items() if a is not None}
    host["where"] = np.random.default_rng(1).random(case.x.shape) < 0.9
    inputs = {name: b.asarray(a) for name, a in host.items()}
    arrays = [inputs.get(name) for name in case.arrays()]
    options = case.options() | {"running_variance": "biased"}
    _, pullback = polybn.batch_norm_vjp(*arrays, **options, where=inputs["where"])
    pullback(inputs["dy"])
    pullback(inputs["dy"])
    polybn.batch_norm(*arrays, **options)
    polybn.moments(inputs["x"], axis=case.axis)
    for name, array in inputs.items():
        assert digest(b.to_numpy(array)) == digest(host[name]), name


@pytest.mark.clause("S7")
@given(case=cases(), other=cases())
def test_same_call_same_bits(backend: str, case: Case, other: Case) -> None:
    """A call gives the same bits after any other call."""
    b = polybn.backend(backend)
    first = run(b, case)
    run(b, other)
    assert same(run(b, case), first)


@pytest.mark.clause("S7")
@given(case=cases())
def test_forward_alone(backend: str, case: Case) -> None:
    """``batch_norm`` returns the bits of the result of ``batch_norm_vjp``."""
    b = polybn.backend(backend)
    arrays = [None if a is None else b.asarray(a) for a in case.arrays().values()]
    alone = polybn.batch_norm(*arrays, **case.options())
    together, _ = polybn.batch_norm_vjp(*arrays, **case.options())
    for a, c in zip(alone, together, strict=True):
        assert equal(None if a is None else b.to_numpy(a), None if c is None else b.to_numpy(c))


@pytest.mark.clause("S7")
@pytest.mark.parametrize("training", [True, False])
def test_aliased_arguments(backend: str, training: bool) -> None:
    """One array as several arguments, even as all of them, gives the results of equal copies."""
    b, case = polybn.backend(backend), sample(7, "float32", (7, 3, 5), training=training)
    assert case.gamma is not None
    vector, x = np.abs(case.gamma), b.asarray(case.x)
    shared = b.asarray(vector)
    result, pullback = polybn.batch_norm_vjp(x, shared, shared, shared, shared, **case.options())
    got = Outcome._make(None if a is None else b.to_numpy(a) for a in (*result, *pullback(x)))
    apart = case_of(case.x, [vector] * 4, case.x.copy(), **case.options())
    assert same(got, run(b, apart))


@pytest.mark.clause("S4", "S7")
@pytest.mark.parametrize("training", [True, False])
def test_defaults(backend: str, training: bool) -> None:
    """momentum=0.9, eps=1e-5, axis=1, running_variance="biased", where=None and absent arrays are the defaults."""
    b, case = polybn.backend(backend), sample(8, "float32", (7, 3, 5), scale=1e-2)
    arrays = [b.asarray(a) for a in case.arrays().values() if a is not None]
    explicit: dict[str, Any] = {
        "momentum": 0.9, "eps": 1e-5, "axis": 1, "running_variance": "biased", "where": None,
    }  # fmt: skip
    for function in (polybn.batch_norm, lambda *a, **k: polybn.batch_norm_vjp(*a, **k)[0]):
        whole = function(*arrays, training=training, **explicit)
        for name in explicit:
            rest = {key: value for key, value in explicit.items() if key != name}
            for a, c in zip(function(*arrays, training=training, **rest), whole, strict=True):
                assert equal(b.to_numpy(a), b.to_numpy(c)), name
    x, mean, var = arrays[0], *arrays[3:]
    plain = polybn.batch_norm(x, running_mean=mean, running_var=var, training=training)
    nothing = polybn.batch_norm(x, None, None, mean, var, training=training)
    for a, c in zip(plain, nothing, strict=True):
        assert equal(b.to_numpy(a), b.to_numpy(c))
    for a, c in zip(polybn.moments(x), polybn.moments(x, axis=1, where=None), strict=True):
        assert equal(b.to_numpy(a), b.to_numpy(c))
    for a, c in zip(polybn.fold(None, None, mean, var), polybn.fold(None, None, mean, var, eps=1e-5), strict=True):
        assert equal(b.to_numpy(a), b.to_numpy(c))


@pytest.mark.clause("S4", "S6")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, Fraction])
def test_numbers_mean_their_value(backend: str, dtype: str, kind: Callable[[float], Any]) -> None:
    """Momentum and eps count by their value, whatever the type of the number; they neither promote nor round."""
    b, case = polybn.backend(backend), sample(9, dtype, (7, 3, 5), scale=0.3)
    momentum, eps = kind(0.1), kind(0.3)
    got = run(b, case._replace(momentum=momentum, eps=eps))
    assert same(got, run(b, case._replace(momentum=float(momentum), eps=float(eps))))


@pytest.mark.clause("S4")
def test_whole_numbers(backend: str) -> None:
    """Momentum and eps may be ints."""
    b, case = polybn.backend(backend), sample(9, "float32", (7, 3, 5))
    for momentum in (0, 1):
        got = run(b, case._replace(momentum=momentum, eps=0))
        assert same(got, run(b, case._replace(momentum=float(momentum), eps=0.0)))


@pytest.mark.clause("S7")
def test_threads(backend: str) -> None:
    """Eight threads on shared inputs, of one and of many blocks, get the bits of a serial run."""
    b = polybn.backend(backend)
    small = (("float32", (67, 31, 5)), ("float64", (11, 7)), ("bfloat16", (13, 3, 5)))
    jobs = [sample(1, dtype, shape, training=training) for dtype, shape in small for training in (True, False)]
    jobs.append(sample(2, "float32", (601, 11, 197), kappa=100.0))
    serial, barrier = [run(b, job) for job in jobs], threading.Barrier(THREADS)

    def work(index: int) -> list[bool]:
        barrier.wait()
        order = [(i + index) % len(jobs) for i in range(len(jobs))]
        return [same(run(b, jobs[i]), serial[i]) for i in order]

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(map(all, pool.map(work, range(THREADS))))
