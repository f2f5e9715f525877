"""The sources of generated documentation, and the checks during its build."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import polybn
from docs._ext import clauses, commands, links, members, pictures, records, sources, support
from polybn import conformance, dispatch, spec
from polybn.cli import app
from polybn.conformance.adapters import ADAPTERS, resolve
from tests.test_clauses import CLAUSES, TESTS, marked_in
from tests.test_docstrings import PUBLIC

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "polybn_xarray"

# The specification.


def test_each_clause_is_told_once_and_lists_all_of_its_tests() -> None:
    text = clauses.specification()
    assert re.findall(r"^\.\. _(S\d+):$", text, re.MULTILINE) == CLAUSES
    told, listed = text.split("What checks each clause\n")
    assert re.findall(r"^:ref:`What checks (S\d+) <checks-\1>`$", told, re.MULTILINE) == CLAUSES
    assert "tests/test_" not in told
    parts = dict(zip(CLAUSES, re.split(r"^\.\. _checks-S\d+:$", listed, flags=re.MULTILINE)[1:], strict=True))
    for clause, part in parts.items():
        assert all(f"tests/{path.name}``" in part for path in TESTS if clause in marked_in(path))
    words = re.sub(r"\W", "", re.sub(r"\*\*S\d+ [^*]+\*\*", "", spec.__doc__ or ""))
    assert len(words) > 3000
    assert all(re.sub(r"\W", "", line) in re.sub(r"\W", "", text) for line in (spec.__doc__ or "").splitlines()[2:9])


def test_a_clause_links_to_the_line_of_its_test() -> None:
    for path in TESTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        for _, check in clauses.checks(path):
            line = lines[check.line - 1]
            assert re.match(rf"(def|class) {check.name}\b|{re.escape(check.name)}\b" if check.name else ".*mark", line)


def test_prose_of_a_clause_begins_with_its_own_sentence() -> None:
    _, (first, second) = clauses.split("Intro.\n\n**S1 Axes.** Over all.\n\n**S2 NaN and infinity** in x stay.")
    assert (first.title, first.body) == ("Axes", "Over all.")
    assert (second.title, second.body) == ("NaN and infinity", "NaN and infinity in x stay.")


# Support.


def record(device: str = "cpu (x86_64)", **changes: Any) -> dict[str, Any]:
    facts = {"name": "PolyBN on numpy", "version": f"0.1.0, numpy 2.4.6, device {device}"}
    results = [{"status": "pass"}, {"status": "pass"}, {"status": "fail"}]
    grades = [{"dtype": "float32", "letter": "S"}]
    versions = {"python": "3.11.7"}
    given = {"adapter": facts, "results": results, "grades": grades, "versions": versions}
    return given | {"date": "2026-11-22", "profile": "ci"} | changes


def rows_of(tmp_path: Path, *records: dict[str, Any]) -> list[list[str]]:
    read = []
    for number, data in enumerate(records):
        path = tmp_path / f"check-{number}.json"
        path.write_text(json.dumps(data))
        read.append(support.read(path))
    return [line.strip("| ").split(" | ") for line in support.to_markdown(read).splitlines()[2:]]


def test_what_has_no_record_was_never_run(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert [row[:2] for row in rows] == [list(pair) for pair in support.PLANNED]
    assert all(row[2:7] == ["never run"] * 5 for row in rows)


def test_a_record_is_a_row(tmp_path: Path) -> None:
    first, *rest = rows_of(tmp_path, record())
    assert first[:7] == ["numpy", "cpu", "no", "no", "S", "no", "2 pass, 1 fail (profile ci)"]
    assert first[7:] == ["PolyBN 0.1.0, numpy 2.4.6, Python 3.11.7; cpu (x86_64)", "2026-11-22"]
    assert len(rest) == len(support.PLANNED) - 1


def test_an_emulated_device_is_called_so_and_is_not_a_run_on_the_device(tmp_path: Path) -> None:
    adapter = {"name": "PolyBN on cupy", "version": "0.1.0, cupy 14.0, device emulated GPU"}
    rows = rows_of(tmp_path, record(adapter=adapter))
    assert [row[1] for row in rows if row[0] == "cupy"] == ["gpu, **emulated**", "gpu"]
    assert [row[2] for row in rows if row[0] == "cupy"][1] == "never run"


def test_a_second_way_to_call_a_backend_is_a_row_beside_it(tmp_path: Path) -> None:
    names = ("PolyBN on mxnet", "PolyBN on jax, in jax.jit", "PolyBN on jax")
    made = [record(adapter={"name": name, "version": "0.1.0, device cpu"}) for name in names]
    rows = rows_of(tmp_path, *made)
    assert [row[0] for row in rows if row[2] != "never run"] == ["jax", "jax, in jax.jit", "mxnet"]
    assert [row[1] for row in rows if row[2] == "never run" and row[0] == "jax"] == ["gpu"]


def test_a_record_without_a_date_is_refused(tmp_path: Path) -> None:
    data = record()
    del data["date"]
    with pytest.raises(KeyError, match="date"):
        rows_of(tmp_path, data)


def test_a_record_is_kept_of_a_report_and_is_a_row_like_it(tmp_path: Path) -> None:
    report = json.loads(conformance.check(resolve("polybn-numpy"), only=["P1", "grade-float32"]).to_json())
    kept = records.trim(report)
    assert records.trim(kept) == kept
    assert 3 * len(json.dumps(kept)) < len(json.dumps(report))
    assert rows_of(tmp_path, kept) == rows_of(tmp_path, report)
    assert {"date", "versions", "profile", "seed"} < kept.keys()
    assert [result["id"] for result in kept["results"]] == [result["id"] for result in report["results"]]


@pytest.mark.parametrize("path", sorted(support.RESULTS.glob("check-*.json")), ids=lambda path: path.name)
def test_a_record_holds_no_more_than_is_shown(path: Path) -> None:
    """Records are trimmed; `python -m docs._ext.records PATH` trims one."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert records.trim(kept) == kept


def test_the_records_are_readable_and_numpy_reaches_class_k() -> None:
    read = [support.read(path) for path in sorted(support.RESULTS.glob("check-*.json"))]
    assert "numpy" in {r.backend for r in read}
    assert all(set(r.letters.values()) <= {"S", "K"} for r in read)


# Names and links.


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("api/*.rst"))
    modules = re.findall(r"^\.\. members:: (\S+)$", text, re.MULTILINE)
    described = "\n".join(members.to_rst(module) for module in modules) + text
    documented = {name.rpartition(".")[2] for name in re.findall(r"^\.\. auto\w+:: (\S+)$", described, re.MULTILINE)}
    assert {name.rpartition(".")[2] for name in PUBLIC} <= documented
    assert {f"polybn.{name}" for name in polybn.__all__ if callable(getattr(polybn, name))} <= set(
        re.findall(r"polybn\.\w+", members.to_rst("polybn"))
    )


def test_the_command_line_has_a_section_for_each_command_with_its_options() -> None:
    text = commands.to_markdown()
    sections = re.split(r"^## polybn (\w+)$", text, flags=re.MULTILINE)
    assert {"train", "compare", "check", "info"} <= set(sections[1::2])
    assert re.search(r"^`--norm \S+`\n: Batch norm: spec is PolyBN's", text, re.MULTILINE)
    assert "[dim]" not in text
    assert "[bold]" not in text


def test_a_source_link_leads_to_the_definition() -> None:
    link = sources.link("py", {"module": "polybn", "fullname": "batch_norm"})
    assert link is not None
    path, line = re.fullmatch(r"\.\./sources/(.*)\.html#L(\d+)", link).groups()  # type: ignore[union-attr]
    assert (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1] == "def batch_norm("
    names = {name: context for name, context, _ in sources.pages(None)}
    assert f'id="L{line}"' in names[f"sources/{path}"]["body"] or f'name="L{line}"' in names[f"sources/{path}"]["body"]


@pytest.mark.parametrize(
    ("html", "flaws"),
    [
        ('<a href="b.html">b</a><img src="p.svg" alt="p">', []),
        ('<a href="b.html#there">b</a><a href="https://example.org/none">away</a>', []),
        ('<a href="c.html">c</a>', ["a.html: c.html leads to no file"]),
        ('<a href="b.html#gone">b</a>', ["a.html: b.html#gone leads to no place in its page"]),
        ('<img src="p.svg">', ["a.html: the picture p.svg has no alt text"]),
        ('<img src="q.svg" alt="q">', ["a.html: q.svg leads to no file"]),
    ],
)
def test_a_link_that_leads_nowhere_is_found(html: str, flaws: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1>')
    (tmp_path / "p.svg").write_text("<svg/>")
    assert list(links.flaws(tmp_path)) == flaws


# Pictures, and the record of the disagreement.


def test_the_pictures_are_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    pictures.draw(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}-{t}.svg" for n in pictures.PICTURES for t in ("light", "dark")
    }
    (panel, *_) = pictures.peers(pictures.LIGHT).axes
    record = json.loads((ROOT / "docs" / "results" / "peers.json").read_text(encoding="utf-8"))
    drawn = [line.get_ydata() for line in panel.lines][-1]
    errors = record["peers"][0]["errors"]["(N, C, H, W)"].values()
    assert np.asarray(drawn).tolist() == [max(error, 1e-8) for error in errors]


def test_the_recorded_trainings_are_listed_with_their_last_epoch() -> None:
    rows = [line.strip("| ").split(" | ") for line in pictures.runs_table().splitlines()[2:]]
    assert [row[:2] for row in rows][-2:] == [["the notebook of 2018", "by hand"], ["the notebook of 2018", "built in"]]
    assert len(rows) == len(list(support.RESULTS.glob("lenet-*.jsonl"))) + 2
    (ours,) = (row for row in rows if row[:2] == ["numpy", "PolyBN's"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, *_, last = (row.split(" | ")[:3] for row in re.findall(r"^\| \d+ \| (.*) \|$", readme, re.MULTILINE))
    assert ours[2:] == [first[0], *last]
    assert all(len(row) == 6 for row in rows)
    assert (
        max(float(row[3]) for row in rows if row[1] != "none") < 0.26 < min(float(r[3]) for r in rows if r[1] == "none")
    )


def disagreement() -> ModuleType:
    path = ROOT / "docs" / "examples" / "disagreement.py"
    found = importlib.util.spec_from_file_location("disagreement", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


RECORD = json.loads((ROOT / "docs" / "results" / "disagreement.json").read_text(encoding="utf-8"))
RECORDED = {row["adapter"]: row for row in RECORD["libraries"]}


def test_the_exact_wave_is_the_recorded_one() -> None:
    assert disagreement().exact().floats() == RECORD["exact"]


@pytest.mark.parametrize("name", [name for name in RECORDED if name in ADAPTERS])
def test_a_library_returns_the_recorded_wave(name: str) -> None:
    """A library of the recorded version returns the recorded wave, on this kind of machine."""
    recorded = RECORDED[name]
    if not recorded["y"]:
        pytest.skip(f"not recorded: {recorded['why_not']}")
    try:
        info = resolve(name).info()
    except ImportError as error:
        pytest.skip(str(error))
    if not name.startswith("polybn-") and info.version != recorded["version"]:
        pytest.skip(f"recorded with {recorded['version']}; here is {info.version}")
    found = disagreement().run(name)
    if name.startswith("polybn-"):
        assert found["error"] <= 5e-7
    else:
        assert found["y"] == recorded["y"]


def test_the_page_says_of_the_waves_what_was_recorded() -> None:
    heights = {name: np.max(np.abs(np.array(row["y"], np.float64))) for name, row in RECORDED.items() if row["y"]}
    tall = {name for name, height in heights.items() if height > 10}
    assert tall == {"flax-linen", "flax-nnx", "jax-standardize", "keras-numpy", "keras-torch"}
    assert all(abs(height - 1.4) < 0.05 for name, height in heights.items() if name not in tall)


# The example of a third party's backend; tests/test_example_backend.py runs it.


def test_the_example_fits_one_screen_and_polybn_does_not_know_it() -> None:
    assert len((EXAMPLE / "polybn_xarray.py").read_text(encoding="utf-8").splitlines()) < 120
    source = [path for folder in ("polybn", "backends") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in source if "polybn_xarray" in path.read_text(encoding="utf-8")] == []


def test_a_backend_of_a_third_party_is_checked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "why_not", lambda name: f"no {name} here")
    with pytest.raises(ImportError, match="backend 'nosuch' must run here; got no nosuch here"):
        resolve("polybn-nosuch")
    assert "nosuch" not in sys.modules


def test_an_adapter_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from polybn import conformance\n\n\ndef mine():\n    return conformance.resolve('polybn-numpy')\n"
    (tmp_path / "mine_in_this_directory.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = CliRunner().invoke(app, ["check", "--adapter", "mine_in_this_directory:mine", "--only", "P1"])
    assert result.exit_code == 0, result.output
