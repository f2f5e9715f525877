"""JAX's transformations of ``batch_norm``: each gives what the plain call and its pullback give.

Bounds: what is the same program but for fusion differs by some roundings of sums of at most 35 values below 8, times a
slope below 8: ``BOUND`` is a hundred of them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import equal
from polybn.conformance.strategies import sample

jax: Any = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

SHAPE = (7, 3, 5)
BOUND = 100 * 64 * 2.0**-53
BOTH = pytest.mark.parametrize("training", [True, False])
ARGUMENTS = ("x", "gamma", "beta", "running_mean", "running_var")


class Call:
    """A call in float64: its arguments, their tangents, and a scalar loss of its output."""

    def __init__(self, training: bool, seed: int = 3, **options: Any) -> None:
        case = sample(seed, "float64", SHAPE, training=training, momentum=0.75, eps=1e-3)
        self.arrays = [jnp.asarray(a) for a in case.arrays().values()]
        self.dy, self.options = jnp.asarray(case.dy), case.options() | options
        rng = np.random.default_rng(seed + 1)
        self.tangents = [jnp.asarray(rng.normal(size=a.shape)) for a in self.arrays]

    def __call__(self, *arrays: Any) -> Any:
        return polybn.batch_norm(*arrays, **self.options)

    def y(self, *arrays: Any) -> Any:
        return self(*arrays).y

    def loss(self, *arrays: Any) -> Any:
        return (self.y(*arrays) * self.dy).sum()

    def gradients(self) -> list[Any]:
        """Return the pullback's gradients, 0 where there is none."""
        _, pullback = polybn.batch_norm_vjp(*self.arrays, **self.options)
        found = pullback(self.dy)
        return [jnp.zeros_like(a) if g is None else g for g, a in zip(found, self.arrays, strict=True)]


def near(got: Any, expected: Any, bound: float = BOUND) -> None:
    """Assert equal structures of arrays, each value within a bound relative to the largest."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True))
    assert pairs
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.isfinite(b).all()
        assert np.abs(a - b).max(initial=0) <= bound * max(1, np.abs(b).max(initial=0))


@BOTH
@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_same_results(training: bool, transform: Callable[..., Any]) -> None:
    call = Call(training)
    near(transform(call)(*call.arrays), call(*call.arrays))


@BOTH
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
def test_grad_is_the_pullback(training: bool, transform: Callable[..., Any]) -> None:
    call = Call(training)
    value, found = jax.value_and_grad(transform(call.loss), argnums=range(5))(*call.arrays)
    near(list(found), call.gradients())
    near(value, call.loss(*call.arrays))
    near(transform(jax.grad(call.loss))(*call.arrays), call.gradients()[0])
    assert all(np.abs(np.asarray(g)).max() > 1e-3 for g in call.gradients()[: 3 if training else 5])


@BOTH
def test_vjp_of_jax(training: bool) -> None:
    call = Call(training)
    y, pull = jax.vjp(call.y, *call.arrays)
    near(y, call.y(*call.arrays))
    near(list(pull(call.dy)), call.gradients())


@BOTH
def test_jvp_is_the_adjoint(training: bool) -> None:
    """Forward mode: ``<J u, dy> = <u, J^T dy>``, argument by argument, and all at once."""
    call = Call(training)
    for i, (array, u, g) in enumerate(zip(call.arrays, call.tangents, call.gradients(), strict=True)):
        f = functools.partial(lambda i, z: call.y(*call.arrays[:i], z, *call.arrays[i + 1 :]), i)
        _, du = jax.jvp(f, (array,), (u,))
        near((du * call.dy).sum(), (u * g).sum(), 100 * BOUND)
    _, whole = jax.jvp(call.y, call.arrays, call.tangents)
    near(
        (whole * call.dy).sum(),
        sum((u * g).sum() for u, g in zip(call.tangents, call.gradients(), strict=True)),
        100 * BOUND,
    )


@BOTH
def test_running_statistics_carry_no_gradient(training: bool) -> None:
    """In training nothing flows from the new running statistics to any argument (S13)."""
    call = Call(training)
    found = jax.grad(lambda *a: sum(z.sum() for z in call(*a)[1:]), argnums=range(5))(*call.arrays)
    if training:
        assert not any(np.asarray(g).any() for g in found)
    else:
        assert [float(np.abs(np.asarray(g)).max()) for g in found] == [0, 0, 0, 1, 1]


@BOTH
def test_second_derivatives_of_halves_are_rounded_once(training: bool) -> None:
    """What contributes to them adds up in float32: they are those of the same values in float32, rounded."""
    case = sample(3, "float16", SHAPE, training=training, eps=1e-3)
    direction = np.random.default_rng(4).normal(size=SHAPE).astype("float16")

    def second(dtype: str) -> Any:
        x, dy, a = (jnp.asarray(z).astype(dtype) for z in (case.x, case.dy, direction))
        rest = [jnp.asarray(z) for z in case.arrays().values()][1:]

        def slope(x: Any, dy: Any) -> Any:
            return jax.vjp(lambda x: polybn.batch_norm(x, *rest, **case.options()).y, x)[1](dy)[0]

        return [np.asarray(z) for z in jax.vjp(slope, x, dy)[1](a)]

    for got, wide in zip(second("float16"), second("float32"), strict=True):
        assert got.dtype == np.float16
        spacing = np.spacing(np.abs(wide).astype("float16")).astype("float32")
        assert (np.abs(got - wide) <= 0.51 * spacing).all()


@BOTH
def test_hessian(training: bool) -> None:
    """Forward over reverse: the second pullback's answer, column by column of a direction, and symmetric."""
    call = Call(training)
    f = lambda x: call.loss(x, *call.arrays[1:])  # noqa: E731
    whole = jax.hessian(f)(call.arrays[0]).reshape(105, 105)
    assert np.abs(whole - whole.T).max() <= BOUND * max(1.0, float(np.abs(whole).max()))
    if not training:
        assert not np.asarray(whole).any()
        f = lambda v: call.loss(*call.arrays[:4], v)  # noqa: E731
        var = call.arrays[4]
        step = 2.0**-13 * var
        slopes = [jax.grad(f)(var + s)[0] for s in (step, -step)]
        second = jax.hessian(f)(var)
        assert abs(float(second[0, 0] - (slopes[0] - slopes[1]) / (2 * step[0]))) <= 1e-6 * abs(float(second[0, 0]))
        return
    u = call.tangents[0]
    _, pullback = polybn.batch_norm_vjp(*call.arrays, **call.options)
    first, again = pullback.vjp(call.dy)
    cotangents = polybn.spec.Gradients(u, jnp.zeros(3), jnp.zeros(3), None, None)
    assert equal(np.asarray(first.x), np.asarray(call.gradients()[0]))
    near((whole @ u.ravel()).reshape(SHAPE), again(cotangents).x, 100 * BOUND)
    assert float(jnp.abs(whole).max()) > 1e-3


@BOTH
def test_third_order_is_symmetric_in_forward_and_reverse(training: bool) -> None:
    call = Call(training)

    def along(t: Any) -> Any:
        return call.loss(*(a + t * u for a, u in zip(call.arrays, call.tangents, strict=True)))

    forward = jax.jvp(jax.grad(jax.grad(along)), (0.0,), (1.0,))[1]
    reverse = jax.grad(jax.jacfwd(jax.jacfwd(along)))(0.0)
    near(forward, reverse, 1e-9)
    assert abs(float(forward)) > 1e-3


@BOTH
@pytest.mark.parametrize("of", ["data", "parameters", "everything"])
def test_vmap_is_a_loop(training: bool, of: str) -> None:
    """Over data, over parameters, over both: results and gradients of each call."""
    calls = [Call(training, seed) for seed in (3, 4, 5)]
    mapped = {"data": [0], "parameters": [1, 2], "everything": [0, 1, 2, 3, 4]}[of]
    stacked = [jnp.stack([c.arrays[i] for c in calls]) if i in mapped else calls[0].arrays[i] for i in range(5)]
    axes = tuple(0 if i in mapped else None for i in range(5))
    each = [[c.arrays[i] if i in mapped else calls[0].arrays[i] for i in range(5)] for c in calls]
    for f in (calls[0], jax.grad(calls[0].loss, argnums=(0, 1, 2)), jax.jit(jax.grad(calls[0].loss))):
        whole = jax.vmap(f, axes)(*stacked)
        for i, arrays in enumerate(each):
            near(jax.tree.map(lambda z, i=i: z[i], whole), f(*arrays))
    one, two = (
        jax.grad(lambda *a: jax.vmap(calls[0].loss, axes)(*a).sum())(*stacked),
        jax.vmap(jax.grad(calls[0].loss), axes),
    )
    near(one, two(*stacked) if of != "parameters" else two(*stacked).sum(axis=0))


def test_vmap_rescues_one_call_only() -> None:
    """Where ``cond`` becomes a choice, a call within the range has the bits of a mapped call beside no other."""
    call = Call(True)
    x = call.arrays[0].astype(jnp.float32)
    f = jax.vmap(lambda x: polybn.batch_norm(x, training=True, eps=0).y)
    y = f(jnp.stack([x, x * jnp.float32(2.0**90), x * jnp.float32(2.0**-90)]))
    assert equal(np.asarray(y[0]), np.asarray(f(jnp.stack([x, x, x]))[0]))
    near(y[1], y[0], 2.0**-20)
    near(y[2], y[0], 2.0**-20)


@BOTH
def test_scan(training: bool) -> None:
    """A scan over batches carries running statistics like a loop."""
    call = Call(training)
    batches = jnp.stack([call.arrays[0] + i for i in range(4)])

    def step(state: Any, x: Any) -> Any:
        y, *new = call(x, *call.arrays[1:3], *state)
        return new, y

    state, y = jax.lax.scan(step, call.arrays[3:], batches)
    expected, outputs = call.arrays[3:], []
    for x in batches:
        expected, out = step(expected, x)
        outputs.append(out)
    near([*state, y], [*expected, jnp.stack(outputs)])


@BOTH
def test_eval_shape(training: bool) -> None:
    call = Call(training)
    shapes = jax.eval_shape(call, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in call.arrays))
    assert [(s.shape, s.dtype) for s in shapes] == [(a.shape, a.dtype) for a in call(*call.arrays)]


INSIDE: dict[str, Callable[[Callable[[Any], Any], Any], Any]] = {
    "jit": lambda use, x: jax.jit(use)(x),
    "vmap": lambda use, x: jax.vmap(use)(x[None]),
    "scan": lambda use, x: jax.lax.scan(lambda carry, z: (carry, use(z)), 0, x[None]),
}
USES: dict[str, Callable[[polybn.BatchNorm, Any], Any]] = {
    "call": lambda layer, x: layer(x, training=True),
    "vjp": lambda layer, x: layer.vjp(x, training=True)[0],
    "recalibrate": lambda layer, x: layer.recalibrate([x]),
    "reset": lambda layer, _: layer.reset(),
    "load": lambda layer, _: layer.load_state_dict(polybn.BatchNorm(3).state_dict()),
}


@pytest.mark.parametrize(("inside", "use"), [("vmap", "call"), ("scan", "call"), *(("jit", use) for use in USES)])
def test_a_layer_keeps_no_tracer(inside: str, use: str) -> None:
    """What would replace its arrays by tracers is refused, and leaves it whole; inference works everywhere."""
    layer, x = polybn.BatchNorm(3, backend="jax"), jnp.asarray(sample(3, "float32", SHAPE).x)
    layer(x, training=True)
    before = layer.state_dict()
    with pytest.raises(
        polybn.BackendError, match=r"polybn\.BatchNorm: (gamma|running_mean) .*lasts.*polybn\.batch_norm"
    ):
        INSIDE[inside](functools.partial(USES[use], layer), x)
    INSIDE[inside](lambda z: layer(z, training=False), x)
    assert all(map(equal, layer.state_dict().values(), before.values()))
    assert layer.updates == 1
    layer(x, training=True)


def test_a_layer_may_live_in_a_program_and_learn_eagerly() -> None:
    """One that is made inside ``jit`` ends there; one outside is kept by an eager derivative."""
    x = jnp.asarray(sample(3, "float32", SHAPE).x)

    def statistics(x: Any) -> Any:
        layer = polybn.BatchNorm(3, backend="jax")
        layer(x, training=True)
        return layer.running_mean

    layer = polybn.BatchNorm(3, backend="jax")
    jax.grad(lambda z: layer(z, training=True)[0, 0, 0])(x)
    near(jax.jit(statistics)(x), layer.running_mean, 2.0**-18)


@BOTH
def test_donated_buffers(training: bool) -> None:
    """Donating every argument changes no value, and what is not donated is left alone."""
    call = Call(training)
    expected, kept = call(*call.arrays), call.arrays[0] + 0
    step = jax.jit(call, donate_argnums=(3, 4))
    near(step(*call.arrays[:3], *(a + 0 for a in call.arrays[3:])), expected)
    assert equal(np.asarray(call.arrays[0]), np.asarray(kept))
    plain = call(*call.arrays)
    mean, var = call.arrays[3:]
    mean.delete(), var.delete()
    near(plain, expected)


@BOTH
def test_values_do_not_retrace(training: bool) -> None:
    """New arrays, a new momentum and a new eps run what is compiled; a new shape compiles once."""
    call, programs = Call(training), importlib.import_module("polybn_jax.batch_norm")._forward
    call(*call.arrays)
    before = programs._cache_size()
    for seed in (7, 8):
        other = Call(training, seed, momentum=0.1 * seed, eps=0.1 / seed)
        other(*other.arrays)
    assert programs._cache_size() == before
    call(call.arrays[0][:5], *call.arrays[1:])
    assert programs._cache_size() == before + 1


@pytest.mark.clause("S14")
@pytest.mark.parametrize(
    ("function", "options"),
    [
        *(("batch_norm", {"training": True} | more) for more in ({}, {"eps": 1e-3}, {"momentum": 0.5}, {"axis": 1})),
        ("batch_norm_vjp", {"training": True}),
        ("moments", {"axis": 1}),
    ],
)
def test_a_traced_option_is_told_to_be_static(function: str, options: dict[str, Any]) -> None:
    """Each option by its name; what the message proposes works."""
    x, traced = jnp.asarray(sample(3, "float32", SHAPE).x), list(options)[-1]
    call = getattr(polybn, function)
    with pytest.raises(
        polybn.DTypeError, match=rf"^polybn\.{function}: {traced} must be a Python value.*static_argnames"
    ):
        jax.jit(call, static_argnames=list(options)[:-1])(x, **options)
    if function != "batch_norm_vjp":  # whose pullback no program returns
        jax.jit(call, static_argnames=("training", "momentum", "eps", "axis"))(x, **options)


@pytest.mark.clause("S14")
@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_mixed_libraries_are_called_as_users_call_them(how: Callable[..., Any]) -> None:
    """Arrays are of ``jaxlib``, tracers of ``jax``: one name for both."""
    with pytest.raises(polybn.BackendError, match=r"got x: jax, gamma: numpy \("):
        how(lambda x: polybn.batch_norm(x, np.ones(3), training=True))(jnp.ones((2, 3)))


@pytest.mark.clause("S14")
def test_checks_under_tracing() -> None:
    """Shapes and types are checked while a function is traced; values cannot be."""
    call = Call(False)
    x, gamma, beta, mean, var = call.arrays
    with pytest.raises(polybn.ShapeError, match="gamma must have shape"):
        jax.jit(call)(x, gamma[:2], beta, mean, var)
    with pytest.raises(polybn.DTypeError, match="beta must have dtype float64"):
        jax.eval_shape(call, x, gamma, beta.astype(jnp.float32), mean, var)
    with pytest.raises(polybn.DTypeError, match="eps must be a Python value"):
        jax.jit(lambda eps: polybn.batch_norm(x, training=True, eps=eps))(1e-5)
    with pytest.raises(polybn.DomainError, match="running_var"):
        call(x, gamma, beta, mean, -var)
    assert not np.isfinite(np.asarray(jax.jit(call)(x, gamma, beta, mean, -var).y)).any()
    where = np.zeros(SHAPE, bool)
    where[0, :, 0] = True
    options: dict[str, Any] = {"training": True, "running_variance": "unbiased"}
    single = functools.partial(polybn.batch_norm, x, gamma, beta, mean, var, **options)
    with pytest.raises(polybn.DomainError, match="channel 0"):
        single(where=jnp.asarray(where))
    variance = np.asarray(jax.jit(lambda w: single(where=w))(jnp.asarray(where)).running_var)
    assert np.isnan(variance).all()


@BOTH
def test_jaxs_own_checks_of_gradients(training: bool) -> None:
    """``check_grads`` hands in NumPy arrays for its differences: the functions in JAX's words convert them."""
    from jax.test_util import check_grads

    from polybn_jax.public import batch_norm

    call = Call(training)
    check_grads(lambda *a: batch_norm(*a, **call.options).y, call.arrays, order=2, modes=("fwd", "rev"))


def test_the_functions_in_jaxs_words_convert() -> None:
    from polybn_jax import public

    call = Call(True, where=jnp.asarray(np.arange(7 * 3 * 5).reshape(SHAPE) % 4 > 0))
    hosts = [np.asarray(a) for a in call.arrays]
    options = call.options | {"where": np.asarray(call.options["where"])}
    result, pullback = public.batch_norm_vjp(*hosts, **options)
    expected = call(*call.arrays)
    for got in (result, public.batch_norm(*hosts, **options)):
        assert all(
            isinstance(z, jax.Array) and equal(np.asarray(z), np.asarray(e)) for z, e in zip(got, expected, strict=True)
        )
    near(list(pullback(call.dy))[:3], call.gradients()[:3])
    near(public.moments(hosts[0], axis=-1), polybn.moments(call.arrays[0], axis=-1))
    synced = jax.vmap(lambda z: public.batch_norm(z, training=True, axis_name="i").y, axis_name="i")(call.arrays[0])
    near(synced, polybn.batch_norm(call.arrays[0], training=True, axis=2).y)


@pytest.mark.parametrize(("sizes", "axis"), [("b, 3, 5", 1), ("b, 5, 3", -1), ("b, 3", 1)])
def test_export_with_a_symbolic_batch(sizes: str, axis: int) -> None:
    """Training and its gradient, exported once, for a batch of any size."""
    from jax import export

    rng = np.random.default_rng(0)

    def train(x: Any, dy: Any) -> Any:
        gamma, beta, mean, var = (jnp.asarray(v) for v in np.random.default_rng(1).uniform(1, 3, (4, 3)))
        result, pullback = polybn.batch_norm_vjp(x, gamma, beta, mean, var, training=True, axis=axis)
        return result, pullback(dy).x

    shape = export.symbolic_shape(sizes)
    exported = export.export(jax.jit(train))(*[jax.ShapeDtypeStruct(shape, jnp.float64)] * 2)
    for batch in (7, 2):
        x, dy = (jnp.asarray(rng.normal(30, 2, (batch, *shape[1:]))) for _ in range(2))
        near(exported.call(x, dy), train(x, dy))


def test_nothing_travels_to_the_host() -> None:
    """In training a call transfers no array between host and device but its two numbers."""
    call = Call(True)
    call(*call.arrays)
    with jax.transfer_guard_device_to_host("disallow"):
        y = call(*call.arrays).y
        polybn.moments(call.arrays[0])
    assert np.isfinite(np.asarray(y)).all()


@pytest.mark.clause("S2", "S13")
@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e5])
def test_no_transformation_loses_accuracy(kappa: float) -> None:
    """Float32 under ``jit`` of ``grad``, far from zero: as right as in float64, where kappa costs nothing."""
    case = sample(5, "float32", (67, 3, 31), kappa=kappa, eps=1e-5)
    arrays = [jnp.asarray(a) for a in case.arrays().values()]
    wide = [a.astype(jnp.float64) for a in arrays]

    def loss(dy: Any, *a: Any) -> Any:
        return (polybn.batch_norm(*a, **case.options()).y * dy).sum()

    dy = jnp.asarray(case.dy)
    for f in (jax.grad(loss, argnums=(1, 2, 3)), jax.jit(jax.grad(loss, argnums=(1, 2, 3)))):
        near([g.astype(jnp.float64) for g in f(dy, *arrays)], list(f(dy.astype(jnp.float64), *wide)), 2e-6)
    u = jnp.asarray(case.dy)[::-1]
    f = functools.partial(
        lambda dtype, x, u: jax.jvp(lambda x: polybn.batch_norm(x, training=True).y, (x,), (u,))[1].astype(dtype),
        jnp.float64,
    )
    near(f(arrays[0], u), f(wide[0], u.astype(jnp.float64)), 2e-6)
