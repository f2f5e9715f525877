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
    """Every word of Flax's is known, with its default; but for functions, and ``param_dtype``, which says nothing."""
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (BatchNorm, nnx.BatchNorm))
    later = {"promote_dtype", "bias_metadata", "scale_metadata"}  # not in every version
    assert ours.keys() - theirs.keys() - later == {"stats_dtype", "running_variance"}
    assert theirs.keys() <= ours.keys()
    calls = (inspect.signature(cls.__call__).parameters for cls in (nnx.BatchNorm, BatchNorm))
    assert set(next(calls)) <= set(next(calls))
    for name in (ours.keys() & theirs.keys()) - {"bias_init", "scale_init", "promote_dtype", "param_dtype"}:
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"param_dtype": jnp.bfloat16}, r"param_dtype must be stats_dtype, float32; got bfloat16 \(.*stats_dtype="),
        ({"axis_index_groups": [[0, 1], [2, 3]]}, r"axis_index_groups must be None; got \[\[0, 1\].*axis_name="),
        ({"promote_dtype": len}, r"promote_dtype must be None; got <.*dtype= converts"),
    ],
)
def test_what_flax_alone_has_is_refused_with_a_reason(options: dict[str, Any], words: str) -> None:
    with pytest.raises((polybn.DTypeError, polybn.DomainError), match=rf"^polybn_jax\.nnx\.BatchNorm: {words}"):
        BatchNorm(3, rngs=nnx.Rngs(0), **options)


def test_a_call_that_flax_understands_otherwise_is_refused() -> None:
    """And changes nothing."""
    layer, x = made(use_running_average=None), images()
    before = statistics(layer)
    with pytest.raises(polybn.DTypeError, match=r"use_running_average must be True or False; got None \(.*model\.eval"):
        layer(x)
    with pytest.raises(polybn.DomainError, match=r"mask must be None; got an array \(layer\(x, where=mask\)"):
        layer(x, use_running_average=False, mask=x > 0)
    assert all(map(equal, statistics(layer), before))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_dtype_converts_the_input(given: str, dtype: str) -> None:
    """The output has the dtype that Flax's has; its values are those of the converted input."""
    x = images(mean=1.0).astype(given)
    layers = [made(dtype=jnp.dtype(dtype), param_dtype=jnp.float32, use_fast_variance=False) for _ in range(2)]
    theirs = nnx.BatchNorm(3, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    layers[1].dtype = None
    y, expected = layers[0](x), layers[1](x.astype(dtype))
    assert y.dtype == theirs(x).dtype == dtype
    assert equal(np.array(y.astype(float)), np.array(expected.astype(float)))
    assert layers[0].mean[...].dtype == jnp.float32


def test_metadata_of_parameters() -> None:
    layer = BatchNorm(3, scale_metadata={"mine": 1}, bias_metadata={"mine": 2}, rngs=nnx.Rngs(0))
    assert (layer.scale.mine, layer.bias.mine) == (1, 2)


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
