"""What is said about the batch norms of a model: each fault is found, and nothing else is."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import dialects, inspection
from polybn.inspection import words
from polybn.inspection.channels import channels_of
from polybn.inspection.digits import sure_digits
from polybn.model_files import Model, Norm, safetensors
from polybn.spec import DomainError
from tests.support.command import Polybn

SIZE = 7


def healthy(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    state = {
        "weight": rng.uniform(0.5, 2, SIZE),
        "bias": rng.normal(0, 3, SIZE),
        "running_mean": rng.normal(5, 3, SIZE),
        "running_var": rng.uniform(0.3, 90, SIZE),
    }
    for name, value in changes.items():
        state[name][2] = value
    return state


def found(state: dict[str, Any], dialect: str = "pytorch", **rest: Any) -> list[tuple[str, str]]:
    target = rest.pop("target", None)
    findings = inspection.inspect(Model("safetensors", [Norm("bn", dialect, state, **rest)], 4), target)
    return [(finding.level, finding.kind) for finding in findings]


def test_a_healthy_batch_norm_is_left_in_peace() -> None:
    assert found(healthy()) == []


@pytest.mark.parametrize(
    ("changes", "level", "kind"),
    [
        ({"running_var": -1.0}, "error", "variance is negative"),
        ({"running_var": -1e-6}, "error", "variance is negative"),
        ({"running_var": np.nan}, "error", "variance is NaN or infinite"),
        ({"running_var": np.inf}, "error", "variance is NaN or infinite"),
        ({"running_mean": np.nan}, "error", "mean is NaN or infinite"),
        ({"weight": -np.inf}, "error", "gamma is NaN or infinite"),
        ({"bias": np.nan}, "error", "beta is NaN or infinite"),
        ({"running_var": 0.0}, "warning", "channels are constant"),
        ({"running_var": 5.6e-45}, "warning", "channels are constant"),
        ({"running_var": 1e-7, "weight": 2.0}, "warning", "variance is tiny and gamma is not"),
        ({"running_mean": 1e6}, "warning", "float32 loses digits"),
        ({"weight": 0.0}, "note", "gamma is 0"),
    ],
)
def test_one_bad_channel_is_found_and_named(changes: dict[str, float], level: str, kind: str) -> None:
    (finding,) = inspection.inspect(Model("safetensors", [Norm("bn", "pytorch", healthy(**changes))], 4))
    assert (finding.level, finding.kind, finding.channels) == (level, kind, (2,))
    assert finding.sentence.startswith(f"bn: {kind} in 1 of 7 channels: ")
    assert finding.sentence.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {"running_var": 1e-7, "weight": 0.01},
        {"running_mean": 1e3},
        {"running_var": 1e30},
        {"running_mean": 1e6, "running_var": 1e10},
    ],
)
def test_what_is_unusual_and_harmless_is_left_in_peace(changes: dict[str, float]) -> None:
    assert found(healthy(**changes)) == []


def test_a_negative_variance_says_whether_eps_covers_it() -> None:
    for variance, so in ((-1.0, "y is NaN in 1 of them"), (-1e-6, "eps 1e-05 covers it")):
        model = Model("safetensors", [Norm("bn", "pytorch", healthy(running_var=variance))], 4)
        assert so in inspection.inspect(model)[0].sentence


def test_statistics_that_were_never_updated() -> None:
    state = healthy() | {"running_mean": np.zeros(SIZE), "running_var": np.ones(SIZE)}
    assert found(state) == [("warning", "statistics were never updated")]
    assert found(state | {"num_batches_tracked": np.array(9)}) == [("warning", "statistics were never updated")]


def test_statistics_that_were_ported() -> None:
    assert found(healthy() | {"num_batches_tracked": np.array(0)}) == [("note", "statistics came from elsewhere")]
    assert found(healthy() | {"num_batches_tracked": np.array(9)}) == []


def test_the_counter_has_its_own_name_and_chainers_counts_something_else() -> None:
    state = dict(zip(("gamma", "beta", "running_mean", "running_var"), healthy().values(), strict=True))
    (finding,) = inspection.inspect(Model("NumPy", [Norm("bn", "polybn", state | {"updates": np.array(0)})], 5))
    assert "updates is 0" in finding.sentence
    state = dict(zip(("gamma", "beta", "avg_mean", "avg_var"), healthy().values(), strict=True))
    assert found(state | {"N": np.array(0)}, "chainer") == []


@pytest.mark.parametrize(("value", "y"), [(np.inf, "inf, and y is beta."), (np.nan, "nan, and y is NaN or infinite.")])
def test_an_infinite_variance_makes_y_beta(value: float, y: str) -> None:
    (finding,) = inspection.inspect(Model("safetensors", [Norm("bn", "pytorch", healthy(running_var=value))], 4))
    assert finding.sentence.endswith(y)


def test_a_nan_that_signals_makes_no_warning() -> None:
    state = {name: value.astype(np.float32) for name, value in healthy().items()}
    state["running_var"].view(np.uint32)[2] = 0x7F800001
    names = ("gamma", "beta", "running_mean", "running_var")
    for dialect, own in (("pytorch", state), ("polybn", dict(zip(names, state.values(), strict=True)))):
        assert found(own, dialect) == [("error", "variance is NaN or infinite")]


@pytest.mark.parametrize("eps", [-1.0, np.nan, np.inf])
def test_an_eps_that_cannot_be_added(eps: float) -> None:
    kinds = found(healthy(), options={"eps": eps})
    assert kinds[0] == ("error", "eps is negative, NaN or infinite")


def test_a_damaged_state_is_refused_with_its_layer() -> None:
    words = r"polybn\.inspect: in 'bn', num_batches_tracked must be one whole number .*; got -1"
    with pytest.raises(DomainError, match=words):
        found(healthy() | {"num_batches_tracked": np.array(-1)})


def test_numbers_beyond_float32_are_judged_without_warnings() -> None:
    kinds = [("warning", "variance is tiny and gamma is not"), ("warning", "float32 loses digits")]
    assert found(healthy(running_mean=1e308, running_var=1e-9)) == kinds


def test_placeholders() -> None:
    assert found({name: np.full(SIZE, 0.02) for name in healthy()}) == [("warning", "all channels are the same")]
    assert found({name: np.full(1, 0.02) for name in healthy()}) == []


def test_an_export_in_training_mode() -> None:
    state = dict(zip(("scale", "B", "input_mean", "input_var"), healthy().values(), strict=True))
    assert found(state, "onnx15", training=True) == [("error", "training_mode is 1")]


@pytest.mark.parametrize(
    ("dialect", "momentum", "wrong"), [("pytorch", 0.1, 0), ("pytorch", 0.9, 1), ("polybn", 0.1, 1)]
)
def test_a_momentum_of_the_other_sense(dialect: str, momentum: float, wrong: int) -> None:
    names = dialects.DIALECTS[dialect].names
    own = [names[role] for role in ("gamma", "beta", "running_mean", "running_var")]
    state = dict(zip(own, healthy().values(), strict=True))
    expected = [("warning", "momentum may have the other sense")] * wrong
    assert found(state, dialect, options={"momentum": momentum}) == expected
    still = 1.0 if dialect == "polybn" else 0.0
    assert found(state, dialect, options={"momentum": still}) == [("warning", "momentum keeps statistics as they are")]
    for outside in (-0.5, 1.5, np.nan):
        assert found(state, dialect, options={"momentum": outside}) == [("warning", "momentum is not from 0 to 1")]


def test_eps_below_what_the_target_takes() -> None:
    state = healthy()
    assert found(state, options={"eps": 1e-8}, target=dialects.MXNET_CUDNN) == [
        ("warning", "eps is below the least of mxnet_cudnn")
    ]
    assert found(state, options={"eps": 1e-8}, target=dialects.KERAS3) == []
    assert found(state, target=dialects.MXNET_CUDNN) == []


def test_fix_gamma_is_no_reason_to_fail() -> None:
    own = ("gamma", "beta", "moving_mean", "moving_var")
    assert found(dict(zip(own, healthy().values(), strict=True)), "mxnet_native") == []


def test_what_is_not_whole_is_said() -> None:
    state = {"moving_mean": np.arange(3.0), "moving_variance": np.arange(3.0) + 1}
    assert found(state, "keras3", lacks="one is missing") == [("note", "the state is not whole")]
    assert found({}, "keras3", lacks="all are computed") == [("warning", "statistics cannot be told from the file")]


# Digits.


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("folded", [False, True])
def test_as_many_digits_are_right_as_are_sure(ratio: float, folded: bool) -> None:
    """In float32, in the direct and in the folded form, for any mean of this ratio."""
    rng = np.random.default_rng(int(ratio))
    worst = 0.0
    for _ in range(200):
        deviation, gamma, beta = rng.uniform(0.1, 50), rng.uniform(0.5, 3), rng.normal()
        state = {"weight": gamma, "bias": beta, "running_mean": ratio * deviation, "running_var": deviation**2}
        stored = {name: np.array([value], np.float32) for name, value in state.items()}
        c = channels_of(Norm("bn", "pytorch", stored))
        assert c is not None
        mean, root, scale, shift = (np.float32(v[0]) for v in (c.mean, c.root, c.gamma, c.beta))
        x = np.float32(float(mean) + rng.choice([-1, 1]) * deviation)
        exact = (float(x) - c.mean[0]) * c.root[0] * c.gamma[0] + c.beta[0]
        factor = np.float32(root * scale)
        y = x * factor + np.float32(shift - mean * factor) if folded else np.float32((x - mean) * root) * scale + shift
        error = abs(float(y) - exact) / (abs(c.gamma[0]) * np.sqrt(c.var[0]) * c.root[0])
        bound = 10 ** -sure_digits(c, 0)
        worst = max(worst, error / bound)
        # x was rounded, so it is not exactly one deviation away.
        assert error <= 1.01 * bound or bound == 1
    if folded and ratio < 1e6:
        assert worst > 1 / 50  # the bound is not far too wide


# Words.


def test_the_first_line_is_the_verdict() -> None:
    good = Norm("a", "pytorch", healthy())
    bad, worse = Norm("b", "pytorch", healthy(running_var=0)), Norm("c", "pytorch", healthy(running_var=np.nan))
    said = {}
    for name, norms in {"good": [good], "bad": [good, bad], "worse": [good, bad, worse, worse], "none": []}.items():
        model = Model("safetensors", norms, 12)
        said[name] = words.headline("m.st", model, inspection.inspect(model))
    mixed = [bad._replace(name=f"b{number}") for number in range(3)]
    model = Model("safetensors", [*mixed, Norm("d", "pytorch", healthy(running_mean=1e9))], 16)
    said["mixed"] = words.headline("m.st", model, inspection.inspect(model))
    assert said == {
        "good": "m.st (safetensors): 1 batch norm with 7 channels, nothing wrong with it.",
        "bad": "m.st (safetensors): 2 batch norms with 14 channels; 1 needs a look: channels are constant in b.",
        "worse": "m.st (safetensors): 4 batch norms with 28 channels; 1 is broken: variance is NaN or infinite in c.",
        "mixed": "m.st (safetensors): 4 batch norms with 28 channels; 4 need a look: channels are constant in b0 and 2 "
        "more; float32 loses digits in d.",
        "none": "m.st (safetensors, 12 arrays) holds no batch norm.",
    }


def test_many_findings_of_a_kind_are_told_together() -> None:
    norms = [Norm(f"bn{number}", "pytorch", healthy(running_var=0)) for number in range(9)]
    lines = list(words.lines(inspection.inspect(Model("safetensors", norms, 36))))
    assert len(lines) == words.SHOWN + 1
    assert lines[-1] == "warning: channels are constant in 6 more: bn3, bn4, bn5, ..."


def test_a_range_leaves_nan_out_and_says_so() -> None:
    model = Model(
        "safetensors", [Norm("bn", "pytorch", healthy(running_var=np.nan) | {"bias": np.full(SIZE, np.nan)})], 4
    )
    ((_, _, _, variance, _, beta, *_),) = words.table(model, [])
    assert re.fullmatch(r"[\d.]+\.\.[\d.]+, nan", variance)
    assert beta == "nan"


# The command.


def save(path: Path, **layers: dict[str, Any]) -> None:
    arrays = {f"{layer}.{name}": array for layer, state in layers.items() for name, array in state.items()}
    path.write_bytes(safetensors.encode(arrays, {}))


def test_inspect_shows_a_table_and_the_exit_code_tells_of_errors(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "good.safetensors", a=healthy())
    code, out, err = polybn_("inspect", "good.safetensors")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "good.safetensors (safetensors): 1 batch norm with 7 channels, nothing wrong with it."
    assert len(out.splitlines()) == 3
    save(tmp_path / "bad.safetensors", a=healthy(), b=healthy(running_var=np.nan))
    code, out, err = polybn_("inspect", "bad.safetensors")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].startswith("error: b: variance is NaN or infinite in 1 of 7 channels")


def test_inspect_takes_the_dialect_that_names_do_not_tell(polybn_: Polybn, tmp_path: Path) -> None:
    statistics = {"mean": np.arange(3.0), "var": np.arange(3.0) + 1}
    save(tmp_path / "bare.safetensors", bn=statistics)
    _, out, _ = polybn_("inspect", "bare.safetensors")
    assert "polybn inspect and polybn convert read it with --from flax_linen" in out
    code, out, err = polybn_("inspect", "bare.safetensors", "--from", "flax_linen", "--json", "r.json")
    assert (code, err) == (0, "")
    assert out.startswith("bare.safetensors (safetensors): 1 batch norm with 3 channels, nothing wrong with it.")
    assert json.loads((tmp_path / "r.json").read_text())["batch_norms"][0]["dialect"] == "flax_linen"
    assert "--from must name a dialect; got 'flux'" in polybn_("inspect", "bare.safetensors", "--from", "flux").err


def test_inspect_writes_all_as_json(polybn_: Polybn, tmp_path: Path) -> None:
    state = healthy(running_var=np.nan)
    save(tmp_path / "bad.safetensors", b=state)
    polybn_("inspect", "bad.safetensors", "--json", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"][0]["channels"] == [2]
    (norm,) = report["batch_norms"]
    assert norm["state"]["running_var"][2] == "nan"
    assert norm["state"]["running_mean"] == state["running_mean"].tolist()


def test_json_for_standard_output_has_it_alone(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "bad.safetensors", b=healthy(running_var=np.nan))
    code, out, err = polybn_("inspect", "bad.safetensors", "--json", "-")
    assert code == 1
    assert json.loads(out)["file"] == "bad.safetensors"
    assert err.splitlines()[-1].startswith("error: b: variance is NaN or infinite")
    assert "mean" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.5])
@pytest.mark.parametrize("dtype", ["float16", "float64", "longdouble"])
def test_all_of_a_batch_norm_is_plain_json(value: float, dtype: str) -> None:
    number = np.dtype(dtype).type(value)
    plain = words.to_plain(Norm("bn", "pytorch", {"a": np.array(number), "b": np.array([number])}, {"eps": number}))
    expected = value if value == 3.5 else str(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "name": "bn", "dialect": "pytorch", "options": {"eps": expected}, "state": {"a": expected, "b": [expected]},
    }  # fmt: skip


def test_names_are_printed_without_what_a_terminal_would_obey(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", **{"b\x1b[31m\nerror: n": healthy(running_var=np.nan)})
    for arguments in (("inspect", "m.safetensors"), ("convert", "m.safetensors", "o.npz", "--to", "keras3")):
        _, out, err = polybn_(*arguments)
        assert "\x1b" not in out + err
        assert "b\\x1b[31m\\nerror: n" in out
        assert not any(line.startswith("error: n") for line in out.splitlines())
    with np.load(tmp_path / "o.npz") as arrays:
        assert "b\x1b[31m\nerror: n/gamma" in arrays


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_inspect_never_replaces_the_model(option: str, polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "m.png", bn=healthy())
    before = (tmp_path / "m.png").read_bytes()
    assert "another file than those that are read; got m.png" in polybn_("inspect", "m.png", option, "m.png").err
    assert (tmp_path / "m.png").read_bytes() == before


def test_a_folder_that_is_named_as_a_file_keeps_its_ending_in_the_suggestion(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", a=healthy())
    (tmp_path / "r.json").mkdir()
    err = polybn_("inspect", "m.safetensors", "--json", "r.json").err
    assert "--json must name a file; got r.json, a folder (try r.json/report.json)" in err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_inspect_draws_the_statistics(polybn_: Polybn, tmp_path: Path) -> None:
    from matplotlib.image import imread

    layers = {f"bn{number}": healthy() for number in range(5)}
    save(tmp_path / "m.safetensors", **layers, bad=healthy(running_var=0))
    assert polybn_("inspect", "m.safetensors", "--picture", "m.png")[0] == 0
    picture = imread(tmp_path / "m.png")
    colors = {tuple(np.round(pixel * 255).astype(int)) for pixel in picture[..., :3].reshape(-1, 3)}
    assert (255, 127, 14) in colors  # the layer that needs a look is orange


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("none.safetensors",), "No such file or directory: none.safetensors"),
        (("m.safetensors", "--for", "keras4"), "polybn.inspect: --for must name a dialect; got 'keras4' (did you"),
        (
            ("m.safetensors", "--json", "m.safetensors"),
            "polybn inspect: --json must be another file than those that are read; got ",
        ),
        (
            ("m.safetensors", "--json", "none/m.json"),
            "polybn inspect: --json must lie in a folder that exists; got none/m.json",
        ),
        (("m.safetensors", "--picture", "m.txt"), "polybn: the name of a picture must end in one of .png, .svg, .pdf"),
    ],
)
def test_inspect_refuses_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, polybn_: Polybn, tmp_path: Path
) -> None:
    save(tmp_path / "m.safetensors", a=healthy())
    code, out, err = polybn_("inspect", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {sentence}")
