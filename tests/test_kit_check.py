"""The kit as a whole: passes, failures and their messages, conventions, expected failures, the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from polybn import conformance
from polybn.commands import check as check_command
from polybn.conformance import conventions, expected, peers
from polybn.conformance.cases import DTYPES
from polybn.conformance.grades import LETTERS
from polybn.conformance.report import Report
from polybn.spec import DomainError
from tests.support import kit_adapters as kit
from tests.support.command import Polybn
from tests.support.kit_variants import VARIANTS, Plain

QUICK = {"P6", "P6b"}
"""Properties that take seconds, which only one test runs."""
CONVENTIONS = [name for name in conformance.IDS if name.startswith("convention-")]
EVERYTHING = [name for name in conformance.IDS if name not in QUICK]


def check(adapter: Any, only: list[str] | None = None, **options: Any) -> Report:
    return conformance.check(adapter, only=only or EVERYTHING, seed=7, **options)


def failed(report: Report) -> set[str]:
    return {result.id for result in report.failures}


def words(report: Report, name: str) -> str:
    (result,) = (r for r in report.results if r.id == name)
    return result.words


def test_a_right_one_passes_everything() -> None:
    report = check(kit.Right())
    assert report.ok, str(report)
    assert {grade.dtype: grade.letter for grade in report.grades} == {"float32": "S"}
    unasked = {"P42", "P43", "G4", *(name for name in EVERYTHING if name.startswith("grade-"))}
    assert {r.status for r in report.results if r.id not in unasked} == {"pass"}


@pytest.mark.parametrize("make", [kit.DeclaredReversed, kit.Unbiased])
def test_what_is_declared_is_expected(make: Any) -> None:
    report = check(make(), [*CONVENTIONS, "P2", "P2b", "P14", "P16", "P22", "P33", "P34", "P35", "stateful"])
    assert report.count("pass") == len(report.results), str(report)


def test_sizes() -> None:
    report = check(kit.Right(), ["P6", "P6b"], profile="ci")
    assert report.count("pass") == 2, str(report)


@pytest.mark.parametrize(
    ("make", "among", "said"),
    [
        (kit.UnbiasedOutput, {"P1", "P3", "P22", "P14"}, "y of channel"),
        (kit.EpsOutside, {"P0", "P1", "P7", "P22", "P26"}, "times its bound"),
        (kit.Reversed, {"convention-momentum"}, "Your momentum weighs the new value: declare momentum='new'"),
        (kit.LeakingNaN, {"P38", "P38b"}, "must be NaN throughout"),
        (kit.Writing, {"P18"}, "train must not write its arguments; it changed running_mean"),
        (kit.Frozen, {"P4", "P36", "P37b"}, "y of channel"),
        (kit.Forgetful, {"P17", "P37"}, "must be the same to the bit when the same call is made again"),
    ],
)
def test_wrong_ones_fail(make: Any, among: set[str], said: str) -> None:
    report = check(make(), sorted(among, key=conformance.IDS.index))
    assert failed(report) == among, str(report)
    assert not report.ok
    assert any(said in result.words for result in report.failures), str(report)


UNUSED = "whatever eps is passed"


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (lambda v, eps: 1 / (np.sqrt(v) + eps), "in training it is divided by sqrt(variance) + eps"),
        (lambda v, eps: 1 / np.sqrt(v), "in training it is divided by sqrt(variance), without eps"),
        (lambda v, eps: 1 / np.sqrt(v * 15 / 14 + eps), "sqrt(variance * m / (m - 1) + eps), the unbiased variance"),
        *((lambda v, eps, own=own: 1 / np.sqrt(v + own), f"sqrt(variance + {own:.3g}), {UNUSED}")
          for own in (1e-3, 1e-4, 1e-5, 1e-6)),
    ],
)  # fmt: skip
def test_a_wrong_eps_is_named_before_all_that_follows_from_it(root: Any, said: str) -> None:
    class Wrong(kit.Right):
        def normalize(self, rows: Any, eps: float) -> Any:
            inverse = root(rows.var(axis=1, keepdims=True), eps)
            return (rows - rows.mean(axis=1, keepdims=True)) * inverse, inverse

    report = check(Wrong(), ["P0", "P1", "P22"])
    assert report.advice.startswith("P0: x - mean must be divided by sqrt(variance + eps); in training it is")
    assert report.advice.endswith(f"{said}; mend this first: 2 checks fail, too.")


def test_the_eps_of_inference_is_looked_at_too() -> None:
    class Wrong(kit.Right):
        def infer(self, *args: Any, eps: float, axis: int) -> Any:
            return super().infer(*args, eps=1e-3, axis=axis)

    assert f"in inference it is divided by sqrt(variance + 0.001), {UNUSED}" in check(Wrong(), ["P0"]).advice


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_eps_passes_in_each_dtype(dtype: str) -> None:
    class Narrow(kit.Right):
        conventions: ClassVar[dict[str, Any]] = {"dtypes": (dtype,)}

        def train(self, x: Any, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return y, mean.astype(args[0].dtype), var.astype(args[0].dtype)

    report = check(Narrow(), ["P0"])
    assert report.results[0].status == "pass", str(report)


def test_what_is_divided_by_something_else_is_left_to_other_properties() -> None:
    class Wrong(kit.Right):
        def train(self, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(*args, **options)
            return np.tanh(y), mean, var

    (result,) = check(Wrong(), ["P0"]).results
    assert result.status == "not certified"
    assert result.words.endswith("y is divided by nothing that is known here: what else fails says more")


def test_what_does_not_apply_is_no_pass() -> None:
    names = [
        "P1",
        "P3",
        "P4",
        "P9b",
        "P12",
        "P13",
        "P16",
        "P22",
        "P28",
        "P36",
        "P40",
        "R2",
        "stateful",
        "grade-float64",
    ]
    report = check(kit.OnlyForward(), [*CONVENTIONS, *names])
    assert report.ok, str(report)
    status = {result.id: result.status for result in report.results}
    for name in ("P3", "P4", "P9b", "P13", "P28", "P36", "R2", "grade-float64"):
        assert status[name] == "not applicable", name
    assert words(report, "P4") == "the adapter declares that it has no infer"
    assert status["P1"] == status["P22"] == status["P40"] == status["stateful"] == "pass"


def test_one_pass_algorithms_are_held_to_what_they_declare() -> None:
    report = check(kit.OnePass(), ["P1", "P5", "P22", "P26", "convention-momentum"])
    assert report.ok, str(report)
    assert words(report, "P5").startswith("the adapter declares max_kappa")
    undeclared = type("Undeclared", (kit.OnePass,), {"conventions": {"differentiates": False}})()
    assert "P5" in failed(check(undeclared, ["P5"]))


def test_what_is_not_certified_is_no_pass() -> None:
    class Sequential(kit.Right):
        """Sums in float32, one value after the other."""

        def normalize(self, rows: Any, eps: float) -> Any:
            x = rows.astype("f4")
            mean = x.cumsum(axis=1, dtype="f4")[:, -1:] / x.dtype.type(x.shape[1])
            d = x - mean
            var = (d * d).cumsum(axis=1, dtype="f4")[:, -1:] / x.dtype.type(x.shape[1])
            root = 1 / (var + x.dtype.type(eps)) ** x.dtype.type(0.5)
            return d * root, root

    report = check(Sequential(), ["P15"])
    (result,) = report.results
    assert (result.status, report.ok, report.count("pass")) == ("not certified", False, 0)
    assert 0 < result.vacuous < result.cases
    assert "P15: " in str(report).partition("Not certified, and no pass:")[2]
    assert report.verdict.startswith("Sequential is not shown to conform to the specification: 1 not certified")
    assert check(Sequential(), ["P15", "P16"]).ok


def test_conventions_are_seen_whatever_is_declared() -> None:
    adapter = kit.Unbiased()
    seen = {c.name: c.seen for c in conventions.detect(adapter, adapter.info())}
    assert seen == {
        "momentum": "old", "running_variance": "unbiased", "single_value": "error", "empty": "kept", "axes": "any",
        "ranks": "2, 3, 4, 5", "dtypes": "float32", "trains_by": "batch", "flushes": "no",
    }  # fmt: skip
    lies: dict[str, Any] = {
        "momentum": "new", "running_variance": "biased", "single_value": "beta", "empty": "changed", "axes": "second",
    }  # fmt: skip
    for name, lie in lies.items():
        change: dict[str, Any] = {name: lie}
        info = adapter.info()._replace(**change)
        found = conventions.detect_one(adapter, info, name)
        assert (found.ok, found.declared, found.seen) == (False, lie, seen[name])


def test_conventions_that_nobody_declares_are_described() -> None:
    class Deviation(kit.Right):
        """Keeps the standard deviation."""

        def kept(self, rows: Any) -> Any:
            return rows.std(axis=1)

    class Raises(kit.Right):
        def train(self, *args: Any, **options: Any) -> Any:
            raise ValueError("no")

    found = conventions.detect_one(Deviation(), Deviation().info(), "running_variance")
    assert (found.ok, found.seen) == (False, "the standard deviation")
    found = conventions.detect_one(Raises(), Raises().info(), "momentum")
    assert (found.ok, found.seen) == (False, "nothing, because Raises.train raised ValueError: no")


def test_declared_deviations_are_told_in_words() -> None:
    report = check(kit.Unbiased(), ["convention-momentum", "convention-running_variance", "convention-dtypes"])
    assert len(report.deviations) == 2  # the other one is the lack of other dtypes
    assert "running_variance is 'unbiased' where the specification has 'biased'" in report.deviations[0]
    assert "Differs from the specification by declaration:" in str(report)
    assert "except for what it declares" in str(report)


def test_the_same_seed_finds_the_same() -> None:
    first, second = (check(kit.EpsOutside(), ["P22", "P7"], profile="dev") for _ in range(2))
    assert [r.words for r in first.results] == [r.words for r in second.results]
    assert [r.reproducer for r in first.results] == [r.reproducer for r in second.results]
    assert conformance.check(kit.Right(), only=["P16"], profile="ci").seed == 0


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    check(kit.Right(), ["P16", "P40"], progress=lambda *args: told.append(args))
    assert [(done, total) for _, done, total in told] == [(0, 2), (1, 2)]
    assert told[0][0].startswith("One value per channel")


def test_expected_failures(tmp_path: Path) -> None:
    file = tmp_path / "xfail"
    file.write_text("# known\n\nP18  # writes in place, https://example.org/1\n")
    report = check(kit.Writing(), ["P16", "P18"], xfail=file)
    assert report.ok, str(report)
    assert [r.status for r in report.results] == ["pass", "expected failure"]
    assert "P18: writes in place, https://example.org/1" in str(report)


def test_stale_expectations_are_errors(tmp_path: Path) -> None:
    said = "xfail entry P16 (once) must be removed: the result is 'pass'"
    file = tmp_path / "xfail"
    file.write_text("P16  # once")
    report = check(kit.Right(), ["P16"], xfail=file)
    assert not report.ok
    assert not report.failures
    assert said in report.errors[0]
    assert said in " ".join(str(report).split())
    assert report.verdict.startswith("Right conforms to the specification, but an expectation is stale: 1 pass, 1 st")
    assert report.advice == f"{said}."


def test_a_failure_is_told_before_stale_expectations(tmp_path: Path) -> None:
    file = tmp_path / "xfail"
    file.write_text("P16  # once\nP40  # twice")
    report = check(kit.Writing(), ["P16", "P18", "P40"], xfail=file)
    assert report.advice.startswith("P18: ")
    assert report.verdict.startswith("Writing does not conform to the specification: 2 pass, 1 fail, 2 stale")


def test_stale_expectations_are_named_quietly(polybn_: Polybn, tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("P16  # once\nP40  # twice\n")
    known = str(tmp_path / "known.txt")
    some = ("check", "--backend", "numpy", "--only", "P16", "--only", "P40", "--dtype", "float32", "--quiet")
    said = polybn_(*some, "--xfail", known)
    assert said.code == 1
    for name, reason in (("P16", "once"), ("P40", "twice")):
        assert f"xfail entry {name} ({reason}) must be removed: the result is 'pass'." in said.out.replace("\n", " ")
    assert "but 2 expectations are stale: 2 pass, 2 stale" in " ".join(said.out.split())
    (tmp_path / "known.txt").write_text("p16  # typo\n")
    said = polybn_(*some, "--xfail", known)
    assert said.code == 2
    assert "xfail must name what there is to check; got 'p16' (such as P16; " in " ".join(said.err.split())


def test_expectations_of_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "xfail"
    file.write_text("P99  # typo")
    with pytest.raises(DomainError, match="xfail must name what there is to check; got 'P99'"):
        check(kit.Right(), ["P16"], xfail=file)


@pytest.mark.parametrize(("text", "rule"), [("P1", "have a reason"), ("P1 # a\nP1 # b", "name each id once")])
def test_expectations_give_reasons(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "xfail"
    file.write_text(text)
    with pytest.raises(DomainError, match=f"xfail must {rule}.*line"):
        expected.read(file)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ["P222"]}, "only must name what there is to check; got 'P222' .*P22"),
        ({"only": ["p15"]}, r"got 'p15' \(such as P15; "),
        ({"profile": "fast"}, "profile must be one of dev, ci, nightly; got 'fast'"),
        ({"dtypes": ["float64"]}, "dtypes must be among those that Right declares, float32; got float64"),
        ({"dtypes": []}, "got none"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DomainError, match=f"polybn.conformance.check: .*{said}"):
        conformance.check(kit.Right(), **options)


def invoke(*args: str) -> Any:
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(check_command.check)
    return CliRunner().invoke(app, list(args))


def test_command(tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "a.json", tmp_path / "a.html"
    result = invoke(
        "--backend", "numpy", "--only", "P15", "--only", "convention-momentum", "--dtype", "float32",
        "--json", str(json_file), "--html", str(html_file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "PolyBN on numpy conforms to the specification" in result.output
    data = json.loads(json_file.read_text())
    assert data["ok"] is True
    assert data["adapter"]["dtypes"] == ["float32"]
    assert html_file.read_text().startswith("<!doctype html>")


def test_json_for_standard_output_has_it_alone(polybn_: Polybn, tmp_path: Path) -> None:
    said = polybn_("check", "--backend", "numpy", "--only", "P16", "--dtype", "float32", "--json", "-")
    assert said.code == 0
    assert [result["id"] for result in json.loads(said.out)["results"]] == ["P16"]
    assert "PolyBN on numpy conforms to the specification" in said.err
    assert said.err.endswith("Written to standard output\n")
    assert not list(tmp_path.iterdir())


def test_quietly_one_sentence_is_said_once(polybn_: Polybn) -> None:
    said = polybn_("check", "--backend", "numpy", "--only", "P16", "--dtype", "float32", "--quiet")
    more = len(conformance.IDS) - 1 - 3  # grades of dtypes that are not chosen
    words = f"conforms to the specification, as far as was asked ({more} more checks are there): 1 pass."
    assert said == (0, f"PolyBN on numpy {words}\n", "")


def test_two_reports_cannot_be_one_file(polybn_: Polybn) -> None:
    said = polybn_("check", "--backend", "numpy", "--json", "-", "--junit", "-")
    assert (said.code, said.out) == (2, "")
    assert (
        said.err == "error: polybn check: --json, --junit must name different files; got -, - (each is written whole)\n"
    )


def test_the_table_of_peers_is_beside_its_json(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "everyone", lambda: ["none"])
    monkeypatch.setattr(peers, "run", lambda names, limit: [peers.Peer(name, why_not="it is no one") for name in names])
    said = polybn_("check", "--peers", "--json", "-")
    assert json.loads(said.out)["peers"][0]["adapter"] == "none"
    assert "Could not run: none (it is no one)." in said.err


def test_command_fails_where_the_check_does(tmp_path: Path) -> None:
    path = "tests.support.kit_adapters:Writing"
    result = invoke("--adapter", path, "--only", "P18")
    assert result.exit_code == 1
    assert "train must not write its arguments; it changed running_mean" in " ".join(result.output.split())
    assert f"resolve('{path}')" in result.output
    xfail = tmp_path / "xfail"
    xfail.write_text("P18  # known, https://example.org")
    assert invoke("--adapter", path, "--only", "P18", "--xfail", str(xfail)).exit_code == 0


def of_class_n() -> Plain:
    return VARIANTS["in order"]


@pytest.mark.parametrize(
    ("letter", "code"), [("S", 1), ("K", 1), ("T", 1), ("N", 0), ("F", 0), ("O", 0)], ids=lambda value: str(value)
)
def test_command_demands_a_grade(letter: str, code: int) -> None:
    """The exit code of an adapter of class N, whose other checks pass, depends on the grade only."""
    result = invoke("--adapter", f"{__name__}:of_class_n", "--only", "grade-float32", "--at-least", letter)
    assert result.exit_code == code, result.output
    said = re.findall(r"float32 must be of class (.), .*, or better; got (.) ", result.output)
    assert said == [(letter, "N")] * code


def test_command_demands_a_grade_that_is_there() -> None:
    result = invoke("--backend", "numpy", "--only", "P15", "--at-least", "O")
    assert result.exit_code == 1
    assert "No dtype was graded" in result.output


def test_command_explains_the_letters() -> None:
    said = " ".join(invoke("--help").output.replace("│", " ").split())
    assert [letter for letter in LETTERS if letter != "-" and f" {letter}, " not in said] == []
    assert "--at-least" in said


def test_command_asks_for_one_subject() -> None:
    for args in ((), ("--backend", "numpy", "--adapter", "pytorch")):
        result = invoke(*args)
        assert isinstance(result.exception, DomainError)
        assert "one of --backend and --adapter must be given" in str(result.exception)


def test_command_calls_inside_of_jit() -> None:
    given = [("jax", None, True), ("jax", None, False), ("numpy", None, False), (None, "pytorch", False)]
    names = [check_command._source(backend, adapter, jit=jit) for backend, adapter, jit in given]
    assert names == ["polybn-jax-jit", "polybn-jax", "polybn-numpy", "pytorch"]
    result = invoke("--adapter", "pytorch", "--jit")
    assert isinstance(result.exception, DomainError)
    assert "--jit must come with --backend; got --adapter pytorch" in str(result.exception)
    result = invoke("--backend", "numpy", "--jit")
    assert isinstance(result.exception, DomainError)
    assert "form must be one of plain; got 'jit'" in str(result.exception)


def test_without_hypothesis_adapters_can_be_written_and_the_rest_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from polybn import conformance\n"
        "print(conformance.Info('a', '1').momentum, conformance.resolve('polybn-numpy').info().name)\n"
        "try: conformance.check\n"
        "except ImportError as error: print(error)\n"
        "print(hasattr(conformance, 'nothing'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "old PolyBN on numpy",
        'polybn.conformance: check needs hypothesis: pip install "polybn[conformance]"',
        "False",
    ]


def test_who_keeps_no_running_statistics_is_asked_for_none() -> None:
    report = check(kit.Untracked(), [id for id in conformance.IDS if id not in QUICK], dtypes=["float32"])
    assert [result.id for result in report.failures if not result.id.startswith("R")] == []
    untracked = {result.id for result in report.results if "keeps no running statistics" in result.words}
    assert untracked == {
        "convention-momentum", "convention-running_variance", "convention-flushes", "convention-trains_by", "P2", "P2b",
        "P33", "P34", "P38d", "P43", "stateful",
    }  # fmt: skip
    assert {result.status for result in report.results if result.id in untracked} == {"not applicable"}


def test_who_declares_to_keep_them_must() -> None:
    class Lying(kit.Untracked):
        conventions: ClassVar[dict[str, Any]] = {}

    report = check(Lying(), ["convention-momentum", "P2", "P22", "P33", "P40"])
    assert failed(report) == {"convention-momentum", "P2", "P22", "P33"}
    assert report.results[-1].reason == "declare empty='changed'"


def test_a_report_shows_one_program_and_how_to_see_the_others(polybn_: Polybn) -> None:
    wrong = ("check", "--adapter", "tests.support.kit_adapters:EpsOutside", "--seed", "1")
    some = [word for name in ("P1", "P3", "P7", "P14", "P22", "P26") for word in ("--only", name)]
    said = polybn_(*wrong, *some)
    report, _, program = said.out.partition("To repeat ")
    assert program.startswith("P1:\n")
    assert "To repeat " not in program
    shown = report.partition("Failures:\n")[2].partition("\n\n")[0]
    others = re.split(r"^  (?=P)", shown, flags=re.MULTILINE)[2:]
    assert len(others) == 5
    assert {other.count("\n") for other in others[:-1]} == {2}
    assert re.search(r"^x = .*# -?\d", program, re.MULTILINE), "values that can be read stand beside the bytes"
    hint = f"To see all of P7, or of another: polybn {' '.join(wrong[:3])} --profile dev --seed 1 --only P7"
    assert hint in said.out
    alone = polybn_(*wrong, "--only", "P3").out
    assert "\nTo repeat P3:\n" in alone
    assert "To see all" not in alone


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (("mine:Norm",), "--adapter mine:Norm"),
        (("numpy",), "--backend numpy"),
        (("--backend", "mine:Norm"), "--adapter mine:Norm"),
        (("--backend", "pytorch"), "--adapter pytorch"),
        (("--adapter", "numpy"), "--backend numpy"),
    ],
)
def test_a_name_at_the_wrong_place_leads_to_the_right_one(words: tuple[str, ...], right: str, polybn_: Polybn) -> None:
    said = polybn_("check", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.endswith(f"(polybn check {right})\n")
