"""Conversion of states: there and back is the identity, notes name what is not exact, and nothing is guessed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polybn.dialects import DIALECTS, Dialect, convert, convert_options
from polybn.dialects.record import ENDLESS
from polybn.spec import DomainError, DTypeError, ShapeError
from tests.support.conversions import RECORD, measure
from tests.support.frameworks import FRAMEWORKS, why_not

State = dict[str, NDArray[Any]]
U = 2.0**-24
"""Half the distance from 1 to the next float32."""


def made(name: str, seed: int, steps: int, momentum: float, eps: float) -> State:
    """Make a state of seven channels, as after training, under a dialect's own names."""
    rng, dialect = np.random.default_rng(seed), DIALECTS[name]
    mean, var = rng.standard_normal(7) * 30 + 100, rng.gamma(2, 5, 7)
    left = momentum**steps
    factor = (1 - left) / (1 - momentum)
    known: dict[str, Any] = {
        "gamma": rng.standard_normal(7), "beta": rng.standard_normal(7) * 3, "running_mean": mean,
        "running_var": (var + eps) ** -0.5 if dialect.stored == "inverse root" else var, "factor": np.array([factor]),
        "hidden_mean": mean * (1 - left), "hidden_var": var * (1 - left), "first": np.bool_(steps == 0),
        "count": np.int64(steps), "second_count": np.int64(steps),
    }  # fmt: skip
    if dialect.stored == "sums":
        known |= {"running_mean": mean * factor, "running_var": var * factor}
    arrays = {word: np.asarray(known[role]) for role, word in dialect.names.items()}
    return {word: value.astype("f") if value.dtype == np.float64 else value for word, value in arrays.items()}


def options_of(name: str, momentum: float, eps: float) -> dict[str, Any]:
    found = convert_options({"momentum": momentum, "eps": eps}, "polybn", name).options
    return found | ({"fix_gamma": False} if "fix_gamma" in found else {})


@pytest.mark.parametrize("source", DIALECTS)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.0, 0.5, 0.9, 0.99]), st.sampled_from([1e-3, 0.5]))
def test_there_and_back_is_the_identity(source: str, seed: int, steps: int, momentum: float, eps: float) -> None:
    state = made(source, seed, steps, momentum, eps)
    for target in DIALECTS:
        there = convert(state, source, target, 5, steps=steps, options=options_of(source, momentum, eps)).state
        back = convert(there, target, source, 5, steps=steps, options=options_of(target, momentum, eps)).state
        assert set(there) == set(DIALECTS[target].names.values())
        assert set(back) == set(state)
        exact = plain(DIALECTS[source]) and plain(DIALECTS[target])
        exact &= DIALECTS[source].running_variance == DIALECTS[target].running_variance
        for name, before in state.items():
            close(back[name], before, roundings=0 if exact or before.dtype.kind in "ib" else 3, eps=eps)
            assert back[name].shape == before.shape, (target, name)


def plain(dialect: Dialect) -> bool:
    """Return whether the arrays are only copied, without arithmetic."""
    return dialect.stored == "variance" and not dialect.debiased


def close(found: NDArray[Any], wanted: NDArray[Any], *, roundings: int, eps: float) -> None:
    """Bound roundings of float32, which an inverse root of a variance below eps magnifies by (v + eps) / v."""
    if roundings == 0:
        np.testing.assert_array_equal(found, wanted)
        return
    smallest = max(float(np.abs(wanted).min()), 1e-3)
    assert (np.abs(found.astype(float) - wanted) <= 2 * roundings * U * (1 + eps / smallest) * np.abs(wanted)).all()


@pytest.mark.parametrize("name", DIALECTS)
def test_to_itself_a_state_is_copied_without_a_word(name: str) -> None:
    state = made(name, 1, 3, 0.5, 1e-3)
    found, notes = convert(state, name, name, 5)
    assert notes == ()
    assert set(found) == set(state)
    for word, value in state.items():
        np.testing.assert_array_equal(found[word], value)
        assert found[word].dtype == value.dtype
        assert not np.shares_memory(found[word], value)


# Exact conversions, in numbers.


def vectors(name: str, **values: float) -> State:
    names = DIALECTS[name].names
    return {word: np.array([values[role]], "f") for role, word in names.items() if role in values}


PYTORCH = vectors("pytorch", gamma=2, beta=3, running_mean=7, running_var=10)
KERAS = vectors("keras3", gamma=2, beta=3, running_mean=7, running_var=8)


def test_bessel_needs_the_number_of_values_and_says_what_it_costs() -> None:
    kept, (note, *_) = convert(PYTORCH, "pytorch", "keras3")
    assert kept["moving_variance"].tolist() == [10]
    assert "goes on with the biased variance where pytorch kept the unbiased one" in note
    fitted, (note, *_) = convert(PYTORCH, "pytorch", "keras3", 5)
    assert fitted == KERAS
    assert "multiplied by 0.8, for batches of 5 values" in note
    assert "inference changes by up to 0.12" in note
    assert convert(KERAS, "keras3", "pytorch", count=5).state["running_var"].tolist() == [10]


def test_caffe_divides_by_its_factor() -> None:
    state = vectors("caffe", gamma=2, beta=3, running_mean=14, running_var=20, factor=2)
    assert convert(state, "caffe", "cudnn").state == convert(PYTORCH, "pytorch", "cudnn").state
    state = vectors("caffe", gamma=2, beta=3, running_mean=0, running_var=0, factor=0)
    assert convert(state, "caffe", "cudnn").state["resultRunningVariance"].tolist() == [0]
    # With a momentum of 1/2, the factor is 1.5 for two batches, and 2 for infinitely many.
    for steps, factor in ((0, 0), (2, 1.5), (None, 2)):
        found = convert(PYTORCH, "pytorch", "caffe", steps=steps, options={"momentum": 0.5}).state
        assert found["BatchNorm.2"].tolist() == [factor]
        assert found["BatchNorm.0"].tolist() == [7 * factor]
    found, notes = convert(PYTORCH, "pytorch", "caffe")
    assert found["BatchNorm.2"].tolist() == [1]
    assert any("give options" in note for note in notes)


def test_caffe_and_haiku_count_the_same_steps() -> None:
    state = vectors("caffe", running_mean=7, running_var=8, factor=1.75)  # three batches, each worth half the next
    found = convert(state, "caffe", "haiku", options={"moving_average_fraction": 0.5}).state
    assert found["mean_ema/counter"] == found["var_ema/counter"] == 3
    assert found["mean_ema/average"].tolist() == [4]
    assert found["mean_ema/hidden"].tolist() == [3.5]


def test_inverse_roots_need_eps() -> None:
    found = convert(PYTORCH, "pytorch", "cudnn4", options={"eps": 6.0}).state
    assert found["resultRunningInvVariance"].tolist() == [0.25]
    assert convert(found, "cudnn4", "pytorch", options={"epsilon": 6.0}).state["running_var"].tolist() == [10]
    with pytest.raises(DomainError, match=r"options must have eps here; got none \(cudnn4 stores 1 / sqrt"):
        convert(PYTORCH, "pytorch", "cudnn4")


def test_a_plain_average_goes_on_as_one_whatever_debiases() -> None:
    found, notes = convert(KERAS, "keras3", "haiku")
    assert notes == ()
    assert found["mean_ema/counter"] == ENDLESS
    assert found["var_ema/hidden"].tolist() == [8]
    trained = PYTORCH | {"num_batches_tracked": np.int64(3)}
    assert convert(trained, "pytorch", "haiku").state["mean_ema/counter"] == ENDLESS  # its average is plain
    assert ENDLESS + 2**20 < 2**31  # it counts on
    assert np.float32(1 - 2.0**-20) ** np.float32(ENDLESS) == 0


def test_what_an_average_still_lacks_is_said_with_its_weight() -> None:
    names = DIALECTS["haiku"].names
    state = vectors("haiku", running_mean=7, running_var=8, hidden_mean=7 * 0.75, hidden_var=6)
    state |= dict.fromkeys((names["count"], names["second_count"]), np.array(2, np.int32))
    _, (note, *_) = convert(state, "haiku", "keras3", options={"decay_rate": 0.5})
    assert "Averages of 2 batches, which still lack 0.25 of their weight, go on otherwise" in note
    state |= dict.fromkeys((names["count"], names["second_count"]), np.array(30, np.int32))
    assert convert(state, "haiku", "keras3", options={"decay_rate": 0.5}).notes == ()


def test_equinox_divides_a_variance_that_began_at_1() -> None:
    state = vectors("equinox_batch", hidden_mean=3, hidden_var=6) | {"batch_counter": np.int32(2)}
    found, notes = convert(state, "equinox_batch", "keras3", options={"momentum": 0.5})
    assert (found["moving_mean"].tolist(), found["moving_variance"].tolist()) == ([4], [8])
    assert any("The variance is too large by 0.333, in equinox_batch as in the result" in note for note in notes)
    with pytest.raises(DomainError, match=r"options must have momentum here; got none"):
        convert(state, "equinox_batch", "keras3")


def test_equinox_ema_begins_with_the_first_batch() -> None:
    state = vectors("equinox_ema", running_mean=7, running_var=8) | {"ema_first_time_index": np.bool_(False)}
    assert convert(KERAS, "keras3", "equinox_ema").state["ema_first_time_index"] == np.bool_(False)
    assert convert(KERAS, "keras3", "equinox_ema", steps=0).state["ema_first_time_index"] == np.bool_(True)
    _, notes = convert(state, "equinox_ema", "keras3")
    assert notes == (
        "Training normalizes by the statistics of the batch in keras3, by the running ones in equinox_ema.",
    )


@pytest.mark.parametrize("target", ["pytorch", "mlx", "tinygrad", "equinox_ema", "gluon", "onnx15"])
def test_gamma_gets_a_beta_where_a_framework_has_both_or_none(target: str) -> None:
    state = {name: np.ones(2, np.float32) for name in ("gamma", "moving_mean", "moving_variance")}
    found = convert(state, "keras3", target).state
    assert found[DIALECTS[target].names["beta"]].tolist() == [0, 0]


def test_fix_gamma_takes_gamma_for_1_whatever_is_stored() -> None:
    state = vectors("mxnet_native", gamma=2, beta=3, running_mean=7, running_var=8)
    with pytest.raises(DomainError, match=r"options must have fix_gamma where gamma is not 1; got none"):
        convert(state, "mxnet_native", "keras3")
    for fixed, gamma in ((True, 1), (False, 2)):
        found = convert(state, "mxnet_native", "keras3", options={"fix_gamma": fixed}).state
        assert found["gamma"].tolist() == [gamma]
    assert convert(state | {"gamma": np.ones(1, "f")}, "mxnet_native", "keras3").notes == ()
    _, notes = convert(KERAS, "keras3", "mxnet_native")
    assert notes == ("Make the operator with fix_gamma=False: if nothing is said, mxnet_native takes gamma for 1.",)


def test_a_missing_gamma_or_beta_is_made_only_where_there_must_be_one() -> None:
    state = {name: value for name, value in KERAS.items() if name != "gamma"}
    assert "scale" not in convert(state, "keras3", "flax_nnx").state
    for target, word in (("pytorch", "weight"), ("onnx15", "scale")):
        assert convert(state, "keras3", target).state[word].tolist() == [1]
    del state["beta"]
    assert "weight" not in convert(state, "keras3", "pytorch").state


def test_the_count_of_batches_is_carried_or_said_to_be_lost() -> None:
    state = PYTORCH | {"num_batches_tracked": np.int64(4)}
    assert convert(state, "pytorch", "tinygrad") == (state, ())
    assert convert(PYTORCH, "pytorch", "tinygrad").state["num_batches_tracked"] == 0
    found, notes = convert(KERAS, "keras3", "tinygrad", 5)
    assert found["num_batches_tracked"] == 0
    assert any(note.startswith("num_batches_tracked is 0") for note in notes)
    assert convert(KERAS, "keras3", "tinygrad", steps=9).state["num_batches_tracked"] == 9
    assert "updates" not in convert(state, "pytorch", "polybn").state
    assert convert(state, "pytorch", "polybn", steps=4).state["updates"] == 4


def test_a_least_eps_and_values_that_are_none_are_said() -> None:
    _, notes = convert(vectors("d2l_mxnet", gamma=1, beta=0, running_mean=0, running_var=1e-5), "d2l_mxnet",
                       "mxnet_cudnn", 5, options={"eps": 1e-12})  # fmt: skip
    assert any(
        "eps 1e-12 becomes 1e-05, the least that mxnet_cudnn takes; inference changes by up to 0.29" in n for n in notes
    )
    for bad in (np.nan, -1.0, np.inf):
        found, notes = convert(KERAS | {"moving_variance": np.array([bad], "f")}, "keras3", "gluon")
        np.testing.assert_array_equal(found["running_var"], np.array([bad], "f"))
        assert any("Statistics are NaN, infinite or negative in 1 of 1 channels" in note for note in notes)
    wide = {name: value.astype(np.float64) for name, value in KERAS.items()}
    assert convert(wide, "keras3", "pytorch").state["weight"].dtype == np.float64
    found, notes = convert(wide, "keras3", "gluon")
    assert found["gamma"].dtype == np.float32
    assert notes == ("Values are rounded from float64 to float32, the dtype of gluon.",)


def test_a_counter_may_have_an_axis() -> None:
    state = PYTORCH | {"num_batches_tracked": np.array([4])}
    assert convert(state, "pytorch", "tinygrad").state["num_batches_tracked"].shape == ()


def test_counts_that_a_counter_cannot_hold_mean_many_batches() -> None:
    state = convert(PYTORCH, "pytorch", "haiku", steps=2**40, options={"momentum": 0.1}).state
    assert state["mean_ema/counter"] == ENDLESS


def test_with_momentum_1_caffe_weighs_all_batches_alike() -> None:
    sums = vectors("caffe", running_mean=14, running_var=20, factor=2)
    once = {"moving_average_fraction": 1.0}
    found = convert(sums, "caffe", "pytorch", options=once).state
    assert (found["running_mean"].tolist(), found["num_batches_tracked"].item()) == ([7], 2)
    again = convert(found, "pytorch", "caffe", steps=2, options={"momentum": 0.0}).state
    assert (again["BatchNorm.0"].tolist(), again["BatchNorm.2"].tolist()) == ([14], [2])


@pytest.mark.parametrize(
    ("gamma", "statistics", "kept"),
    [
        ("float32", "float16", "float32"),
        ("float16", "float16", "float16"),
        ("float32", ">f4", "float32"),
        ("int32", "int32", "float64"),
        ("longdouble", "longdouble", "float64"),
    ],
)
def test_the_dtype_holds_every_vector(gamma: str, statistics: str, kept: str) -> None:
    state = {name: np.ones(3, gamma if name in ("weight", "bias") else statistics) for name in PYTORCH}
    found = convert(state, "pytorch", "keras3", 5).state
    assert {str(array.dtype) for array in found.values()} == {kept}
    assert found["moving_variance"].tolist() == [np.dtype(kept).type(0.8)] * 3


def test_what_becomes_infinite_is_said() -> None:
    state = {name: np.full(2, 60_000, np.float16) for name in PYTORCH}
    _, notes = convert(state, "pytorch", "caffe", options={"momentum": 0.01})
    assert "BatchNorm.0, BatchNorm.1 become infinite in part: float16 holds no values as large." in notes


def test_a_variance_of_nan_alone_makes_no_warning() -> None:
    state = KERAS | {"moving_variance": np.array([np.nan], "f")}
    assert convert(state, "keras3", "tf_fused", 5, options={"epsilon": 1e-7}).notes[0].startswith("Statistics are NaN")


def test_axes_of_length_1_are_dropped() -> None:
    state = {
        name: value.reshape(1, 1, 1, -1) if value.ndim else value for name, value in made("haiku", 1, 3, 0.5, 1).items()
    }
    assert convert(state, "haiku", "flax_linen", options={"decay_rate": 0.5}).state["mean"].shape == (7,)


# Nothing is guessed.


@pytest.mark.parametrize(
    ("state", "arguments", "error", "words"),
    [
        (KERAS, {"source": "pytorch"}, DomainError, r"state must have the names of pytorch, weight, .*; got gamma, .*"
         r"\(unknown: gamma; these are names of keras3, tf_fused, d2l_tensorflow\)"),
        ({"weight": np.ones(1)}, {"source": "pytorch"}, DomainError, r"got weight \(missing: running_mean; these are"),
        ({}, {}, DomainError, r"got none \(missing: moving_mean\)"),
        ([1], {}, DTypeError, r"state must be a mapping of names to arrays; got list"),
        (KERAS | {"gamma": [1.0]}, {}, DTypeError, r"gamma must be a NumPy array; got list"),
        (KERAS | {"gamma": np.ones(2, "f")}, {}, ShapeError, r"must have shape \(C,\); got gamma \(2,\), beta"),
        ({k: np.ones((2, 3)) for k in KERAS}, {}, ShapeError, r"got gamma \(2, 3\)"),
        (KERAS, {"count": 1}, DomainError, r"count must be an int of 2 or more; got 1 \(Bessel's correction"),
        (KERAS, {"count": 2.0}, DomainError, r"count must be an int of 2 or more; got 2.0"),
        (KERAS, {"steps": -1}, DomainError, r"steps must be an int of 0 or more; got -1"),
        (KERAS, {"source": None}, DTypeError, r"source must be a name or a Dialect; got NoneType"),
        (KERAS, {"target": "torch"}, DomainError, r"target must name a dialect; got 'torch' \(did you mean"),
        (KERAS, {"options": {"eps": 1.0}}, DomainError, r"words of keras3 \(momentum, epsilon, axis\); got 'eps'"),
        (KERAS, {"options": {"momentum": 2}}, DomainError,
         r"momentum must lie in \[0, 1\]; got 2 \(in keras3 it is the weight of the old value\)"),
        (PYTORCH, {"source": "pytorch", "options": {"momentum": 2}}, DomainError,
         r"momentum must lie in \[0, 1\]; got 2 \(in pytorch it is the weight of the new value\)"),
        (PYTORCH, {"source": "pytorch", "options": {"momentum": "x"}}, DTypeError,
         r"momentum must be a Python number; got 'x' of type str \(in pytorch it is the weight of the new value\)"),
        (KERAS, {"options": {"epsilon": -1}}, DomainError, r"epsilon must be 0 or more, and finite; got -1"),
        (KERAS, {"options": {"epsilon": np.inf}}, DomainError, r"epsilon must be 0 or more, and finite; got inf"),
        (KERAS, {"options": {"epsilon": None}}, DTypeError, r"epsilon must be a Python number; got None"),
        (KERAS, {"options": {"axis": "x"}}, DTypeError, r"axis must be one int; got 'x'"),
        (KERAS, {"options": [1]}, DTypeError, r"options must be a mapping of words to values; got list"),
        (KERAS, {"steps": 2**70}, DomainError, r"steps must be below 2\*\*63; got 1180"),
        (KERAS | {"gamma": np.ones(1, np.complex64)}, {}, DTypeError, r"gamma must hold real numbers; got complex64"),
        (KERAS | {"gamma": np.array(["a"])}, {}, DTypeError, r"gamma must hold real numbers; got <U1"),
        *((PYTORCH | {"num_batches_tracked": np.array(bad)}, {"source": "pytorch"}, DomainError,
           r"num_batches_tracked must be one whole number from 0 to 2\*\*63 - 1; got")
          for bad in (np.nan, -1, 2.5, [], [1, 2], 2**63)),
        *((vectors("caffe", running_mean=1, running_var=1) | {"BatchNorm.2": np.full(size, bad)}, {"source": "caffe"},
           DomainError, r"BatchNorm\.2 must be one number from 0")
          for size, bad in ((0, 1.0), (1, np.nan), (1, -1.0), (1, np.inf))),
        (vectors("equinox_batch", hidden_mean=1, hidden_var=1) | {"batch_counter": np.int32(3)},
         {"source": "equinox_batch", "options": {"momentum": 1.0}}, DomainError,
         r"options must give the batch a weight above 0; got none"),
    ],
)  # fmt: skip
def test_a_bad_call_teaches(state: Any, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=r"^polybn\.dialects\.convert: .*" + words):
        convert(state, **{"source": "keras3", "target": "gluon"} | arguments)


def test_momentum_is_converted_with_its_sense_and_refused_without() -> None:
    assert convert_options({"momentum": 0.1}, "pytorch", "keras3").options["momentum"] == 0.9
    assert convert_options({"momentum": 0.99}, "keras3", "pytorch").options["momentum"] == 0.01
    assert convert_options({"decay_rate": 0.999}, "haiku", "mlx").options["momentum"] == 0.001
    with pytest.raises(DTypeError, match=r"source must be a name or a Dialect; got NoneType"):
        convert_options({"momentum": 0.1}, None, "keras3")  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"in the words of haiku \(decay_rate, eps, axis\); got 'momentum'"):
        convert_options({"momentum": 0.1}, "haiku", "keras3")
    with pytest.raises(DTypeError, match=r"fix_gamma must be True or False; got int"):
        convert_options({"fix_gamma": 1}, "mxnet_native", "gluon")


@given(st.floats(0, 1).map(lambda value: float(f"{value:.12f}")))
def test_a_momentum_there_and_back_is_the_same_number(momentum: float) -> None:
    for target in ("keras3", "pytorch"):
        there = convert_options({"momentum": momentum}, "pytorch", target)
        assert there.notes == () or momentum == 0
        assert convert_options(there.options, target, "pytorch").options["momentum"] == momentum


def test_a_batch_without_weight_is_said() -> None:
    for options, source in (({"momentum": 0.0}, "pytorch"), ({"momentum": 1.0}, "onnx9")):
        assert convert_options(options, source, "keras3").notes[0].endswith("training on never changes the statistics.")


def test_numbers_of_numpy_are_numbers() -> None:
    found = convert(PYTORCH, "pytorch", "tinygrad", np.int64(5), steps=np.int32(7))  # type: ignore[arg-type]
    assert found.state["num_batches_tracked"] == 7
    assert convert(PYTORCH, "pytorch", "keras3", np.int64(5)).state == KERAS  # type: ignore[arg-type]
    arguments = DIALECTS["haiku"].arguments
    assert arguments(momentum=0.5, step=np.int64(2)) == arguments(momentum=0.5, step=2)  # type: ignore[arg-type]


def test_an_eps_of_0_becomes_the_least_number_above_it() -> None:
    _, notes = convert_options({"epsilon": 0}, "keras3", "pytorch")
    assert notes[0] == "eps 0 becomes 5e-324, because pytorch does not take 0."


def test_a_momentum_that_has_no_counterpart_is_said() -> None:
    assert "is rounded" in convert_options({"momentum": 1e-20}, "keras3", "pytorch").notes[0]


def test_options_that_are_left_out_are_the_sources_defaults() -> None:
    found, notes = convert_options({}, "pytorch", "keras3")
    assert found == {"momentum": 0.9, "epsilon": 1e-5, "axis": 1}
    assert notes == ()
    assert convert_options({}, "keras3", "pytorch") == (
        {"momentum": 0.01, "eps": 1e-3},
        ("The channel axis -1 becomes 1, the only one of pytorch: move the data's axis.",),
    )
    found, notes = convert_options({}, "d2l_mxnet", "tf_fused")
    assert found["epsilon"] == 1.001e-5
    assert notes == ("eps 1e-12 becomes 1.001e-05, the least that tf_fused takes.",)
    assert convert_options({}, "mxnet_native", "mxnet_cudnn").options["fix_gamma"] is True
    assert convert_options({}, "pytorch", "mxnet_cudnn").options["fix_gamma"] is False
    assert "momentum" in convert_options({}, "haiku", "pytorch").notes[0]


# Between the frameworks that are installed.


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(FRAMEWORKS, 2)))
def test_a_converted_batch_norm_goes_on_as_recorded(source: str, target: str) -> None:
    for name in (source, target):
        if why_not(name) is not None:
            pytest.skip(f"{name}: {why_not(name)}")
    recorded = {(p["source"], p["target"]): p for p in json.loads(RECORD.read_text(encoding="utf-8"))["pairs"]}
    seen = measure(source, target)
    assert seen.inference <= 1
    assert seen.verdict == recorded[source, target]["verdict"]
    assert list(seen.notes) == recorded[source, target]["notes"]
    assert seen.verdict == "exact" or seen.notes


def test_the_record_has_all_pairs_and_all_verdicts() -> None:
    pairs = json.loads(RECORD.read_text(encoding="utf-8"))["pairs"]
    assert {(p["source"], p["target"]) for p in pairs} == set(itertools.permutations(FRAMEWORKS, 2))
    assert {p["verdict"] for p in pairs} == {"exact", "either", "inference"}


def test_an_average_over_all_batches_is_no_momentum() -> None:
    """PyTorch's momentum of None stays where the target has it; elsewhere a note says it, and states are carried."""
    none = {"momentum": None, "eps": 1e-5}
    for target in ("polybn", "pytorch_sync"):
        made = convert_options(none, "pytorch", target)
        assert (made.options["momentum"], made.notes) == (None, ())
    for target, own in (("keras3", "momentum to train on; its own is 0.99"), ("haiku", "decay_rate to train on")):
        options, (note, *_) = convert_options(none, "pytorch", target)
        assert DIALECTS[target].momentum_word not in options
        assert f"averages over all batches alike, which {target} cannot: choose its {own}. Inference" in note
    assert "moving_mean" in convert(PYTORCH, "pytorch", "keras3", options=none).state
    with pytest.raises(DTypeError, match="in keras3 it is the weight of the old value"):
        convert_options({"momentum": None}, "keras3", "pytorch")


def test_a_counter_that_begins_at_0_says_when_it_matters() -> None:
    note = convert(KERAS, "keras3", "pytorch").notes[-1]
    assert note.startswith("num_batches_tracked is 0, because the source does not count batches.")
    assert note.endswith("momentum=None: for that, set it to their number, or the next batch replaces the statistics.")
