"""``polybn_jax.nnx.BatchNorm`` beside ``flax.nnx.BatchNorm``: same words, same state, better numerics."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import equal
from polybn.conformance.strategies import sample

nnx: Any = pytest.importorskip("flax.nnx", reason="Flax is not installed")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from polybn_jax.nnx import BatchNorm  # noqa: E402

SHAPE = (7, 5, 3)


def images(seed: int = 0, mean: float = 3.0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 2, SHAPE), jnp.float32)


def made(seed: int = 0, **options: Any) -> Any:
    """Make a layer whose parameters and statistics are not 0 and 1."""
    normal = nnx.initializers.normal(1.0)
    layer = BatchNorm(3, scale_init=normal, bias_init=normal, rngs=nnx.Rngs(seed), **options)
    layer.mean[...], layer.var[...] = (jnp.asarray(v, jnp.float32) for v in ([1, -2, 5], [0.5, 3, 7]))
    return layer


def statistics(layer: Any) -> list[Any]:
    return [np.array(layer.mean[...]), np.array(layer.var[...])]


def flattened(state: Any) -> dict[tuple[str, ...], Any]:
    return dict(nnx.to_flat_state(state))


def test_flaxs_words_mean_what_they_mean_there() -> None:
    """Every word that both constructors have has one default; what is Flax's alone is left out on purpose."""
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (BatchNorm, nnx.BatchNorm))
    assert ours.keys() - theirs.keys() == {"stats_dtype", "running_variance"}
    left_out = {"dtype", "param_dtype", "axis_index_groups", "use_fast_variance"}
    later = {"promote_dtype", "bias_metadata", "scale_metadata"}  # not in every version
    assert theirs.keys() - ours.keys() | later == left_out | later
    for name in (ours.keys() & theirs.keys()) - {"bias_init", "scale_init"}:
        assert ours[name].default == theirs[name].default, name
        assert ours[name].kind == theirs[name].kind, name


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("use_scale", [True, False])
def test_a_state_of_flax_loads(use_scale: bool, use_bias: bool) -> None:
    """The state has Flax's paths, types and initial values, and either layer's loads into the other."""
    options: dict[str, Any] = {"use_scale": use_scale, "use_bias": use_bias}
    normal = nnx.initializers.normal(1.0)
    theirs = nnx.BatchNorm(3, scale_init=normal, bias_init=normal, rngs=nnx.Rngs(3), **options)
    ours = BatchNorm(3, scale_init=normal, bias_init=normal, rngs=nnx.Rngs(3), **options)
    flat = [flattened(nnx.state(layer)) for layer in (ours, theirs)]
    optional = {("scale",): use_scale, ("bias",): use_bias}
    assert flat[0].keys() == {("mean",), ("var",)} | {path for path, used in optional.items() if used}
    assert flat[1].keys() == flat[0].keys()
    for path, value in flat[0].items():
        assert type(value) is type(flat[1][path]), path
        assert equal(np.array(value[...]), np.array(flat[1][path][...])), path
    theirs(images(1))
    nnx.update(ours, nnx.state(theirs))
    assert all(map(equal, statistics(ours), statistics(theirs)))
    ours(images(2))
    nnx.update(theirs, nnx.state(ours))
    assert all(map(equal, statistics(ours), statistics(theirs)))


@pytest.mark.parametrize("axis", [-1, 1])
def test_flaxs_results_where_flax_is_accurate(axis: int) -> None:
    """In training and inference, output and statistics differ from Flax's by roundings of its one-pass variance."""
    options: dict[str, Any] = {"axis": axis, "momentum": 0.75, "epsilon": 1e-3}
    x = images(5, mean=1.0)
    ours, theirs = (cls(SHAPE[axis], rngs=nnx.Rngs(0), **options) for cls in (BatchNorm, nnx.BatchNorm))
    for training in (True, True, False):
        a, b = (np.asarray(layer(x, use_running_average=not training)) for layer in (ours, theirs))
        # kappa^2 is below 2 here: 64 roundings of numbers below 4.
        assert np.abs(a - b).max() <= 64 * 4 * 2.0**-24
        for mine, other in zip(statistics(ours), statistics(theirs), strict=True):
            assert np.abs(mine - other).max() <= 64 * 8 * 2.0**-24


def test_the_numbers_are_those_of_the_function() -> None:
    """To the bit, far from zero, too; and momentum is the weight of the old value."""
    layer, x = made(momentum=0.75, epsilon=1e-3, running_variance="unbiased"), images(4, mean=1e4)
    old = [jnp.array(v) for v in statistics(layer)]
    options: dict[str, Any] = {"momentum": 0.75, "eps": 1e-3, "axis": -1, "running_variance": "unbiased"}
    where = jnp.asarray(np.random.default_rng(1).random(SHAPE) < 0.7)
    expected = polybn.batch_norm(x, layer.scale[...], layer.bias[...], *old, training=True, where=where, **options)
    got = [layer(x, where=where), *statistics(layer)]
    assert all(equal(np.array(a), np.array(b)) for a, b in zip(got, expected, strict=True))
    constant = BatchNorm(3, rngs=nnx.Rngs(0))(jnp.full(SHAPE, 1234.567, jnp.float32))
    assert not constant.any()


class Model(nnx.Module):
    """A batch norm between two linear maps."""

    def __init__(self, **options: Any) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)
        self.norm = BatchNorm(5, momentum=0.75, rngs=rngs, **options)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


def loss(model: Any, x: Any) -> Any:
    return (model(x)[..., 0] * jnp.cos(jnp.arange(35.0).reshape(7, 5))).sum()


def test_train_and_eval_switch() -> None:
    """``train()`` updates statistics at every call; ``eval()`` uses them and leaves them alone."""
    model, x = Model(), images()
    model.train()
    before = statistics(model.norm)
    model(x)
    after = statistics(model.norm)
    assert not any(map(equal, before, after))
    model.eval()
    y = model(x)
    assert all(map(equal, statistics(model.norm), after))
    assert equal(np.array(model(x)), np.array(y))
    model.train()
    assert not equal(np.array(model(x)), np.array(y))
    assert not any(map(equal, statistics(model.norm), after))


def test_jit_grad_and_state_updates() -> None:
    """Under ``nnx.jit`` of ``nnx.value_and_grad`` statistics change as without, and gradients are those of JAX."""
    x = images()
    one, other = Model(), Model()
    plain_loss, plain = nnx.value_and_grad(loss)(one, x)
    jitted_loss, jitted = nnx.jit(nnx.value_and_grad(loss))(other, x)
    assert abs(float(plain_loss - jitted_loss)) <= 1e-4
    assert not any(map(equal, statistics(one.norm), statistics(Model().norm)))
    for a, b in zip(statistics(one.norm), statistics(other.norm), strict=True):
        assert np.abs(a - b).max() <= 2.0**-18
    found, expected = flattened(jitted), flattened(plain)
    assert {("norm", "scale"), ("norm", "bias")} <= expected.keys() == found.keys()
    assert ("norm", "mean") not in expected
    for path, value in found.items():
        want = np.array(expected[path][...])
        assert np.abs(np.array(value[...]) - want).max() <= 2.0**-14, path
    # The bias of the norm moves every output by tanh' times the last kernel; a step against the gradient says how much.
    for path in (("norm", "scale"), ("norm", "bias")):
        moved, step = Model(), 2.0**-6 * jnp.sign(expected[path][...])
        before = float(loss(Model(), x))
        getattr(moved.norm, path[1])[...] += step
        rise, slope = float(loss(moved, x)) - before, float((expected[path][...] * step).sum())
        assert abs(rise - slope) <= 0.25 * slope, path


def test_split_and_merge() -> None:
    """A split layer merges into one with the same bits, and works as a pure function."""
    layer, x = made(), images(2)
    graph, params, stats = nnx.split(layer, nnx.Param, nnx.BatchStat)

    @jax.jit
    def apply(params: Any, stats: Any, x: Any) -> Any:
        merged = nnx.merge(graph, params, stats)
        y = merged(x)
        return y, nnx.state(merged, nnx.BatchStat)

    y, new = apply(params, stats, x)
    expected = layer(x)
    assert np.abs(np.array(y) - np.array(expected)).max() <= 2.0**-20
    nnx.update(layer, new)
    again = nnx.merge(graph, params, new)
    assert equal(np.array(again(x, use_running_average=True)), np.array(layer(x, use_running_average=True)))


def test_synchronised_statistics() -> None:
    """With ``axis_name`` four mapped parts see one batch."""
    x = images(6)[:4]
    whole, part = made(), made(axis_name="parts")
    expected = whole(x)
    graph, state = nnx.split(part)
    got = jax.vmap(lambda state, x: nnx.merge(graph, state)(x), (None, 0), axis_name="parts")(state, x[:, None])
    assert np.abs(np.array(got[:, 0]) - np.array(expected)).max() <= 2.0**-19


def test_faults_speak_in_flaxs_words() -> None:
    case = sample(1, "float64", SHAPE)
    with pytest.raises(polybn.DTypeError, match=r"^polybn_jax\.nnx\.BatchNorm: scale must have dtype float64"):
        BatchNorm(3, rngs=nnx.Rngs(0))(jnp.asarray(case.x))
    wide = BatchNorm(3, stats_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert wide(jnp.asarray(case.x)).dtype == jnp.float64
    with pytest.raises(polybn.ShapeError, match=r"^polybn_jax\.nnx\.BatchNorm: scale must have shape \(2,\)"):
        wide(jnp.asarray(case.x[..., :2]))
    wide.var[...] = -wide.var[...]
    with pytest.raises(polybn.DomainError, match=r"^polybn_jax\.nnx\.BatchNorm: var must be finite and not negative"):
        wide(jnp.asarray(case.x), use_running_average=True)


def test_numpy_arrays_are_converted() -> None:
    """Input, mask and a restored state; eagerly, as Flax does."""
    layer, other, x = made(), made(), images(3)
    where = np.random.default_rng(1).random(SHAPE) < 0.7
    nnx.update(other, jax.tree.map(np.asarray, nnx.state(layer)))
    got, expected = other(np.asarray(x), where=where), layer(x, where=jnp.asarray(where))
    assert isinstance(got, jax.Array)
    assert equal(np.array(got), np.array(expected))
    assert all(map(equal, statistics(other), statistics(layer)))


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="this version of Flax has no nnx.view")
def test_views() -> None:
    """``nnx.view``, which Flax's own errors recommend, gives inference beside training, on one state."""
    model, x = Model(), images()
    view = nnx.view(model, use_running_average=True, raise_if_not_found=False)
    assert (model.norm.use_running_average, view.norm.use_running_average) == (False, True)
    before = statistics(model.norm)
    y = view(x)
    assert all(map(equal, before, statistics(model.norm)))
    model.eval()
    assert equal(np.array(y), np.array(model(x)))
    view.norm.set_view()
    assert view.norm.use_running_average


def test_importing_the_backend_does_not_import_flax() -> None:
    code = "import sys, polybn_jax; raise SystemExit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, polybn_jax.nnx; raise SystemExit('flax' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
