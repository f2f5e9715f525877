"""Networks as data: shapes, counts, and initial bits that are equal on all backends, platforms and NumPy versions."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybn.lenet import networks, plain
from polybn.lenet.networks import BatchNorm, Convolution, Dense, MaxPool, Network, Sigmoid
from polybn.spec import DomainError, DTypeError, ShapeError

STYLE = re.compile(r"polybn\.networks\.\w+: .+ must .+; got .+ \(.+\)", re.DOTALL)
NORMS: tuple[networks.Norm, ...] = ("spec", "native", None)

PARAMETERS = {
    "conv1.weight": (6, 1, 5, 5), "conv1.bias": (6,), "norm1.gamma": (6,), "norm1.beta": (6,),
    "conv2.weight": (16, 6, 5, 5), "conv2.bias": (16,), "norm2.gamma": (16,), "norm2.beta": (16,),
    "dense1.weight": (120, 256), "dense1.bias": (120,), "norm3.gamma": (120,), "norm3.beta": (120,),
    "dense2.weight": (84, 120), "dense2.bias": (84,), "norm4.gamma": (84,), "norm4.beta": (84,),
    "dense3.weight": (10, 84), "dense3.bias": (10,),
}  # fmt: skip
OUTPUTS = [
    ("conv1", (6, 24, 24)), ("norm1", (6, 24, 24)), ("sigmoid1", (6, 24, 24)), ("pool1", (6, 12, 12)),
    ("conv2", (16, 8, 8)), ("norm2", (16, 8, 8)), ("sigmoid2", (16, 8, 8)), ("pool2", (16, 4, 4)),
    ("dense1", (120,)), ("norm3", (120,)), ("sigmoid3", (120,)),
    ("dense2", (84,)), ("norm4", (84,)), ("sigmoid4", (84,)), ("dense3", (10,)),
]  # fmt: skip

# Frozen: with any other value, every backend and every old run would start from other weights or another order.
FIRST_WEIGHTS = {
    "conv1.weight": ["0x1.9f8122p-5", "-0x1.5d33c2p-4", "-0x1.5c23eap-3"],
    "conv2.weight": ["-0x1.a34bbep-4", "-0x1.cde15ep-6", "-0x1.68890ap-4"],
    "dense1.weight": ["-0x1.1bde74p-5", "-0x1.ccfc4p-5", "-0x1.ba364ap-5"],
    "dense2.weight": ["-0x1.08cc8ap-4", "0x1.5bcdbep-5", "0x1.c4ca52p-5"],
    "dense3.weight": ["0x1.8c6418p-4", "0x1.cc9dfep-6", "-0x1.aabf9ep-4"],
}
ALL_WEIGHTS = "b509667cbe9bb5b3e5dc1f48e5bd617725da54ebadbc9ac1fc55fe7d2787d7ea"
FIRST_ORDERS = {
    (0, 1): [3705, 22828, 1347, 32302, 31749, 24950, 52610, 2226],
    (0, 2): [11386, 15738, 30740, 48350, 24377, 25895, 9697, 31480],
    (1, 1): [2099, 3242, 33348, 58126, 11356, 13365, 35417, 52936],
}
WHOLE_ORDER = "844594ce1b12b0dc98357913b0ab003ec945e98a2a4225262f78da4900a7a0e5"


# Shapes.


@pytest.mark.parametrize(("norm", "values"), [("spec", 44_878), ("native", 44_878), (None, 44_426)])
def test_lenet_has_as_many_values_as_it_says(norm: networks.Norm, values: int) -> None:
    network = networks.lenet(norm)
    assert networks.count_parameters(network) == values
    state = networks.initial_state(network, seed=3)
    assert sum(value.size for name, value in state.items() if "running" not in name) == values
    assert networks.summary(network).splitlines()[-1].split() == ["total", f"{values:,}"]


def test_lenet_has_these_layers_and_arrays_in_this_order() -> None:
    rows = networks.rows(networks.lenet())
    assert [(row.name, row.output_shape) for row in rows] == OUTPUTS
    assert [row.input_shape for row in rows] == [(1, 28, 28), *(shape for _, shape in OUTPUTS[:-1])]
    assert [item for row in rows for item in row.parameters.items()] == list(PARAMETERS.items())
    statistics = [item for row in rows for item in row.statistics.items()]
    assert statistics == [
        (f"norm{i}.{name}", (size,))
        for i, size in enumerate((6, 16, 120, 84), 1)
        for name in ("running_mean", "running_var")
    ]
    assert list(networks.initial_state(networks.lenet(), 0)) == [
        n for row in rows for n in (*row.parameters, *row.statistics)
    ]


def test_without_norm_the_rest_is_the_same() -> None:
    expected = {name: shape for name, shape in PARAMETERS.items() if "norm" not in name}
    rows = networks.rows(networks.lenet(None))
    assert {name: shape for row in rows for name, shape in row.parameters.items()} == expected
    assert not any(row.statistics for row in rows)


def test_the_implementation_of_norm_is_all_that_differs() -> None:
    spec, native = networks.lenet("spec"), networks.lenet("native")
    assert {layer.implementation for layer in spec.layers if isinstance(layer, BatchNorm)} == {"spec"}
    exchanged = [replace(x, implementation="native") if isinstance(x, BatchNorm) else x for x in spec.layers]
    assert replace(spec, layers=tuple(exchanged)) == native


def test_a_summary_shows_each_layer_with_shape_and_values() -> None:
    network = networks.lenet()
    lines = networks.summary(network).splitlines()
    assert len(lines) == len(network.layers) + 2
    for line, row in zip(lines[1:-1], networks.rows(network), strict=True):
        name, *shape = line.replace(" x ", "x").split()
        values = sum(map(math.prod, row.parameters.values()))
        assert name == row.name
        assert shape == ["x".join(map(str, row.output_shape)), *([f"{values:,}"] if values else [])]


def test_descriptions_are_frozen_values() -> None:
    network = networks.lenet()
    assert network == networks.lenet()
    assert hash(network) == hash(networks.lenet())
    with pytest.raises(FrozenInstanceError):
        network.layers[0].channels = 7  # type: ignore[union-attr, misc]


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_goes_through_json_and_back(norm: networks.Norm) -> None:
    network = networks.lenet(norm)
    assert plain.from_plain(json.loads(json.dumps(plain.to_plain(network)))) == network


# The first state.


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_bits_are_frozen(norm: networks.Norm) -> None:
    state = networks.initial_state(networks.lenet(norm), seed=0)
    first = {name: [float(x).hex() for x in state[name].ravel()[:3]] for name in FIRST_WEIGHTS}
    assert first == {name: [float.fromhex(x).hex() for x in values] for name, values in FIRST_WEIGHTS.items()}
    if norm:
        bits = b"".join(value.astype("<f4").tobytes() for value in state.values())
        assert hashlib.sha256(bits).hexdigest() == ALL_WEIGHTS


@pytest.mark.parametrize("norm", NORMS)
def test_a_state_starts_as_promised(norm: networks.Norm) -> None:
    for name, value in networks.initial_state(networks.lenet(norm), seed=5).items():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        if not name.endswith("weight"):
            assert set(value.tolist()) == {1.0 if name.endswith(("gamma", "running_var")) else 0.0}


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_xavier_uniform(seed: int) -> None:
    """Weights are within the bound, come near it, and have moments within 5 standard errors (1 in 1.7 million)."""
    state = networks.initial_state(networks.lenet(), seed)
    for name, (out, into, *kernel) in ((n, s) for n, s in PARAMETERS.items() if n.endswith("weight")):
        weight = state[name].astype(np.float64)
        bound = math.sqrt(6 / ((into + out) * math.prod(kernel)))
        largest, n = np.abs(weight).max(), weight.size
        assert largest <= np.float32(bound)
        assert largest > bound * (1 - 20 / n)  # misses with probability exp(-20)
        assert abs(weight.mean()) < 5 * bound / math.sqrt(3 * n)
        # The square of a uniform variable has variance bound^4 (1/5 - 1/9).
        assert abs((weight**2).mean() - bound**2 / 3) < 5 * bound**2 * math.sqrt((1 / 5 - 1 / 9) / n)


def test_a_seed_decides_alone() -> None:
    network = networks.lenet()
    first = networks.initial_state(network, 7)
    np.random.seed(123)  # noqa: NPY002  (somebody else's global state)
    again, other = networks.initial_state(network, 7), networks.initial_state(network, 8)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name.endswith("weight"))
    again["conv1.weight"][...] = 0
    assert first["conv1.weight"].any()


def test_no_two_layers_start_alike() -> None:
    twins = Network((1, 1, 16), (Dense(16), Dense(16), Dense(16)))
    weights = [value.tobytes() for name, value in networks.initial_state(twins, 0).items() if name.endswith("weight")]
    assert len(set(weights)) == 3


# The order of an epoch.


def test_the_first_orders_are_frozen() -> None:
    for (seed, epoch), first in FIRST_ORDERS.items():
        assert networks.epoch_order(seed, epoch, 60_000)[:8].tolist() == first
    whole = networks.epoch_order(0, 1, 60_000).astype("<i8").tobytes()
    assert hashlib.sha256(whole).hexdigest() == WHOLE_ORDER


@given(seed=st.integers(0, 2**128), epoch=st.integers(0, 10**9), size=st.integers(0, 300))
def test_an_order_is_a_permutation_that_seed_and_epoch_decide(seed: int, epoch: int, size: int) -> None:
    order = networks.epoch_order(seed, epoch, size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))
    np.random.random(3)  # noqa: NPY002  (somebody else's global state)
    assert np.array_equal(networks.epoch_order(seed, epoch, size), order)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = [networks.epoch_order(seed, epoch, 100).tobytes() for seed in range(30) for epoch in range(30)]
    assert len(set(orders)) == 900


def test_all_orders_are_equally_likely() -> None:
    """Each of 24 orders is expected 100 times; every count is within 5 standard deviations of that."""
    counts = Counter(tuple(networks.epoch_order(0, epoch, 4).tolist()) for epoch in range(1, 2401))
    spread = math.sqrt(2400 / 24 * (1 - 1 / 24))
    assert len(counts) == 24
    assert all(abs(count - 100) < 5 * spread for count in counts.values())


# Errors.


MAPS = "must have an input (C, H, W), H and W"
BAD_LAYERS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((Convolution(6, 29),), ShapeError, f"Convolution(channels=6, kernel=29) {MAPS} at least 29; got (1, 28, 28)"),
    ((Dense(5), Convolution(6, 1)), ShapeError, f"Convolution(channels=6, kernel=1) {MAPS} at least 1; got (5,)"),
    ((Convolution(6, 4), MaxPool(2)), ShapeError, f"MaxPool(size=2) {MAPS} multiples of 2; got (6, 25, 25)"),
    ((Dense(4), MaxPool(2)), ShapeError, f"MaxPool(size=2) {MAPS} multiples of 2; got (4,)"),
    ((Convolution(6, 0),), ShapeError, "kernel of conv1 must be an int of 1 or more; got 0"),
    ((Convolution(-6, 5),), ShapeError, "channels of conv1 must be an int of 1 or more; got -6"),
    ((Dense(10), Dense(0)), ShapeError, "features of dense2 must be an int of 1 or more; got 0"),
    ((Dense(2.5),), ShapeError, "features of dense1 must be an int of 1 or more; got 2.5"),  # type: ignore[arg-type]
    ((MaxPool(0),), ShapeError, "size of pool1 must be an int of 1 or more; got 0"),
    ((Sigmoid(), "relu"), DTypeError, "layer 2 must be Convolution, Dense, BatchNorm, Sigmoid or MaxPool; got str"),
]
BAD_CALLS: list[tuple[str, tuple[Any, ...], str]] = [
    ("lenet", ("layer",), "norm must be 'spec', 'native' or None; got 'layer'"),
    ("initial_state", (networks.lenet(), -1), "seed must be an int of 0 or more; got -1"),
    ("epoch_order", (1.5, 1, 10), "seed must be an int of 0 or more; got 1.5"),
    ("epoch_order", (0, -1, 10), "epoch must be an int of 0 or more; got -1"),
    ("epoch_order", (0, 1, -10), "size must be an int of 0 or more; got -10"),
]


def check_words(error: BaseException, kind: type[Exception], words: str) -> None:
    assert type(error) is kind
    assert STYLE.fullmatch(str(error)), str(error)
    assert str(error).startswith(f"polybn.networks.{words}")


@pytest.mark.parametrize(("layers", "error", "words"), BAD_LAYERS, ids=lambda value: str(value)[:60])
def test_layers_that_do_not_fit_are_refused(layers: tuple[Any, ...], error: type[Exception], words: str) -> None:
    network = Network((1, 28, 28), layers)
    for function in (networks.rows, networks.summary, networks.count_parameters):
        with pytest.raises(error) as info:
            function(network)
        check_words(info.value, error, f"rows: {words}")


@pytest.mark.parametrize(("function", "arguments", "words"), BAD_CALLS, ids=lambda value: str(value)[:40])
def test_a_bad_call_is_refused(function: str, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(DomainError) as info:
        getattr(networks, function)(*arguments)
    check_words(info.value, DomainError, f"{function}: {words}")


@pytest.mark.parametrize("bad", [{"input_shape": [1, 2, 2], "layers": [{"layer": "Relu"}]}, {"layers": []}])
def test_what_is_no_network_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(
        DomainError, match=r"^polybn\.lenet\.plain\.from_plain: layers must be of Convolution, .*; got "
    ):
        plain.from_plain(bad)
