"""Any behaviour of an author's batch norm leads to a report whose first sentence is the most useful one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest

from polybn import conformance
from polybn.conformance import apart, junit, skeleton
from polybn.conformance.finding import Finding
from polybn.conformance.grades import at_least
from polybn.conformance.report import Report
from tests.sabotage.reference import Reference
from tests.support import kit_authors as authors
from tests.support.command import Polybn

ROOT = Path(__file__).parents[1]
CONVENTIONS = [name for name in conformance.IDS if name.startswith("convention-")]
SOME = [*CONVENTIONS, "P1", "P2", "P3", "P4", "P16", "P17", "P18", "P22", "P33", "G1", "stateful", "grade-float32"]


def check(adapter: Any, only: list[str] | None = None) -> Report:
    return conformance.check(adapter, only=only or SOME, seed=11)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (authors.Exiting, r"Nothing was checked: Exiting\.train raised SystemExit: 0"),
        (authors.Flat, r"Nothing was checked: Flat\.train: y must have shape \(4, 3\) and dtype float32; got \(12,\)"),
        (authors.Wide, r"P3: Wide\.vjp: dx must have shape .* and dtype float32; got .* float64"),
        (authors.Blank, r"P4: In inference: y must be exactly the numbers of the specification: at .* got nan"),
        (authors.Random, r"P17: y must be the same to the bit when the same call is made again"),
        (authors.Overwriting, r"P18: train must not write its arguments; it changed x"),
        (
            authors.Refusing,
            r"The convention flushes could not be seen: Refusing\.train raised ValueError: denormal input",
        ),
        (
            authors.Subclassed,
            r"Nothing was checked: .*: y must be a plain NumPy array; got .*MaskedArray \(np\.array mak",
        ),
        (authors.Leaking, r"Training on one value per channel gives nan in running_var, which no declaration covers"),
        (authors.NearlySingle, r"Training on one value per channel gives y = .* where beta is"),
        (authors.Rubbish, r"Nothing was checked: Rubbish\.info: momentum must be one of 'old', 'new'; got 'weight'"),
        (
            authors.Reversed,
            r"Your momentum weighs the new value: declare momentum='new'\. All .* dialect='d2l_mxnet' dec",
        ),
        (
            authors.Plainly,
            r"Your momentum weighs the new value: declare momentum='new'\. Your running variance takes in the unbiased "
            r"variance: declare running_variance='unbiased'\. Training on one value per channel raises an error: "
            r"declare single_value='error'\. All that was seen is what dialect='pytorch' declares \(.*\)\.$",
        ),
        (
            authors.OnlySecond,
            r"Only the second axis may be the channel axis: declare axes='second'\. "
            r"The ranks that are served are 4: declare ranks=\(4,\)\.",
        ),
        (authors.Flushing, r"Subnormal numbers are flushed to zero: declare flushes=True\."),
        (authors.ByRunning, r"Training normalizes by the running statistics: declare trains_by='running'\."),
    ],
)
def test_wrong_ones_get_the_right_first_sentence(make: Any, sentence: str) -> None:
    report = check(make())
    assert not report.ok
    assert re.match(sentence, report.advice), report.advice
    assert str(report).replace("\n", " ").startswith(report.advice[:60])
    assert not any("the kit itself failed" in result.words for result in report.results)


@pytest.mark.parametrize(
    ("make", "sentence", "grade"),
    [
        (
            authors.Flushing,
            "Subnormal numbers are flushed to zero: declare flushes_subnormals=True in the backend's traits.",
            "there is no grade while a convention is declared wrongly: declare flushes_subnormals=True in the",
        ),
        (
            authors.Reversed,
            "Your momentum weighs the new value: clause S4 asks a backend for 'old', which no declaration changes. ",
            "",
        ),
        (
            authors.OnlySecond,
            "Only the second axis may be the channel axis: clause S1 asks a backend for 'any', which no declaration ",
            "",
        ),
    ],
)
def test_a_backend_is_told_what_a_backend_can_declare(make: Any, sentence: str, grade: str) -> None:
    """It has traits and no Info; what these do not hold it has to mend."""
    ours = {"conventions": {**make.conventions, "of_backend": True}}
    report = check(type("Ours", (make,), ours)())
    assert report.advice.startswith(sentence)
    (graded,) = [result for result in report.results if result.id == "grade-float32"]
    assert graded.words.startswith(grade)
    assert {result.reason for result in report.results} <= {"", sentence.partition(": ")[2].rstrip(".")}
    assert set(re.findall(r"declare (\w+)=", report.to_json())) <= {"flushes_subnormals"}


def findings(source: str, wanted: list[str], seconds: float | None = None, *, everything: bool = False) -> list[Any]:
    order = apart.Order(f"tests.support.kit_authors:{source}", "dev", None, 3, seconds, everything)
    return list(apart.examine(order, wanted))


def test_grades_of_dtypes_that_are_not_declared_are_waited_for_by_nobody() -> None:
    _, *found = findings("OnlySingle", ["P4", "grade-float16", "grade-float32", "grade-float64"], everything=True)
    assert [(one.result.id, one.result.status) for one in found] == [("P4", "pass"), ("grade-float32", "pass")]


@pytest.mark.parametrize(
    ("source", "failing", "words"),
    [
        ("Crashing", "P3", r"the adapter ended the process by signal SIG(SEGV|BUS)"),
        ("Leaving", "P4", r"the adapter ended the process with exit status 0"),
        ("Hanging", "P4", r"Hanging.infer did not return within 2 s"),
    ],
)
def test_what_ends_or_stops_the_process_is_a_failure_and_the_rest_is_checked(
    source: str, failing: str, words: str
) -> None:
    begun, *found = findings(source, ["P1", failing, "P35"], 4.0)
    assert begun.info.name == source
    assert [one.result.id for one in found] == ["P1", failing, "P35"]
    assert [one.result.status for one in found] == ["pass", "fail", "pass"]
    assert re.search(words, found[1].result.words), found[1].result.words


def test_an_import_that_never_ends_is_told_in_time(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "STARTING", 3.0)
    Path("endless.py").write_text("while True:\n    pass\n")
    said = polybn_("check", "--adapter", "endless:Norm")
    words = "Nothing was checked: endless:Norm did not return within 3 s, and could not be interrupted when it was im"
    assert said.code == 1
    assert words in " ".join(said.out.split())


def test_a_first_call_that_never_ends_is_told_in_time(polybn_: Polybn) -> None:
    Path("sleeping.py").write_text(
        "import time\nfrom tests.support import kit_adapters as kit\n\nclass Norm(kit.Right):\n"
        "    def train(self, *a, **k):\n        time.sleep(1000)\n"
    )
    said = polybn_("check", "--adapter", "sleeping:Norm", "--limit", "2")
    assert said.code == 1
    assert "Nothing was checked: Norm.train did not return within 2 s (--limit sets more)" in " ".join(said.out.split())


@pytest.mark.parametrize("moment", ["import", "check"])
def test_control_c_keeps_what_was_found(tmp_path: Path, moment: str) -> None:
    """The report and the files say what was found and what was not reached."""
    # Tests in the background of a shell ignore Ctrl-C, which Python must not inherit.
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); from polybn.cli import main; main()"
    begun = tmp_path / "begun"
    (tmp_path / "endless.py").write_text(f"open({str(begun)!r}, 'w').close()\nwhile True:\n    pass\n")
    adapter = "polybn-numpy" if moment == "check" else "endless:Norm"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "check", "--adapter", adapter, "--json", "found.json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
    )  # fmt: skip
    assert process.stdout is not None
    if moment == "check":
        assert any(line.startswith("pass   P1 ") for line in process.stdout)
    else:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "Interrupted: the report has what was found so far.\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert bool(found["results"]) == (moment == "check")
    assert "stateful" in found["missing"]
    assert "Not reached, because the check was interrupted:" in out


def test_printing_is_noted_and_spoils_no_report(capfd: pytest.CaptureFixture[str]) -> None:
    _, found = findings("Printing", ["P1"])
    assert isinstance(found, Finding)
    assert found.result.status == "pass"
    assert "first '\\x1b[2Jtraining'" in found.note
    assert capfd.readouterr().out == ""
    report = check(authors.Printing(), ["P1"])
    assert report.ok
    assert "\x1b" not in str(report) + junit.document(report)
    assert "prints while it is checked" in str(report)


def test_a_channel_axis_that_is_ignored_is_to_be_declared_first() -> None:
    """Statistics of a wrong shape are an echo of it, also in checks of side effects."""
    report = check(authors.SecondAlone(), ["convention-axes", "P17", "P18", "P22", "P37"])
    assert report.advice == "Only the second axis may be the channel axis: declare axes='second'."
    assert {result.id: result.status for result in report.results if result.id != "convention-axes"} == dict.fromkeys(
        ("P17", "P18", "P22", "P37"), "echo"
    )


def test_roundings_of_a_narrow_dtype_are_no_convention() -> None:
    (result,) = check(authors.Narrow(), ["convention-axes"]).results
    assert result.status == "pass", result.words


def test_nan_after_one_value_is_noticed_for_each_declaration() -> None:
    for declared in ({}, {"running_variance": "unbiased"}):
        adapter = type("Declared", (authors.Leaking,), {"conventions": declared})()
        failed = {result.id: result.words for result in check(adapter, ["convention-single_value", "P16"]).failures}
        assert failed.keys() == {"convention-single_value", "P16"}
        assert "must leave running_var finite; got nan" in failed["P16"]


def test_the_derivative_of_a_frozen_one_is_asked_for() -> None:
    report = check(authors.Thawed(), ["P42", "G4"])
    assert {result.id: result.status for result in report.results} == {"P42": "fail", "G4": "fail"}
    assert check(Reference(), ["P42", "G4"]).ok
    (result,) = check(authors.Right(), ["P42"]).results
    assert (result.status, result.words) == ("not applicable", "the adapter declares that it has no infer_vjp")


def test_training_by_the_running_statistics_can_be_declared() -> None:
    class Declared(authors.ByRunning):
        conventions: ClassVar[dict[str, Any]] = {"trains_by": "running", "differentiates": False}
        vjp = None  # type: ignore[assignment]

    report = check(Declared(), [*SOME, "P43", "P40"])
    assert report.ok, str(report)
    assert {r.id for r in report.results if r.status == "not applicable"} >= {"P1", "P22", "G1", "grade-float32"}
    batch = type("Batch", (authors.Right,), {"conventions": {"trains_by": "running"}})
    (wrong,) = check(batch(), ["P43"]).results
    assert (wrong.status, wrong.reason) == ("echo", "declare trains_by='batch'")
    assert "y of channel" in wrong.words


# Right ones.


@pytest.mark.parametrize(
    "make", [authors.Long, authors.Right, authors.WelfordWide, authors.two_passes, authors.Compiled, authors.Unlike]
)
def test_right_ones_are_not_accused(make: Any) -> None:
    only = [name for name in conformance.IDS if name not in ("P6", "P6b")]
    report = conformance.check(make(), only=only, seed=5, dtypes=make().info().dtypes[-1:])
    assert report.ok, str(report)
    assert report.advice == report.verdict
    assert " conforms to the specification" in report.advice
    assert all(at_least(grade.letter, "T") for grade in report.grades)


# Echoes.


def test_echoes_are_marked_and_no_grade_is_given() -> None:
    report = check(authors.Reversed())
    status = {result.id: result.status for result in report.results}
    assert [name for name, found in status.items() if found == "fail"] == ["convention-momentum"]
    assert {name for name, found in status.items() if found == "echo"} == {"G1", "P2", "P22", "P33", "stateful"}
    assert status["grade-float32"] == "not certified"
    assert report.grades == ()
    assert "declare momentum='new': P2, P22, P33, G1, stateful" in " ".join(str(report).split())


def test_the_first_to_mend_is_the_plainest_property() -> None:
    """Who errs everywhere is told so about y of four small values, not about the ends of the range."""

    class Doubling(authors.Right):
        def train(self, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(*args, **options)
            return 2 * y, mean, var

    only = ["P1", "P22", "R1", "G1"]
    assert [result.id for result in check(Doubling(), only).failures] == only
    assert check(Doubling(), only).advice.startswith("P1: y must be exactly the numbers of the specification")


def test_a_fault_beside_a_wrong_declaration_is_no_echo() -> None:
    class Both(authors.Reversed):
        def vjp(self, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(*args, **options)
            return dx, dgamma, 2 * dbeta

    report = check(Both(), ["convention-momentum", "P2", "P3"])
    assert {r.id: r.status for r in report.results} == {"convention-momentum": "fail", "P2": "echo", "P3": "fail"}
    said = "declare momentum='new'. 1 check fails for another reason, first P3: dbeta must be exactly the numbers"
    assert said in report.advice


def test_undeclared_momentum_is_no_flushing() -> None:
    (result,) = check(authors.Reversed(), ["convention-flushes"]).results
    assert result.status == "pass"


# The programs that repeat a failure.


def test_a_program_keeps_the_types_of_numbers() -> None:
    class Typed(authors.Right):
        """Refuses NumPy's numbers."""

        def train(self, *args: Any, momentum: float, **options: Any) -> Any:
            y, mean, var = super().train(*args, momentum=momentum, **options)
            return y + (type(momentum) is not float), mean, var

    (result,) = check(Typed(), ["P21"]).failures
    assert "momentum=np.float64(" in result.reproducer
    assert "did not return what they had returned before" not in result.reproducer


def test_a_program_that_does_not_repeat_the_failure_says_so() -> None:
    class Moody(authors.Right):
        calls = 0

        def train(self, *args: Any, **options: Any) -> Any:
            Moody.calls += 1
            y, mean, var = super().train(*args, **options)
            return y + np_float32(Moody.calls), mean, var

    from numpy import float32 as np_float32

    (result,) = check(Moody(), ["P1"]).failures
    assert "did not return what they had returned before" in result.reproducer


def test_one_array_in_several_places_is_one_in_the_program() -> None:
    class Aliasing(authors.Right):
        def train(self, x: Any, gamma: Any, beta: Any, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, gamma, beta, *args, **options)
            return y + (gamma is beta), mean, var

    (result,) = check(Aliasing(), ["P19"]).failures
    assert "\nbeta = gamma\n" in result.reproducer
    assert "did not return what they had returned before" not in result.reproducer


# The command.


def polybn(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from polybn.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "check", *args], cwd=folder, capture_output=True, text=True)


def test_a_new_adapter_runs(tmp_path: Path) -> None:
    ran = polybn("--new-adapter", "my_adapter.py", folder=tmp_path)
    assert ran.stdout.splitlines()[-1] == "polybn check --adapter my_adapter:MyBatchNorm"
    only = [f"--only={name}" for name in (*CONVENTIONS, "P1", "P3", "P4", "P15", "P40", "P38")]
    ran = polybn("--adapter", "my_adapter:MyBatchNorm", *only, "--quiet", folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("my batch norm conforms to the specification")
    ran = polybn("--new-adapter", "my_adapter.py", folder=tmp_path)
    assert ran.returncode == 2
    assert "must name a new file" in ran.stderr
    assert "my_adapter:MyBatchNorm" in skeleton.text("my_adapter")


@pytest.mark.parametrize("option", ["--json", "--html", "--junit"])
def test_places_are_checked_before_the_first_case(option: str, tmp_path: Path) -> None:
    for path, rule in ((tmp_path, "must name a file"), (tmp_path / "no" / "file", "must lie in a folder that exists")):
        ran = polybn("--backend", "numpy", option, str(path), folder=tmp_path)
        assert ran.returncode == 2
        assert rule in ran.stderr
        assert "pass" not in ran.stdout


def test_ci_gets_short_lines_whole_ids_and_junit(tmp_path: Path) -> None:
    only = ["convention-running_variance", "P1", "P2", "convention-momentum"]
    args = ["--adapter", "tests.support.kit_authors:Reversed", "--junit", "j.xml", *(f"--only={name}" for name in only)]
    ran = polybn(*args, folder=tmp_path)
    assert ran.returncode == 1
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "convention-running_variance" in ran.stdout
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert suite.attrib["tests"] == "4"
    assert suite.attrib["failures"] == "2"
    assert {case.attrib["name"] for case in suite.iter("testcase") if case.find("failure") is not None} == {
        "P2", "convention-momentum",
    }  # fmt: skip


def test_everything_is_listed(tmp_path: Path) -> None:
    lines = polybn("--list", folder=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(conformance.IDS)
