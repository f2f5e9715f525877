"""A report as text, JSON and HTML: complete, readable, in one file, and equal for equal findings."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any, ClassVar

import pytest

from polybn import conformance
from polybn.conformance.html import page as page_of
from polybn.conformance.report import Report
from polybn.conformance.result import Result
from tests.support import kit_adapters as kit

ONLY = ["convention-momentum", "P1", "P5", "P18", "P22", "P38", "P38b", "stateful", "grade-float32", "grade-float64"]


@pytest.fixture(scope="module")
def report() -> Report:
    class Odd(kit.DeclaredReversed, kit.LeakingNaN, kit.Writing):
        """<b>Errs</b> in two ways, and declares a third."""

        conventions: ClassVar[dict[str, Any]] = {**kit.DeclaredReversed.conventions, "max_kappa": 1e6}

        def info(self) -> Any:
            return super().info()._replace(name="<Odd> & co")

    return conformance.check(Odd(), only=ONLY, seed=3)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return page_of(report)


def test_text(report: Report) -> None:
    text = " ".join(str(report).split())
    for piece in (
        "<Odd> & co, 1 profile dev, seed 3,",
        "Differs from the specification by declaration: momentum is 'new' where the specification has 'old'",
        "Accuracy: float32: class",
        "Not applicable: P5: the adapter declares max_kappa",
        "Failures: P18: No argument is written",
        "train must not write its arguments; it changed running_mean",
        "<Odd> & co does not conform to the specification: 5 pass, 3 fail, 2 not applicable.",
    ):
        assert piece in text, piece


def test_equal_failures_are_told_once() -> None:
    class TwoGradients(kit.Right):
        def vjp(self, *args: Any, **options: Any) -> Any:
            return super().vjp(*args, **options)[:2]

    report = conformance.check(TwoGradients(), only=["P3", "P28", "P29"], seed=1)
    assert len(report.failures) == 3
    text = " ".join(str(report).split())
    assert text.startswith("P3: TwoGradients.vjp must return a tuple of 3")
    assert "P3, P28, P29: TwoGradients.vjp must return" in text
    assert text.count("must return a tuple of 3") == 2  # first of all, and among the failures


def test_json_has_everything(report: Report) -> None:
    data = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (data["format"], data["ok"], data["seed"]) == (1, False, 3)
    assert data["adapter"]["name"] == "<Odd> & co"
    assert data["versions"].keys() >= {"polybn", "python", "numpy", "hypothesis"}
    assert [r["id"] for r in data["results"]] == ONLY
    by_id = {r["id"]: r for r in data["results"]}
    assert by_id["P18"]["reproducer"].startswith("# No argument is written")
    assert by_id["P22"]["status"] == "pass"
    assert 0 < by_id["P22"]["share"] < 1
    (convention,) = data["conventions"]
    assert convention["seen"] == "new"
    assert (convention["ok"], convention["differs"]) == (True, True)
    (grade,) = data["grades"]
    assert grade["dtype"] == "float32"
    assert {"family", "kappa", "m", "error", "bounds", "ratio"} <= grade["rows"][0].keys()
    assert "inf" in {row["kappa"] for row in grade["rows"]}  # constant channels


def test_json_holds_the_worst_input_bit_for_bit(report: Report) -> None:
    (result,) = (r for r in json.loads(report.to_json())["results"] if r["id"] == "P22")
    assert result["worst"]
    for call in result["worst"]:
        assert call["method"] in ("train", "infer", "vjp")
        for array in call["arrays"].values():
            assert array["hex"] is None or len(bytes.fromhex(array["hex"])) > 0


class Reader(HTMLParser):
    """Collects tags, ids and references, and asserts that every open element is closed."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_page_by_itself(page: str) -> None:
    reader = Reader(page)
    assert page.startswith("<!doctype html>")
    assert "<Odd> & co" in reader.text
    assert "<Odd>" not in page
    loads = [
        (tag, name, value) for tag, name, value in reader.attributes if name in ("src", "href", "srcset", "xlink:href")
    ]
    assert all(value is not None and value.startswith("#") for _, _, value in loads)
    assert not re.search(r"@import|url\((?!#)|<script|<link|<iframe", page)
    tags = {(tag, name) for tag, name, _ in reader.attributes}
    assert ("meta", "name") in tags  # viewport: readable on a phone
    assert "color-scheme: light dark" in page
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "pictures share names"
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', page))
    assert used <= set(ids)


def test_html_draws_each_group_of_rows_with_its_bounds(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) >= 2
    for figure in figures:
        text = Reader(figure).text
        assert "values a channel" in text
        assert "mean / standard deviation" in text
        assert "largest error of y" in text
        assert "allowed to K" in text
        assert "#000000" not in figure  # invisible in the dark
    assert any("float32, 1,024 values a channel" in Reader(figure).text for figure in figures)


def test_html_shows_failures_and_programs(report: Report, page: str) -> None:
    reader = Reader(page)
    assert "train must not write its arguments; it changed running_mean" in reader.text
    assert "A program that repeats P18" in reader.text
    assert "np.frombuffer(bytes.fromhex(" in reader.text
    for result in report.results:
        assert result.title in reader.text


def test_html_without_grades_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert "<figure>" not in page_of(conformance.check(kit.Right(), only=["P16"]))
    with pytest.raises(ImportError, match=r"pip install .polybn\[plot\]"):
        page_of(report)


def test_html_is_the_same_for_the_same_findings(report: Report, page: str) -> None:
    assert page_of(report) == page


@pytest.mark.parametrize(
    ("result", "exact"),
    [
        (Result("P1", "t", "S1", "pass", cases=5), True),
        (Result("P22", "t", "S1", "pass", cases=5, share=0.5), False),
        (Result("grade-float32", "t", "S1", "pass", cases=5), False),
        (Result("P1", "t", "S1", "not certified", cases=5), False),
    ],
)
def test_only_properties_are_called_exact(result: Result, exact: bool) -> None:
    assert result.exact is exact
