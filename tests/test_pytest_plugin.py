"""``pytest --polybn``: the suite in the package, in separate pytest runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BAD = """
from tests.support import kit_adapters


class Off(kit_adapters.Right):
    def train(self, x, *args, **options):
        y, mean, var = super().train(x, *args, **options)
        return y, mean, None if var is None else var * (1 + 2**-8)
"""


def run(folder: Path, *arguments: str, path: Path = ROOT) -> tuple[int, str]:
    """Run pytest in a folder, with a place where Python looks for modules first; return its exit code and words."""
    places = os.pathsep.join([str(path), str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    # Naming the plug-in makes the test independent of the installed version.
    # As the command pytest has it, and python -m pytest has not, the folder is not on Python's path: hence -P.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "polybn.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    if _is_installed():
        command = [word for word in command if word != "polybn.pytest_plugin"]
        command.remove("-p")
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment | {"PYTHONPATH": places}, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "polybn.pytest_plugin" for entry in entry_points(group="pytest11"))


def test_it_runs_the_kit_and_the_comparison_and_nothing_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text("def test_of_theirs():\n    raise AssertionError\n")
    code, output = run(
        tmp_path, "--polybn", "numpy,tests.support.kit_adapters:Right", "-v", "-k", "P4 or P16 or agreement"
    )
    assert code == 0, output
    assert "test_conformance[numpy-P16] PASSED" in output
    assert "test_agreement[numpy-tests.support.kit_adapters:Right] PASSED" in output
    assert "theirs" not in output


def test_one_property_can_be_picked(tmp_path: Path) -> None:
    """As the page and the help of --polybn say."""
    code, output = run(tmp_path, "--polybn", "numpy", "--collect-only", "-q", "-k", "P1]")
    assert code == 0, output
    assert [line.partition("::")[2] for line in output.splitlines() if "::" in line] == ["test_conformance[numpy-P1]"]
    assert "-k 'P1]' picks property P1, and not P10" in " ".join(run(tmp_path, "--help")[1].split())


def test_a_batch_norm_that_is_off_is_named_with_a_program(tmp_path: Path) -> None:
    (tmp_path / "off.py").write_text(BAD)
    code, output = run(tmp_path, "--polybn", "numpy,off:Off", "-k", "agreement")
    assert code == 1, output
    assert "test_agreement[numpy-off:Off]" in output
    assert "running_var" in output
    assert "To repeat it:" in output


RAISING = """
from polybn.conformance import Info


class NoTrain:
    def info(self):
        return Info("none", "1")


class Undeclared(NoTrain):
    def train(self, *args, **options):
        raise ValueError("four axes, please")


class Whole(Undeclared):
    infer = vjp = Undeclared.train

    def info(self):
        return Info("none", "1", infers=False)


class Unmade(Whole):
    def __init__(self):
        raise OSError("no driver")
"""


def test_an_adapter_that_cannot_be_used_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    for name, words in {
        "NoTrain": "adapter must have the methods info and train",
        "Undeclared": "Undeclared must have the methods that it declares; it lacks infer, vjp",
        "Unmade": "raising:Unmade.__init__ raised OSError: no driver",
        "Nothing": "module raising has no Nothing",
    }.items():
        code, output = run(tmp_path, "--polybn", f"raising:{name}")
        assert code == 4, output
        assert words in output
        assert "Traceback" not in output
    code, output = run(tmp_path, "--polybn", "numpy,raising:Whole", "-k", "agreement")
    assert code == 1
    assert "none.train raised ValueError: four axes, please" in output
    assert "runner.py" not in output


def test_what_it_needs_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text(
        "raise ModuleNotFoundError('No module named hypothesis', name='hypothesis')"
    )
    code, output = run(tmp_path, "--polybn", "numpy", "-p", "no:hypothesispytest", path=tmp_path)
    assert code == 4, output
    assert 'ERROR: --polybn needs hypothesis: pip install "polybn[conformance]"' in output


def test_paths_that_are_given_are_run_beside_it(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text("def test_of_theirs():\n    pass\n")
    code, output = run(tmp_path, "--polybn", "numpy", "-v", "-k", "P16 or theirs", "test_theirs.py")
    assert code == 0, output
    assert "test_theirs.py::test_of_theirs PASSED" in output
    assert "test_conformance[numpy-P16] PASSED" in output


def test_a_name_that_is_unknown_is_an_error_in_words(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--polybn", "nmupy")
    assert code == 4, output
    assert "adapter must be one of" in output
    assert "Traceback" not in output


def test_the_plugin_itself_imports_next_to_nothing() -> None:
    script = "import sys, polybn.pytest_plugin; print(*{'numpy', 'hypothesis', 'polybn.conformance'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_the_name_of_a_test_that_failed_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "off.py").write_text(BAD)
    _, output = run(tmp_path, "--polybn", "off:Off", "-k", "P2]")
    (failed,) = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")]
    code, again = run(tmp_path, "--polybn", "off:Off", failed)
    assert code == 1, again
    assert "1 failed in" in again


def test_a_file_in_place_of_a_module_is_told_how_modules_are_named(tmp_path: Path) -> None:
    (tmp_path / "off.py").write_text(BAD)
    code, output = run(tmp_path, "--polybn", "off.py:Off")
    assert code == 4, output
    assert "a module is named without .py: off:Off" in " ".join(output.split())
