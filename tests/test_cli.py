"""The command line: the output, pictures and files of each command, and its errors."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from matplotlib.image import imread
from rich.console import Console

import polybn
from polybn import __main__, cli, console, dispatch
from polybn.lenet import fashion_mnist, lock, networks, plain, runs, training
from polybn.lenet.commands import predict as predicting
from polybn.lenet.display import EpochDisplay
from polybn.lenet.fashion_mnist import CLASSES
from polybn.lenet.program import Steps, compile
from polybn.lenet.recipe import Recipe
from polybn.lenet.runs import Epoch
from polybn.lenet.training import train
from polybn.spec import Traits
from tests.support.command import Polybn, Said
from tests.support.training_worker import slice_of_sample

ROOT = Path(__file__).parents[1]
DATA = slice_of_sample()
SAMPLE = "sample shipped with polybn (6,000 + 1,000 images)"
LINE = r"^epoch ( *\d+), loss (\d+\.\d{4}), train acc ([01]\.\d{3}), test acc ([01]\.\d{3}), time (\d+\.\d) s$"
HEAD = [
    "LeNet, 44,878 trainable values, batch norm: spec; backend numpy",
    f"300 training and 60 test images, from {DATA.source}",
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command find a slice of the sample."""
    monkeypatch.setattr(fashion_mnist, "load_or_sample", lambda where, progress: (DATA, None))


needs_small = pytest.mark.usefixtures("small")


def refused(said: Said, words: str, code: int = 2) -> None:
    """Check that a command failed in one line."""
    assert said.code == code
    assert re.fullmatch(f"error: {words}\n", said.err), said.err
    assert "Traceback" not in said.out


# Help.

COMMANDS = ["train", "compare", "predict", "data", "info", "stats"]


def test_without_a_command_it_helps(polybn_: Polybn) -> None:
    said = polybn_()
    assert "Begin with polybn train" in (said.out + said.err)
    listed = [command for command in COMMANDS if re.search(rf"^\W*{command}  ", said.out + said.err, re.MULTILINE)]
    assert listed == COMMANDS


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(polybn_: Polybn, command: str, flag: str) -> None:
    """Every command explains itself, and has an example if it takes arguments."""
    said = polybn_(command, flag)
    assert (said.code, said.err) == (0, "")
    assert f"polybn {command} [OPTIONS]" in said.out
    assert command == "info" or re.search(rf"^ +polybn {command} ", said.out.split("Options")[0], re.MULTILINE)


@pytest.mark.parametrize("command", [command.__name__ for command in cli._COMMANDS])
def test_help_cuts_no_word_that_is_typed(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """At 80 columns the choices of an option fit, or the help names them instead."""
    monkeypatch.setenv("COLUMNS", "80")
    text = polybn_(command, "--help").out
    assert not re.search(r"<[^<> ]*\|[^<> ]*  ", text)
    assert "…" not in text


@pytest.mark.parametrize("command", [command.__name__ for command in cli._COMMANDS])
def test_help_breaks_lines_only_where_the_terminal_ends(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Each line of a paragraph is so long that the next word would not fit, and each example has a line."""
    monkeypatch.setenv("COLUMNS", "80")
    text = polybn_(command, "--help").out.partition("╭")[0]
    for paragraph in re.split(r"\n\s*\n", text.rstrip()):
        lines = [line.strip() for line in paragraph.strip().split("\n")]
        if not all(line.startswith("polybn ") for line in lines):
            assert not any(len(line) + len(after.split()[0]) < 76 for line, after in pairwise(lines)), paragraph


def test_every_file_of_json_may_be_standard_output(polybn_: Polybn) -> None:
    """Each of these has a test of what it prints."""
    group: Any = typer.main.get_command(cli.app)
    helps = {
        name: option.help
        for name, command in group.commands.items()
        for option in command.params
        if "--json" in option.opts
    }
    assert helps.keys() == {"agree", "bench", "check", "dialects", "inspect", "stats"}
    assert [name for name, text in helps.items() if not re.search("; - prints (it|them)", text)] == []
    said = polybn_("dialects", "pytorch", "--json", "-")
    assert [record["name"] for record in json.loads(said.out)] == ["pytorch"]
    assert "torch.nn.BatchNorm1d" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--adapter", "mine:Norm", "--json", "mine.py"),
        ("check", "--adapter", "mine:Norm", "--junit", "mine.py"),
        ("check", "--adapter", "pack.inner:Norm", "--json", "pack/inner.py"),
        ("agree", "numpy", "mine:Norm", "--json", "mine.py"),
        ("agree", "pack.inner:Norm", "numpy", "--json", "pack/inner.py"),
        ("check", "--peers", "--into", "page.md", "--json", "page.md"),
    ],
)
def test_no_report_replaces_the_code_that_it_is_about(words: tuple[str, ...], polybn_: Polybn, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    names = ("mine.py", "pack/__init__.py", "pack/inner.py", "page.md")
    for name in names:
        (tmp_path / name).write_text("Norm = None\n")
    said = polybn_(*words)
    assert said.code == 2
    assert f"must be another file than those that are read; got {words[-1]} (it would be lost; try " in said.err
    assert {(tmp_path / name).read_text() for name in names} == {"Norm = None\n"}


def test_a_page_that_is_missing_is_said_before_the_work(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polybn.conformance.peers.run", lambda *_: pytest.fail("the work has begun"))
    said = polybn_("check", "--peers", "--into", "none.md")
    assert said.code == 2
    assert "none.md" in said.err


def test_files_that_are_read_are_not_replaced_and_others_are(polybn_: Polybn, tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("P16  # a reason\n")
    some = ("check", "--backend", "numpy", "--only", "P16", "--xfail", "known.txt", "--quiet")
    refused(
        polybn_(*some, "--json", "known.txt"),
        r"polybn check: --json must be another file than those that are read; got known\.txt \(it would be lost; .*\)",
    )
    assert (tmp_path / "known.txt").read_text() == "P16  # a reason\n"
    (tmp_path / "pytorch.json").write_text("old")
    assert polybn_("dialects", "pytorch", "--json", "pytorch.json").code == 0
    assert json.loads((tmp_path / "pytorch.json").read_text())
    assert "takes the place of one that is there" in " ".join((polybn_("--help").out).split())


def test_every_option_of_train_is_explained_with_its_default(polybn_: Polybn) -> None:
    text = re.sub(r"[\s│]+", " ", polybn_("train", "--help").out)
    for option, default in {
        "--backend": "numpy", "--epochs": "10", "--batch-size": "256", "--lr": "1.0", "--norm": "spec", "--seed": "0",
        "--devices": "1",
    }.items():  # fmt: skip
        assert re.search(rf"{option} .*?\[default: {re.escape(default)}\]", text), option
    assert all(option in text for option in ("--data", "--out", "--resume", "POLYBN_BACKEND", "spec|native|none"))


def test_version(polybn_: Polybn) -> None:
    assert polybn_("--version") == (0, f"{polybn.__version__}\n", "")


@pytest.mark.parametrize("name", ["hypothesis", "ml_dtypes"])
def test_what_the_kit_needs_is_named_with_the_command_that_installs_it(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli, "app", fail)
    said = polybn_("agree", "numpy", "numpy-plain")
    wanted = f"error: polybn: this command needs {name}: {sys.executable} -m pip install hypothesis ml_dtypes\n"
    assert (said.code, said.out, said.err) == (2, "", wanted)


def test_the_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="polybn")
    assert script.load() is __main__.main


PRESS = """
import signal, sys

class Press:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "{module}" and ("--multiprocessing-fork" in sys.orig_argv) == {child}:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Press)
"""
"""A module that Python imports first: Ctrl-C is pressed when another one is looked for, here or in a child."""


def pressed(module: str, *command: str, child: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in the working directory, with Ctrl-C at a moment."""
    Path("sitecustomize.py").write_text(PRESS.format(module=module, child=child))
    path = os.pathsep.join(map(str, (Path.cwd(), ROOT, ROOT / "backends")))
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )


@pytest.mark.usefixtures("polybn_")  # which works in an empty folder
@pytest.mark.parametrize("module", ["polybn.cli", "polybn.spec", "importlib.metadata", "numpy", "rich"])
@pytest.mark.parametrize("called", [["-m", "polybn"], ["-c", "from polybn.__main__ import main; main()"]])
def test_control_c_while_modules_are_imported(called: list[str], module: str) -> None:
    run = pressed(module, *called, "info")
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


@pytest.mark.usefixtures("polybn_")
@pytest.mark.parametrize("command", ["stats a.npy --workers 1", "check --backend numpy --only P1"])
def test_a_process_of_a_command_leaves_control_c_to_it(command: str) -> None:
    """Also while it imports its modules; without a terminal, the command itself is not reached here, and goes on."""
    np.save("a.npy", np.ones((3, 2)))
    run = pressed("numpy", "-m", "polybn", *command.split(), child=True)
    assert (run.returncode, run.stderr) == (0, "")


# Train.


@needs_small
def test_train(polybn_: Polybn, tmp_path: Path) -> None:
    """Every printed line is right, and the run has the options of the command line."""
    said = polybn_("train", "--epochs", 2, "--batch-size", 128, "--lr", 0.5, "--seed", 3, "--last-batch", "drop")
    assert (said.code, said.err) == (0, "")
    *head, first, second, last, without = said.out.splitlines()
    assert head == HEAD
    name = "runs/numpy-spec-lr0.5-seed3-batch128-drop"
    assert last == f"Saved in {name}; polybn compare {name} draws its curves"
    same = "--epochs 2 --batch-size 128 --lr 0.5 --seed 3 --last-batch drop"
    assert without == f"polybn train {same} --norm none trains the same without batch norm"
    options: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.5, "seed": 3, "last_batch": "drop"}
    expected = train(networks.lenet(), data=DATA, epochs=2, **options)
    saved = runs.load(tmp_path / name)
    assert saved.config == expected.config
    for line, epoch, written in zip((first, second), expected.epochs, saved.epochs, strict=True):
        match = re.match(LINE, line)
        assert match is not None
        assert match.groups() == (
            f"{epoch.epoch}", f"{epoch.loss:.4f}", f"{epoch.train_accuracy:.3f}", f"{epoch.test_accuracy:.3f}",
            f"{written.seconds:.1f}",
        )  # fmt: skip


@needs_small
def test_train_without_batch_norm(polybn_: Polybn, tmp_path: Path) -> None:
    said = polybn_("train", "--epochs", 1, "--norm", "none", "--out", "here")
    assert said.code == 0
    assert said.out.startswith("LeNet, 44,426 trainable values, batch norm: none; backend numpy\n")
    assert "--norm none" not in said.out
    assert runs.load(tmp_path / "here").config["network"] == plain.to_plain(networks.lenet(None))


@needs_small
def test_defaults_are_those_of_the_function(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(training, "begin", lambda recipe, **options: given.update(options, recipe=recipe))
    assert polybn_("train").code == 0
    defaults = train.__kwdefaults__ or {}
    assert given.pop("out") == Path("runs/numpy-spec-lr1-seed0")
    assert given.pop("epochs") == defaults["epochs"]
    assert given.pop("data")() is DATA
    recipe = given.pop("recipe")
    assert recipe == Recipe(networks.lenet())
    assert {name: value for name, value in recipe.to_config().items() if name in defaults} == {
        name: defaults[name] for name in ("batch_size", "learning_rate", "seed", "devices", "last_batch", "device")
    }
    assert given.keys() == {"on_steps", "on_epoch"}


def where(said: Said) -> str:
    match = re.search(r"^Saved in (\S+);", said.out, re.MULTILINE)
    assert match is not None, said.err
    return match[1]


@needs_small
def test_the_default_directory_is_a_new_one(polybn_: Polybn, tmp_path: Path) -> None:
    """The directory has the first free number, which may be that of a deleted run."""

    def begin(*options: str) -> str:
        return where(polybn_("train", "--epochs", 0, *options))

    names = [f"runs/numpy-spec-lr1-seed0{number}" for number in ("", "-2", "-3")]
    assert [begin(), begin(), begin()] == names
    shutil.rmtree(tmp_path / names[1])
    assert begin() == names[1]


@needs_small
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--norm", "none"], "numpy-none-lr1-seed0"),
        (["--seed", "7"], "numpy-spec-lr1-seed7"),
        (["--lr", "0.1"], "numpy-spec-lr0.1-seed0"),
        (["--lr", "1e-3"], "numpy-spec-lr0.001-seed0"),
        (["--batch-size", "64"], "numpy-spec-lr1-seed0-batch64"),
        (["--last-batch", "drop"], "numpy-spec-lr1-seed0-drop"),
        (["--data", "sample"], "numpy-spec-lr1-seed0-sample"),
    ],
)
def test_the_default_name_tells_runs_apart(polybn_: Polybn, options: list[str], name: str) -> None:
    assert where(polybn_("train", "--epochs", 0, *options)) == f"runs/{name}"


# Resume.


RUN = "runs/numpy-spec-lr1-seed0"


@needs_small
def test_resume(polybn_: Polybn, tmp_path: Path) -> None:
    """The directory is enough to resume a run with any options."""
    polybn_("train", "--epochs", 1, "--norm", "none", "--lr", 0.5, "--batch-size", 64, "--seed", 3, "--out", "a")
    polybn_("train", "--epochs", 2, "--norm", "none", "--lr", 0.5, "--batch-size", 64, "--seed", 3, "--out", "b")
    said = polybn_("train", "--resume", "a", "--epochs", 2)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("LeNet, 44,426 trainable values, batch norm: none; backend numpy\n")
    assert [match[0] for match in re.findall(LINE, said.out, re.MULTILINE)] == ["2"]
    a, b = runs.load(tmp_path / "a"), runs.load(tmp_path / "b")
    assert a.config == b.config
    assert {name: value.tobytes() for name, value in a.state.items()} == {
        name: value.tobytes() for name, value in b.state.items()
    }


@needs_small
def test_a_finished_run_is_not_trained_again(polybn_: Polybn) -> None:
    polybn_("train", "--epochs", 1)
    assert polybn_("train", "--resume", RUN) == (
        0, f"{RUN} has 1 finished epoch, and 1 were asked for; polybn train --resume {RUN} --epochs 11 adds ten\n", "",
    )  # fmt: skip


@needs_small
def test_other_options_are_named_one_by_one(polybn_: Polybn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polybn_("train", "--epochs", 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(
        polybn_("train", "--resume", RUN, "--lr", 0.5, "--norm", "none", "--seed", 0, "--last-batch", "drop"),
        rf"polybn train: options must be those of the run in {RUN}; got --last-batch drop where it has keep, "
        r"--lr 0\.5 where it has 1\.0, --norm none where it has spec \(leave them out .*\)",
    )
    refused(polybn_("train", "--resume", RUN, "--out", "x"), r"polybn train: --resume must be given without --out; .*")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setenv("POLYBN_BACKEND", "nope")
    assert polybn_("train", "--resume", RUN, "--epochs", 2).code == 0, "a default is no option that was given"


@needs_small
@pytest.mark.parametrize("arguments", [["--resume", "typo"], ["--resume", "--out", "typo"], ["--resume"]])
def test_what_cannot_be_resumed_is_not_begun(polybn_: Polybn, tmp_path: Path, arguments: list[str]) -> None:
    said = polybn_("train", *arguments)
    assert said.code == 2
    assert any(words in said.err for words in ("typo must be the directory of a run", "--resume"))
    assert not list(tmp_path.iterdir())


def test_another_data_set_is_named(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    polybn_("train", "--data", "sample", "--epochs", 0, "--out", "run")
    monkeypatch.setattr(fashion_mnist, "load_or_sample", lambda where, progress: (DATA, None))
    refused(
        polybn_("train", "--resume", "run", "--epochs", 1),
        r"polybn\.training\.resume: data must be those of the run in run: sample shipped with polybn .*; got slice .*",
    )


def test_the_data_of_a_run_are_found_again(polybn_: Polybn) -> None:
    polybn_("train", "--data", "sample", "--epochs", 0, "--out", "run")
    said = polybn_("train", "--resume", "run", "--epochs", 1)
    assert (said.code, said.err) == (0, "")
    assert f"6,000 training and 1,000 test images, from {SAMPLE}\n" in said.out


def test_two_that_begin_in_one_directory(polybn_: Polybn, tmp_path: Path) -> None:
    """One process has the directory, the other gets one clear sentence; afterwards the directory is free again."""
    (tmp_path / "run").mkdir()
    with lock.hold(tmp_path / "run" / ".lock"):
        refused(
            polybn_("train", "--data", "sample", "--out", "run"),
            rf"polybn: run must be a directory in which nobody trains; got one in use by process {os.getpid()} on .*",
        )
    begun = polybn_("train", "--data", "sample", "--epochs", 0, "--out", "run")
    assert (begun.code, begun.err) == (0, "")
    assert begun.out.endswith("Saved in run; polybn train --resume run --epochs 10 trains it\n")
    with lock.hold(tmp_path / "run" / ".lock"):
        refused(
            polybn_("train", "--resume", "run", "--epochs", 1), "polybn: run must be a directory in which nobody .*"
        )


@needs_small
def test_odd_names_are_printed_as_they_are(polybn_: Polybn) -> None:
    name = "[bold]lr=1[red] :smile: {x}"
    said = polybn_("train", "--epochs", 1, "--out", name)
    assert f"\nSaved in {name}; polybn compare '{name}' draws its curves\n" in said.out
    assert said.out.endswith("polybn train --epochs 1 --norm none trains the same without batch norm\n")
    assert name in polybn_("compare", name).out
    refused(polybn_("compare", "[red]nope"), r"polybn compare: .* \(\[red\]nope: .* no such directory .*")


@needs_small
def test_the_environment_names_a_backend(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYBN_BACKEND", "nope")
    refused(polybn_("train", "--epochs", 0), r"polybn\.backend: name must be one of .*; got 'nope' .*")
    assert polybn_("train", "--epochs", 0, "--backend", "numpy").code == 0


def test_an_unknown_backend_is_refused_before_data_are_fetched(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "load_or_sample", lambda *args, **options: pytest.fail("data were read"))
    said = polybn_("train", "--backend", "nope")
    refused(said, r"polybn\.backend: name must be one of .*numpy.*; got 'nope' .*")
    assert said.out == ""


@needs_small
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--norm", "native"], r"polybn\.train: norm must be 'spec' or None on the numpy backend; got 'native' .*"),
        (["--lr", "0"], r"polybn\.train: learning_rate must lie between .*; got 0\.0 .*"),
        (["--lr", "nan"], r"polybn\.train: learning_rate must .*; got nan .*"),
        (["--epochs", "-1"], r"polybn\.train: epochs must be 0 or more; got -1 .*"),
        (["--batch-size", "0"], r"polybn\.train: batch_size must be 1 or more; got 0 .*"),
        (["--seed", "-1"], r"polybn\.train: seed must be 0 or more; got -1 .*"),
        (["--out", "."], r"polybn\.train: --out must be a new or empty directory; got \., which holds note\.txt .*"),
        (["--out", "note.txt"], r"Not a directory: note\.txt"),
        (["--out", "note.txt/x"], r"Not a directory: note\.txt"),
        (["--batch-size", "299"], r"polybn\.train: every batch must hold 2 images or more; .*--last-batch drop\)"),
    ],
)
def test_what_train_refuses(polybn_: Polybn, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "note.txt").write_text("mine")
    refused(polybn_("train", *options), words)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@needs_small
@pytest.mark.parametrize("options", [["--norm", "batch"], ["--epochs", "many"], ["--lr"], ["--speed", "9"], ["more"]])
def test_what_is_no_option(polybn_: Polybn, tmp_path: Path, options: list[str]) -> None:
    said = polybn_("train", *options)
    assert (said.code, said.out) == (2, "")
    assert "Error" in said.err
    assert options[0] in said.err
    assert not list(tmp_path.iterdir())


@needs_small
def test_divergence_is_told_in_a_line_with_a_code_of_its_own(polybn_: Polybn) -> None:
    said = polybn_("train", "--norm", "none", "--lr", "1e38", "--batch-size", 64)
    words = r"polybn\.train: .* must stay finite; got \S+ .* \(the learning rate is 1e\+38: try 1e\+37, or .*\)"
    refused(said, words, code=1)


@needs_small
def test_control_c(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is a command for a shell; before the first file there is nothing to resume, and no hint."""

    def interrupted(*arguments: object, out: Path, **options: object) -> None:
        if out.name == "a b":
            out.mkdir()
            (out / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "begin", interrupted)
    words = "Stopped; finished epochs are saved. To go on: polybn train --resume 'a b'\n"
    assert polybn_("train", "--out", "a b") == (130, "", words)
    assert polybn_("train", "--out", "here") == (130, "", "Stopped before anything was written.\n")


@pytest.mark.parametrize(
    ("called", "program"),
    [
        ("polybn", ["polybn"]),
        (".venv/bin/polybn", [".venv/bin/polybn"]),
        ("{bin}/polybn", ["polybn"]),
        ("/x/polybn/__main__.py", [sys.executable, "-m", "polybn"]),
        ("-c", [sys.executable, "-m", "polybn"]),
    ],
)
def test_a_hint_is_a_command_that_works_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str, program: list[str]
) -> None:
    (tmp_path / "polybn").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [called.format(bin=tmp_path), "train"])
    assert shlex.split(console.hint("train", "--resume", "a b")) == [*program, "train", "--resume", "a b"]


def test_without_the_full_data_it_trains_on_the_sample_and_says_so(
    polybn_: Polybn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("POLYBN_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", empty / "debian")
    said = polybn_("train", "--epochs", 0)
    assert said.code == 0
    assert f"6,000 training and 1,000 test images, from {SAMPLE}" in said.out.splitlines()
    (line,) = said.err.splitlines()
    assert re.match("Using the small sample that comes with polybn: no full copy .*polybn data.*apt install", line)


def test_the_sample_by_name_needs_no_words(polybn_: Polybn) -> None:
    said = polybn_("train", "--epochs", 0, "--data", "sample")
    assert (said.code, said.err) == (0, "")
    assert f"6,000 training and 1,000 test images, from {SAMPLE}\n" in said.out


def test_a_directory_without_data_is_not_replaced_by_the_sample(polybn_: Polybn, tmp_path: Path) -> None:
    words = rf"polybn\.fashion_mnist\.load: {tmp_path} must hold a file train-images-idx3-ubyte\.gz or .*; got .*"
    refused(polybn_("train", "--data", tmp_path), words)


# Compare.


@needs_small
def test_compare(polybn_: Polybn, tmp_path: Path) -> None:
    polybn_("train", "--epochs", 2)
    polybn_("train", "--epochs", 1, "--norm", "none")
    said = polybn_("compare", "runs/numpy-spec-lr1-seed0", "runs/numpy-none-lr1-seed0", "--out", "curves.png")
    assert (said.code, said.err) == (0, "")
    title, *table, last = said.out.splitlines()
    assert title.strip() == "training loss, training accuracy, test accuracy"
    assert last == "Curves drawn in curves.png"
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table if line[0] in "│┃"]
    spec, none = (runs.read_metrics(tmp_path / "runs" / f"numpy-{norm}-lr1-seed0") for norm in ("spec", "none"))

    def cell(e: Epoch) -> str:
        return f"{e.loss:.4f}  {e.train_accuracy:.3f}  {e.test_accuracy:.3f}"

    assert rows == [
        ["epoch", "numpy-spec-lr1-seed0", "numpy-none-lr1-seed0"],
        ["1", cell(spec[0]), cell(none[0])],
        ["2", cell(spec[1]), ""],
    ]
    assert imread(tmp_path / "curves.png").shape[1] == 1440


@needs_small
def test_compare_tells_many_runs_apart(polybn_: Polybn) -> None:
    """80 columns show every character of every name, and every number in one piece: in several tables."""
    polybn_("train", "--epochs", 1)
    names = ["runs/numpy-spec-lr1-seed0", *(f"runs/numpy-spec-lr1-seed0-{number}" for number in range(2, 8))]
    for name in names[1:]:
        shutil.copytree(names[0], name)
    said = polybn_("compare", *names)
    tables = [part.splitlines()[1:] for part in said.out.split("training loss, training accuracy, test accuracy")[1:]]
    split = [[re.split("[│┃]", line)[1:-1] for line in table if line[:1] in ("│", "┃")] for table in tables]
    columns = [[cell.strip() for cell in column] for lines in split for column in list(zip(*lines, strict=True))[1:]]
    expected = runs.read_metrics("runs/numpy-spec-lr1-seed0")[0]
    numbers = f"{expected.loss:.4f}  {expected.train_accuracy:.3f}  {expected.test_accuracy:.3f}"
    assert ["".join(column[:-1]) for column in columns] == [name.removeprefix("runs/") for name in names]
    assert [column[-1] for column in columns] == [numbers] * 7
    assert len(tables) == 3


@needs_small
def test_compare_runs_of_one_name(polybn_: Polybn) -> None:
    for parent in ("a", "b"):
        polybn_("train", "--epochs", 1, "--out", f"{parent}/run")
    said = polybn_("compare", "a/run", "b/run")
    assert re.search(r"┃ epoch ┃ +a/run ┃ +b/run ┃", said.out)
    assert Path("comparison.png").exists()


@needs_small
def test_compare_takes_the_runs_inside(polybn_: Polybn) -> None:
    for options in ([], ["--norm", "none"]):
        polybn_("train", "--epochs", 1, *options)
    Path("runs/notes.txt").touch()
    Path("runs/empty").mkdir()
    said = polybn_("compare", "runs")
    assert (said.code, said.err) == (0, "")
    assert re.search(r"┃ epoch ┃ +numpy-none-lr1-seed0 ┃ +numpy-spec-lr1-seed0 ┃", said.out)


@needs_small
def test_compare_shows_what_it_can_and_names_the_rest(polybn_: Polybn) -> None:
    """A run without a finished epoch is no error. A missing or damaged one is, and is reported after the others."""
    polybn_("train", "--epochs", 1)
    polybn_("train", "--epochs", 0, "--out", "begun")
    said = polybn_("compare", RUN, "begun")
    assert (said.code, said.err) == (0, "Left out: begun: no epoch is finished yet\n")
    assert "numpy-spec-lr1-seed0" in said.out
    for name in ("cut", "cut-but-saved"):
        shutil.copytree(RUN, name)
        metrics = Path(name, "metrics.jsonl")
        metrics.write_text(metrics.read_text()[:40])
    shutil.rmtree("cut/checkpoints")
    said = polybn_("compare", RUN, "typo", "cut", "cut-but-saved")
    assert said.code == 1
    first, second = said.err.splitlines()
    assert first.startswith("Left out: typo: polybn: typo must be the directory of a run; got no such directory")
    assert second.startswith(
        "Left out: cut: polybn: line 1 of cut/metrics.jsonl must hold the metrics of epoch 1; got "
    )
    assert "cut-but-saved" in said.out
    assert Path("comparison.png").exists()


@needs_small
def test_compare_without_a_run(polybn_: Polybn, tmp_path: Path) -> None:
    polybn_("train", "--epochs", 0, "--out", "begun")
    words = r"polybn compare: one run must have a finished epoch; got none \(nope: .*; begun: no epoch is .*\)"
    refused(polybn_("compare", "nope", "begun"), words)
    assert polybn_("compare").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


# Pictures.


MAGIC = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}


@needs_small
@pytest.mark.parametrize("kind", MAGIC)
def test_a_picture_has_the_format_of_its_name(polybn_: Polybn, kind: str) -> None:
    polybn_("train", "--epochs", 1)
    for command in (["compare", RUN], ["predict", RUN], ["data", "--data", "sample"]):
        assert polybn_(*command, "--out", f"{command[0]}.{kind.upper()}").code == 0
        assert Path(f"{command[0]}.{kind.upper()}").read_bytes().startswith(MAGIC[kind])


OF_PICTURES = ["compare no --out", "predict no --out", "data --data no --out", "inspect no --picture"]
OF_PICTURES += ["stats no --picture"]


@pytest.mark.parametrize("name", ["x.txt", "x", "x.jpg"])
@pytest.mark.parametrize("command", OF_PICTURES)
def test_a_name_that_is_no_picture_s_is_refused_before_any_work(polybn_: Polybn, command: str, name: str) -> None:
    refused(polybn_(*command.split(), name), rf"polybn: the name of a picture must .*; got {name} .*")


@pytest.mark.parametrize("command", OF_PICTURES)
def test_matplotlib_is_missed_before_any_work(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(polybn_(*command.split(), "x.png"), r"polybn: pictures need matplotlib: .* -m pip install matplotlib")


TO_FILES = {
    ".png": [*OF_PICTURES, "agree no none --picture"],
    ".npz": ["convert no --to pytorch", "stats no --save"],
    ".onnx": ["convert no --fold", "export no --to onnx --out"],
    ".json": ["agree no none --json", "bench --only no --json", "inspect no --json", "stats no --json"],
    ".html": [f"check {what}" for what in ("--adapter no:No --html", "--adapter no:No --junit", "--backend no --json")],
    ".md": ["check --peers --json", "check --peers --into"],
}
TO_FOLDERS = ["agree no none --programs", "bench --only no --pictures"]


@pytest.mark.parametrize(
    ("command", "ending"), [(command, ending) for ending, commands in TO_FILES.items() for command in commands]
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: str, ending: str
) -> None:
    """What is to be read is not there either, and nobody has looked."""
    Path("a note").touch()
    Path(f"folder{ending}").mkdir()

    def refuses(name: str, words: str) -> None:
        refused(polybn_(*command.split(), name), rf"polybn.{command.split()[0]}: [\w-]+ must {words}")

    refuses(f"new/x{ending}", rf"lie in a folder that exists; got new/x{ending} \(mkdir -p new\)")
    refuses(f"a note/x{ending}", rf"lie in a folder; got a note/x{ending}, and a note is no folder")
    refuses(f"folder{ending}", rf"name a file; got folder{ending}, a folder \(try .*\)")
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # permissions do not bind an administrator
    refuses(f"x{ending}", rf"lie in a folder that can be written; got x{ending} \(see ls -ld \.\)")


@pytest.mark.parametrize("command", TO_FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Path("note").touch()
    for name in ("note", "note/new/new"):
        words = rf"polybn {command.split()[0]}: --\w+ must be a folder; got {name}, and note is no folder"
        refused(polybn_(*command.split(), name), words)
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    refused(polybn_(*command.split(), "new"), r"polybn .* must be a folder that can be written; got new \(see ls .*\)")


def test_a_page_without_a_place_for_the_table_is_refused_before_any_work(polybn_: Polybn) -> None:
    Path("page.md").write_text("# Peers\n")
    words = "polybn check: --into must name a page with <!-- peers --> and, .*; got page.md"
    refused(polybn_("check", "--peers", "--into", "page.md"), words)


def test_an_export_names_no_folder_unless_it_must(polybn_: Polybn) -> None:
    """Without --out it has the name of the run, which may be a folder here, and an ending."""
    Path("run").mkdir()
    refused(polybn_("export", "run", "--to", "onnx"), "polybn: run must hold a checkpoint; .*")
    refused(polybn_("export", "/", "--to", "onnx"), "polybn: / must hold a checkpoint; .*")
    refused(polybn_("export", "run", "--to", "onnx", "--out", "run"), "polybn export: --out must name a file; .*")


def test_default_pictures_are_not_taken_for_files_of_the_project(polybn_: Polybn) -> None:
    """Otherwise `git add .` would add pictures in a clone."""
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text().splitlines()
    for command in ("compare", "predict", "data"):
        (name,) = set(re.findall(r"\[default: ([\w.-]+\.png)\]", re.sub(r"[\s│]+", " ", polybn_(command, "-h").out)))
        assert f"/{name}" in ignored


# Predict.


@needs_small
def test_predict(polybn_: Polybn, tmp_path: Path) -> None:
    """The table agrees with a count from the saved state."""
    polybn_("train", "--epochs", 3, "--batch-size", 64)
    name = f"{RUN}-batch64"
    said = polybn_("predict", name, "--count", 20, "--out", "grid.png")
    assert (said.code, said.err) == (0, "")
    run = runs.load(tmp_path / name)
    program = compile(networks.lenet(), dispatch.backend("numpy"), run.state, batch_size=60)
    given = program.logits(program.place(DATA.test_images, DATA.test_labels)).argmax(axis=1)
    data, title, *table, total, last = said.out.splitlines()
    assert data == f"60 test images, from {DATA.source}"
    assert title.strip() == f"{name} after epoch 3"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if line[0] == "│"]
    assert [row[0] for row in rows] == list(CLASSES)
    for index, (_, right, taken) in enumerate(rows):
        labels = given[DATA.test_labels == index].tolist()
        assert right == f"{labels.count(index)} of {len(labels)}"
        wrong = [label for label in labels if label != index]
        if wrong:
            match = re.fullmatch(r"(.*) \((\d+)\)", taken)
            assert match is not None
            assert wrong.count(CLASSES.index(match[1])) == int(match[2]) == max(map(wrong.count, wrong))
        else:
            assert taken == ""
    hits = int(np.count_nonzero(given == DATA.test_labels))
    assert total == f"{hits} of 60 test images right: {hits / 60:.1%}"
    assert last == "The first 20 are drawn in grid.png"
    assert imread(tmp_path / "grid.png").ndim == 3


def test_a_score_by_hand() -> None:
    """Three of six bags are right; two count as shirts and one as a dress."""
    labels = np.array([8] * 6 + [0], np.uint8)
    predictions = np.array([8, 6, 8, 3, 6, 8, 8], np.uint8)
    assert predicting._score(8, labels, predictions) == (3, 6, "Shirt (2)")
    assert predicting._score(0, labels, predictions) == (0, 1, "Bag (1)")
    assert predicting._score(1, labels, predictions) == (0, 0, "")
    assert predicting._score(8, labels[:1], predictions[:1]) == (1, 1, "")


@needs_small
def test_predict_draws_no_more_than_there_are(polybn_: Polybn) -> None:
    polybn_("train", "--epochs", 1)
    said = polybn_("predict", "runs/numpy-spec-lr1-seed0", "--count", 400)
    assert said.out.endswith("The first 60 are drawn in predictions.png\n")


@pytest.mark.parametrize("count", [0, 401])
def test_predict_draws_some_but_not_all(polybn_: Polybn, count: int) -> None:
    assert polybn_("predict", "runs/numpy-spec-lr1-seed0", "--count", count).code == 2


@needs_small
def test_predict_without_a_checkpoint(polybn_: Polybn, tmp_path: Path) -> None:
    refused(polybn_("predict", "nope"), "polybn: nope must hold a checkpoint; got no such directory .*")
    assert not list(tmp_path.iterdir())


@needs_small
def test_a_warning_is_one_line_of_words(polybn_: Polybn, tmp_path: Path) -> None:
    """A damaged newest checkpoint is passed over with a word, without a place in the code."""
    polybn_("train", "--epochs", 2)
    newest = tmp_path / RUN / "checkpoints" / "epoch-0002.npz"
    newest.write_bytes(newest.read_bytes()[:-9])
    command = [sys.executable, "-m", "polybn", "predict", RUN, "--data", "sample"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"warning: polybn\.checkpoints\.latest: falling back to .*epoch-0001\.npz: .*\n", done.stderr)


# Data and info.


def test_data(polybn_: Polybn, tmp_path: Path) -> None:
    said = polybn_("data", "--data", "sample", "--out", "sheet.png")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"argument        {fashion_mnist._SAMPLES}: used",
        f"Verified: 6,000 training and 1,000 test images, from {SAMPLE}",
        "The first 80 training images are drawn in sheet.png",
    ]
    assert imread(tmp_path / "sheet.png").ndim == 3


def test_data_of_a_directory_without_files(polybn_: Polybn, tmp_path: Path) -> None:
    said = polybn_("data", "--data", tmp_path)
    refused(said, rf"polybn\.fashion_mnist\.load: {tmp_path} must hold a file train-images-idx3-ubyte\.gz or .*")
    wanted = "a file train-images-idx3-ubyte.gz or train-images-idx3-ubyte; got an empty directory"
    assert said.out == f"argument        {tmp_path}: {tmp_path} must hold {wanted}\n"
    assert not list(tmp_path.iterdir())


def test_data_lists_every_place(polybn_: Polybn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYBN_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    said = polybn_("data")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line[:16].rstrip() for line in lines[:3]] == ["user cache", "Debian package", "download"]
    assert all("must be" in line for line in lines[:3])
    assert lines[3].startswith("Verified: 6,000 training")
    assert re.match("Using the small sample that comes with polybn: .*debian.*POLYBN_OFFLINE.*apt install", said.err)
    assert len(said.err.splitlines()) == 1


def test_info_lists_every_backend(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = 'needs a library: pip install "polybn[jax]"'
    monkeypatch.setattr(dispatch, "backends", lambda: {"numpy": None, "jax": reason})
    said = polybn_("info")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"polybn {polybn.__version__}, Python {sys.version.split()[0]}\n")
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if line[0] == "│"]
    facts = ", ".join(f"{key} {value}" for key, value in dispatch.backend("numpy").describe().items())
    text = " ".join(" ".join(filter(None, cells)) for cells in lines)  # long rows take several lines
    assert text == f"numpy yes {facts}, sees cpu (--device) jax no {reason}"


def test_info_cuts_no_name_and_no_command(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backends", lambda: {"array_api_strict": 'pip install "polybn[array-api-strict]"'})
    monkeypatch.setattr(console.out, "width", 50)
    text = polybn_("info").out
    assert "array_api_strict" in text
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_differences_of_dialects_keep_their_labels(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(console.out, "width", width)
    text = polybn_("dialects", "pytorch", "keras3").out
    first = re.sub(r"\s+", " ", " ".join(re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines()))
    assert "momentum weighs the" in first
    assert "eps, if nothing is said" in first
    assert "…" not in text


def test_info_says_what_a_backend_can_train(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    """`polybn info` shows the devices, because the error of a backend that trains on one device refers to it."""
    names = {"cpu": nullcontext, "gpu:0": nullcontext}
    traits = Traits(devices=lambda: names, several_devices=True, native_norm=True)
    several = SimpleNamespace(describe=lambda: {"lib": "1"}, traits=traits, compile=None)
    monkeypatch.setattr(dispatch, "backends", lambda: {"numpy": None, "several": None})
    both = {"numpy": polybn.backend("numpy"), "several": several}
    monkeypatch.setattr(dispatch, "backend", both.__getitem__)
    text = re.sub(r"[\s│]+", " ", polybn_("info").out)
    assert "several yes lib 1, sees cpu, gpu:0 (--device), trains on several devices (--devices), has a batch" in text
    assert "has a batch norm of its own (--norm native)" in text
    assert text.count("several devices") == 1


# A process of its own.


def test_as_a_process(tmp_path: Path) -> None:

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "polybn", "train", "--data", "sample", "--out", "run"]
        return subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("--epochs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(LINE, done.stdout, re.MULTILINE)) == 1
    assert "\x1b" not in done.stdout, "what is no terminal gets no escape codes"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["where"] == "sample"
    again = run()
    assert again.returncode == 2
    assert again.stderr.startswith("error: polybn.train: --out must be a new or empty directory; got run, which holds ")
    assert again.stderr.count("\n") == 1


# What is seen while a run goes on.


def show(console: Console) -> None:
    with EpochDisplay(console, epochs=12) as shown:
        shown.start(40)
        for epoch in (1, 2):
            for loss in (3.0, 1.0):
                shown.on_steps(epoch, Steps(np.array([loss, loss]), np.array([1, 1]), np.array([15, 5])))
            shown._progress.refresh()
            shown.on_epoch(Epoch(epoch, 2.0, 0.5, 0.25, 1.25))


def test_a_terminal_gets_a_progress_bar() -> None:
    """The line shows the epoch, its progress, the mean loss so far and the speed, and goes when the run ends."""
    screen = io.StringIO()
    show(Console(file=screen, force_terminal=True, width=120, _environ={}))
    text = screen.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for epoch in (1, 2):
        assert re.search(rf"epoch {epoch}/12 ━+ +100%  loss 2\.0000  +[\d,]+ images/s", plain)
        assert f"epoch  {epoch}, loss 2.0000, train acc 0.500, test acc 0.250, time 1.2 s" in plain
    assert text.endswith("\x1b[2K"), "the bar is erased at the end"


def test_a_terminal_shows_that_the_first_step_is_being_prepared() -> None:
    """The line appears before the first step, because a backend may compile for minutes."""
    screen = io.StringIO()
    with EpochDisplay(Console(file=screen, force_terminal=True, width=120, _environ={}), 1) as shown:
        assert screen.getvalue() == ""
        shown.start(40)
        shown._progress.refresh()
        assert "preparing the first step" in screen.getvalue()


def test_what_is_no_terminal_gets_lines_only() -> None:
    file = io.StringIO()
    show(Console(file=file, width=120))
    assert file.getvalue() == "".join(
        f"epoch  {epoch}, loss 2.0000, train acc 0.500, test acc 0.250, time 1.2 s\n" for epoch in (1, 2)
    )


def test_the_bar_moves_within_an_epoch() -> None:
    screen = io.StringIO()
    with EpochDisplay(Console(file=screen, force_terminal=True, width=120, _environ={}), 1) as shown:
        shown.start(40)
        shown.on_steps(1, Steps(np.array([3.0]), np.array([1]), np.array([10])))
        shown._progress.refresh()
    assert re.search(r"epoch 1/1 \S+.* 25%  loss 3\.0000", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))


@pytest.mark.usefixtures("small")
def test_the_callbacks_of_train_drive_the_display() -> None:
    screen = io.StringIO()
    with EpochDisplay(Console(file=screen, force_terminal=True, width=120, _environ={}), 2) as shown:
        shown.start(300)
        run = train(networks.lenet(), data=DATA, epochs=2, on_steps=shown.on_steps, on_epoch=shown.on_epoch)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert [f"epoch {epoch.epoch}, loss {epoch.loss:.4f}, train acc" in plain for epoch in run.epochs] == [True, True]
