"""What only JAX can get wrong: values that tracing hides, the ends of the range, 32-bit counts, forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polybn

jax: Any = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

ROOT = Path(__file__).parents[1]


def vector(*values: float) -> Any:
    return jnp.asarray(values, jnp.float32)


def column(*values: float) -> Any:
    return vector(*values)[:, None]


# One value left, where nobody can look (S11, S12).


@pytest.mark.clause("S11", "S12")
def test_the_unbiased_variance_of_one_value_is_nan_under_tracing() -> None:
    """In its channel only; a channel with nothing left keeps its statistics, and others are as without tracing."""
    x = jnp.asarray(np.random.default_rng(0).normal(1e3, 7, (5, 3)), jnp.float32)
    where = jnp.asarray([[True, True, False]] + [[False, True, False]] * 4)
    old = vector(30, 20, -10), vector(3, 2, 5)
    options: dict[str, Any] = {"training": True, "running_variance": "unbiased", "momentum": 0.75}

    def statistics(x: Any, where: Any) -> Any:
        return polybn.batch_norm(x, None, None, *old, where=where, **options)[1:]

    mean, variance = map(np.asarray, jax.jit(statistics)(x, where))
    expected = polybn.batch_norm(x[:, 1:], None, None, *(v[1:] for v in old), where=where[:, 1:], **options)
    assert np.isnan(variance[0])
    assert np.isfinite(mean).all()
    assert np.abs(variance[1:] - np.asarray(expected.running_var)).max() <= 2.0**-18
    assert variance[2] == 5


@pytest.mark.clause("S11")
@pytest.mark.parametrize("devices", [1, 2])
def test_one_value_on_all_devices_together(devices: int) -> None:
    x = jnp.arange(3.0 * devices).reshape(devices, 1, 3) ** 2 + 7

    def variance(x: Any) -> Any:
        start = vector(1, 2, 3).astype(x.dtype)
        options: dict[str, Any] = {"training": True, "running_variance": "unbiased", "axis_name": "i"}
        return polybn.batch_norm(x, None, None, start, start, **options).running_var

    found = np.asarray(jax.vmap(variance, axis_name="i")(x))
    assert np.isnan(found).all() if devices == 1 else np.isfinite(found).all()


# Range (S10).


@pytest.mark.clause("S10")
@pytest.mark.parametrize(
    ("x", "gamma", "beta", "variance", "eps", "expected"),
    [
        (3e38, 1e-10, None, 1e-10, 0, 3e33),
        (3e38, 0.0, 2.0, 0.5, 1e-5, 2.0),
        (-3e38, 1e-7, 5.0, 1e-14, 0, -3e38),
        (1e-30, 3e30, None, 1e-10, 0, 3e5),
        (1e19, None, None, 1e-36, 0, 1e37),
    ],
)
def test_inference_in_range_stays_in_range(
    x: Any, gamma: Any, beta: Any, variance: Any, eps: Any, expected: Any
) -> None:
    given = [None if v is None else vector(v) for v in (gamma, beta, 0.0, variance)]
    for call in (polybn.batch_norm, lambda *a, **o: jax.vmap(lambda x: polybn.batch_norm(x, *a[1:], **o))(a[0][None])):
        y = float(np.asarray(call(column(x), *given, training=False, eps=eps).y).ravel()[0])
        assert abs(y - expected) <= 4 * 2.0**-23 * abs(expected)


@pytest.mark.clause("S10", "S13")
def test_no_gradient_of_nothing() -> None:
    """At the largest values 0 in gives 0 out, not NaN."""
    given = vector(1.5), None, vector(0), vector(0.5)
    _, pullback = polybn.batch_norm_vjp(column(3e38, -3e38), *given, training=False)
    assert not any(np.asarray(g).any() for g in pullback(column(0, 0)) if g is not None)


@pytest.mark.clause("S4", "S10")
@pytest.mark.parametrize("running_variance", ["biased", "unbiased"])
def test_a_share_of_a_variance_beyond_the_range(running_variance: Any) -> None:
    start = vector(0), vector(1)
    options: dict[str, Any] = {"training": True, "momentum": 0.999, "running_variance": running_variance}
    result = polybn.batch_norm(column(1e20, -1e20), None, None, *start, **options)
    expected = 1e37 * (2 if running_variance == "unbiased" else 1)
    assert abs(float(result.running_var[0]) / expected - 1) <= 1e-6


# Counts (S15).


def part(count: int, mean: float) -> polybn.Moments:
    return polybn.Moments(jnp.asarray([count, 3], jnp.int32), vector(mean, 1), vector(1, 1))


@pytest.mark.clause("S15")
def test_counts_never_wrap() -> None:
    """Two thousand million and as many: an error, NaN under tracing, and nothing in other channels."""
    words = r"^polybn\.merge_moments: counts must add up to at most 2147483647; got 4000000000 .*jax_enable_x64"
    with pytest.raises(polybn.DomainError, match=words):
        polybn.merge_moments(part(2 * 10**9, 1), part(2 * 10**9, 3))
    traced = jax.jit(polybn.merge_moments)(part(2 * 10**9, 1), part(2 * 10**9, 3))
    again = jax.jit(polybn.merge_moments)(traced, part(1, 1))
    for merged in (traced, again):
        assert merged.count[0] == 2**31 - 1
        assert np.isnan([merged.mean[0], merged.m2[0]]).all()
        assert np.isfinite([merged.mean[1], merged.m2[1]]).all()
    most = polybn.merge_moments(part(2**31 - 2, 1), part(1, 3))
    assert (int(most.count[0]), float(most.mean[0])) == (2**31 - 1, 1)
    wide = [m._replace(count=m.count.astype(jnp.int64)) for m in (part(2 * 10**9, 1), part(2 * 10**9, 3))]
    merged = polybn.merge_moments(*wide)
    assert (int(merged.count[0]), float(merged.mean[0])) == (4 * 10**9, 2)


# Processes.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_gets_an_error_not_silence() -> None:
    """After JAX has started; a child that is forked before works."""
    code = """
        import os, sys, warnings
        import numpy as np
        import polybn, polybn_jax

        def child(started):
            try:
                x = polybn_jax.asarray(np.ones((2, 3), np.float32)) if not started else array
                polybn.batch_norm(x, training=True).y.block_until_ready()
            except polybn.BackendError as error:
                words = "polybn.batch_norm: JAX must be started in the process that uses it; got a child"
                os._exit(2 if str(error).startswith(words) else 3)
            os._exit(0)

        def code_of(started):
            pid = os.fork()
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else child(started)

        warnings.simplefilter("ignore")
        before = code_of(False)
        array = polybn_jax.asarray(np.ones((2, 3), np.float32))
        polybn.batch_norm(array, training=True)
        print(before, code_of(True))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split() == ["0", "2"], done.stderr[-2000:]
