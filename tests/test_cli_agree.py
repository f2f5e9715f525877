"""``polybn agree``: its table, its files, its exit codes, and its errors for unknown names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polybn import cli
from polybn.conformance.agree import Agreement, Difference, agree
from tests.support.command import Polybn

ROOT = Path(__file__).parents[1]

WRONG = """
import numpy as np

from polybn import conformance


class Wrong:
    def info(self):
        return conformance.Info(name="wrong", version="1", infers=False, differentiates=False)

    def train(self, x, gamma, beta, running_mean, running_var, *, momentum, eps, axis):
        y, mean, var = conformance.resolve("polybn-numpy").train(
            x, gamma, beta, running_mean, running_var, momentum=momentum, eps=eps, axis=axis
        )
        return y, mean, np.nextafter(var, np.inf, dtype=var.dtype)
"""


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["agree", *args])
    return result.exit_code, result.output


def test_a_batch_norm_that_is_off_by_a_unit_is_named_with_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit in the last place is within the bounds, but not equal if answers are exact."""
    (tmp_path / "wrong_norm.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, output = run("numpy", "wrong_norm:Wrong", "--cases", "10", "--json", "found.json", "--programs", "programs")
    assert code == 0
    assert "running_var" in output
    assert "differ" in output
    found = json.loads(Path("found.json").read_text())
    off = {row["quantity"]: row["ulps"] for row in found["differences"] if row["ulps"]}
    assert off == {"running_var": 1.0}
    (path,) = Path("programs").iterdir()
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, env={"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("running_var") == 2
    assert "resolve('polybn-numpy')" in path.read_text()
    assert "resolve('wrong_norm:Wrong')" in path.read_text()


def test_a_batch_norm_in_the_working_directory_is_found(tmp_path: Path) -> None:
    """As in an installed command, the directory is not on Python's path: hence -P."""
    (tmp_path / "wrong_norm.py").write_text(WRONG)
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    command = [sys.executable, "-P", "-m", "polybn", "agree", "numpy", "wrong_norm:Wrong", "--cases", "10"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ numpy, .*\n wrong_norm:Wrong ", done.stdout, re.MULTILINE), "names are shown whole"


def test_a_batch_norm_that_raises_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polybn_: Polybn
) -> None:
    (tmp_path / "raising_norm.py").write_text(
        WRONG.replace("y, mean, var = ", "raise ValueError('no')\n        y, _, _ = ")
    )
    said = polybn_("agree", "numpy", "raising_norm:Wrong")
    assert said.code == 2
    assert said.err == (
        "error: polybn agree: every call that is declared must return a result; got: wrong.train raised ValueError: no "
        "(polybn check says more about each)\n"
    )


def test_json_for_standard_output_has_it_alone(polybn_: Polybn, tmp_path: Path) -> None:
    said = polybn_("agree", "numpy", "polybn-numpy-plain", "--cases", "4", "--json", "-")
    assert said.code == 0
    assert json.loads(said.out)["names"] == ["numpy", "polybn-numpy-plain"]
    assert "All pairs agree" in said.err
    assert not list(tmp_path.iterdir())


def test_what_a_batch_norm_prints_and_warns_of_is_not_in_the_json(polybn_: Polybn, tmp_path: Path) -> None:
    chatty = WRONG.replace(
        "        y, mean, var = ", "        print('training')\n        np.float32(1e38) * 10\n        y, mean, var = "
    )
    (tmp_path / "chatty_norm.py").write_text(chatty)
    said = polybn_("agree", "numpy", "chatty_norm:Wrong", "--cases", "10", "--json", "-")
    assert said.code == 0, said.err
    assert json.loads(said.out)["cases"] == 10
    assert "training" in said.err
    assert "Warning" not in said.err


def test_files_are_refused_before_the_first_call(polybn_: Polybn, tmp_path: Path) -> None:
    for option, name in (("--json", "no/found.json"), ("--picture", "no/found.png"), ("--json", ".")):
        said = polybn_("agree", "numpy", "nosuch", option, name)
        assert (said.code, said.out) == (2, "")
        assert f"polybn agree: {option} must" in said.err


def test_a_picture_without_matplotlib_is_refused_before_the_first_call(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = polybn_("agree", "numpy", "nosuch", "--picture", "a.png")
    assert said.code == 2
    assert said.err == 'error: polybn agree: --picture needs matplotlib: pip install "polybn[plot]"\n'


def test_each_call_is_told_before_it_is_made() -> None:
    told: list[tuple[str, int, int]] = []
    agree(["numpy", "polybn-numpy-plain"], cases=2, progress=lambda *args: told.append(args))
    assert [(done, total) for _, done, total in told] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert re.fullmatch(r"numpy: training, float16, shape \([\d, ]+\), axis \d", told[0][0])
    assert told[1][0].startswith("polybn-numpy-plain: training, float16, ")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_has_the_format_of_its_name(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_norm.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / f"agree.{suffix}"
    code, _ = run("numpy", "wrong_norm:Wrong", "--cases", "10", "--picture", str(path))
    assert code == 0
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("numpy",), "adapters must be two or more, each once; got numpy"),
        (("numpy", "numpy"), "adapters must be two or more, each once; got numpy, numpy"),
        (("numpy", "nosuch"), "adapter must be one of"),
        (("numpy", "nump"), "(did you mean keras-numpy or polybn-numpy? "),
        (("numpy", "nosuch", "--picture", "x.txt"), "--picture must end in .png, .svg, .pdf; got 'x.txt'"),
    ],
)
def test_a_bad_call_says_what_is_wrong_before_any_work(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(cli.app, ["agree", *arguments])
    assert result.exit_code != 0
    assert words in str(result.exception) + result.output


def test_few_calls_that_have_no_exact_answers_are_not_said_to_be_equal_there(polybn_: Polybn) -> None:
    four, five = (polybn_("agree", "numpy", "polybn-numpy", "--cases", number).out for number in (4, 5))
    assert "none asked" in four
    assert "equal" not in four
    assert "equal" in five


NARROW = """
from polybn import conformance


class Narrow:
    def info(self):
        return conformance.Info(name="narrow", version="1", axes="second", ranks=RANKS, infers=False)

    def train(self, x, gamma, beta, running_mean, running_var, *, momentum, eps, axis):
        return conformance.resolve("polybn-numpy").train(
            x, gamma, beta, running_mean, running_var, momentum=momentum, eps=eps, axis=axis
        )

    def vjp(self, x, gamma, beta, dy, *, eps, axis):
        return conformance.resolve("polybn-numpy").vjp(x, gamma, beta, dy, eps=eps, axis=axis)
"""
"""A batch norm that serves few calls."""


def narrow(*ranks: int, axes: str = "second") -> str:
    """Write an adapter that serves these ranks; return its name, which no other test has imported."""
    module = f"narrow_{axes}_{'_'.join(map(str, ranks))}"
    Path(f"{module}.py").write_text(NARROW.replace("RANKS", repr(ranks)).replace("second", axes))
    return f"{module}:Narrow"


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_calls_are_drawn_from_what_two_declare_in_common(polybn_: Polybn, rank: int) -> None:
    said = polybn_("agree", "numpy", narrow(rank), "--cases", "20", "--json", "found.json")
    assert said.code == 0
    assert "(20 calls each)" in said.out
    assert "equal" in said.out
    found = json.loads(Path("found.json").read_text())["differences"]
    assert {(d["dtype"], d["calls"]) for d in found if d["quantity"] == "y"} == {("float32", 20)}
    said = polybn_("agree", "numpy", "polybn-numpy-plain", narrow(rank), "--cases", "20")
    assert "(10 to 20 calls each)" in said.out


def test_channels_last_are_compared_with_channels_second(polybn_: Polybn) -> None:
    said = polybn_("agree", narrow(3, 5, axes="last"), narrow(3, 4, 5), "polybn-numpy", "--cases", "30")
    assert said.code == 0
    assert "(23 to 27 calls each)" in said.out
    assert "differ" not in said.out.replace("difference", "")


def test_where_nothing_is_in_common_the_words_say_what_each_declares(polybn_: Polybn) -> None:
    said = polybn_("agree", narrow(2, 3), narrow(4))
    assert said.code == 2
    assert "must have a dtype, and a channel axis of a rank of 2 to 5, in common; got dtypes=('float32',), " in said.err
    assert "ranks=(2, 3), axes='second', and dtypes=('float32',), ranks=(4,), axes='second' (what" in said.err
    said = polybn_("agree", "numpy", "polybn-numpy-plain", narrow(2), "--cases", "1")
    assert "cases must be 2 or more; got 1" in said.err


def test_pairs_that_differ_by_more_than_their_bounds_do_not_agree() -> None:
    near = Difference("a", "b", "y", "float32", 3.0, 0.9, True, 1, 1, "")
    far = near._replace(second="c", share=1.1)
    assert Agreement(["a", "b"], 1, [near]).within()
    assert not Agreement(["a", "b", "c"], 1, [near, far]).within()
    assert Agreement(["a", "b", "c"], 1, [near, far]).worst("c", "a") is far


def test_an_infinite_difference_is_explained(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Difference("a", "b", "y", "float32", np.nan, np.inf, True, 1, 9, "")
    for one, told in ((lost, True), (lost._replace(ulps=9.0, share=3.0), False)):
        monkeypatch.setattr("polybn.conformance.agree.agree", lambda *_, one=one, **__: Agreement(["a", "b"], 9, [one]))
        said = " ".join(polybn_("agree", "a", "b").out.split())
        assert ("inf: one of the two has NaN or infinity where the other has a number" in said) is told


def _hiding() -> Agreement:
    loss = Difference("a", "b", "dgamma", "float32", 9.0, 1.2e4, True, 3, 60, "print('loss')")
    wrong = Difference("a", "b", "running_var", "float64", 7.0, 80.0, False, 3, 60, "print('wrong')")
    less, fine = wrong._replace(dtype="float32", share=60.0), wrong._replace(quantity="y", share=0.5, bits=True)
    return Agreement(["a", "b"], 60, [fine, less, wrong, loss])


def test_each_quantity_beyond_its_bound_has_a_line_and_a_program(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong running variance must not hide behind a gradient that lost more of its bound."""
    monkeypatch.setattr("polybn.conformance.agree.agree", lambda *_, **__: _hiding())
    said = polybn_("agree", "a", "b", "--programs", "programs")
    assert said.code == 1
    lines = [line.split() for line in said.out.splitlines()]
    assert ["a,", "dgamma,", "float32", "1.2e+04", "9", "equal"] in lines
    assert ["running_var,", "float64", "80", "7", "differ"] in [line[-5:] for line in lines]
    assert not any("y," in line or "60" in line[:-5] for line in lines)
    assert sorted(path.name for path in Path("programs").iterdir()) == ["a-b-running_var.py", "a-b.py"]


def test_the_suite_of_pytest_names_each_quantity_beyond_its_bound() -> None:
    from polybn.conformance import suite

    with pytest.raises(pytest.fail.Exception, match=r"(?s)dgamma of float32 .* bounds\nrunning_var of float64 .*loss"):
        suite.test_agreement(_hiding(), ("a", "b"))
