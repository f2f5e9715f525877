"""A report as one HTML page that loads nothing else: pictures are part of it; it fits a phone and dark mode."""

from __future__ import annotations

import io
import math
import re
from html import escape
from typing import TYPE_CHECKING

from polybn.conformance.grades import LETTERS
from polybn.conformance.guard import plain
from polybn.conformance.report import facts, failures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.axes import Axes

    from polybn.conformance.grades import Grade, Row
    from polybn.conformance.report import Report
    from polybn.conformance.result import Result

# Okabe and Ito's palette, which people with any colour vision can tell apart; they stand out from light and dark.
COLOURS = {"K": "#009E73", "T": "#E69F00", "N": "#D55E00", "F": "#CC79A7", "O": "#56B4E9"}
STYLES = {"K": "-", "T": "--", "N": "-.", "F": ":", "O": (0, (1, 3))}
NEAREST, FARTHEST = 1e-2, 1e15
"""The ends of the axis of mean / std."""
ENOUGH = 5
"""The smallest number of points worth a picture."""
FLOOR = 1e-17
"""The lower edge of a picture without bounds."""
GREY = "#808080"

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #087f5b; --bad: #c92a2a; --warn: #a15c00 }
@media (prefers-color-scheme: dark) { :root { --good: #63e6be; --bad: #ff8787; --warn: #ffc078 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2rem }
.facts, .id, td:nth-child(3), td:nth-child(4) { font-size: .85rem; opacity: .8 }
.verdict { border-left: .4rem solid var(--good); background: var(--soft); padding: .6rem 1rem }
.verdict.bad { border-color: var(--bad) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line) }
.pass { color: var(--good) } .fail { color: var(--bad); font-weight: bold } .other { color: var(--warn) }
.letters { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none }
.letters li { border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .8rem }
.letters b { font-size: 1.6rem; margin-right: .4rem }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; font-size: .8rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0 } figure svg { width: 100%; height: auto; color: inherit }
"""


def page(report: Report) -> str:
    """Return a report as an HTML page; grades need matplotlib."""
    name = escape(report.info.name)
    body = [
        f"<h1>{name}</h1><p class=facts>{escape(report.info.version)}</p>",
        f'<p class="verdict{"" if report.ok else " bad"}">{escape(report.verdict)}</p>',
        f"<p>{escape(report.advice)}</p>" if report.advice != report.verdict else "",
        _list("Differs from the specification by declaration", report.deviations),
        _accuracy(report.grades),
        _failures(report),
        _list("Errors", report.errors),
        _list(
            "Echoes, which go away with true declarations",
            [f"{r.id}: {r.reason}" for r in report.results if r.reason and r.status == "echo"],
        ),
        _list("Notes", report.notes),
        _conventions(report),
        _results(report.results),
        f"<p class=facts>{escape(facts(report))}</p>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: conformance of batch normalization</title><style>{STYLE}</style>"
    )
    return plain(
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    )


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if lines else ""


def _failures(report: Report) -> str:
    programs = "".join(
        f"<details><summary>A program that repeats {escape(r.id)}</summary><pre>{escape(r.reproducer)}</pre></details>"
        for r in report.failures
        if r.reproducer
    )
    return _list("Failures", failures(report)) + programs


def _conventions(report: Report) -> str:
    rows = [
        (c.name, c.declared, _mark("pass" if c.ok else "fail", c.seen), c.specification, c.explanation)
        for c in report.conventions
    ]
    return _table("Conventions", ("", "declared", "seen", "specification", "what it is"), rows) if rows else ""


def _results(results: Sequence[Result]) -> str:
    rows = []
    for r in results:
        judged = f"{r.cases - r.vacuous:,}" if r.cases and r.status != "not applicable" else ""
        share = f"{r.share:.2g}" if r.share else "exact" if r.exact else ""
        why = r.reason or (r.words if r.status in ("not applicable", "not certified") else "")
        said = escape(r.title) + (f"<br><small>{escape(why)}</small>" if why else "")
        rows.append((r.id, _mark(r.status, r.status), judged, share, Markup(said), r.clause))
    return _table("Everything that was checked", ("", "result", "cases", "error / bound", "", "clauses"), rows)


class Markup(str):
    """Text that is HTML already, not to be escaped."""

    __slots__ = ()


def _mark(status: str, text: str) -> Markup:
    kind = status if status in ("pass", "fail") else "fail" if status == "echo" else "other"
    return Markup(f"<span class={kind}>{escape(text)}</span>")


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<td>{v if isinstance(v, Markup) else escape(v)}</td>" for v in row) + "</tr>" for row in rows
    ]
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<h2>{title}</h2><div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _accuracy(grades: Sequence[Grade]) -> str:
    if not grades:
        return ""
    items = "".join(f"<li><b>{g.letter}</b>{g.dtype}<br><small>{LETTERS[g.letter]}</small></li>" for g in grades)
    text = (
        "<p>A mark is the largest error of y for one input, against how far its values lie from zero; hollow ones are "
        "inputs that are not normally distributed. Lines are what the classes of algorithms are allowed for the "
        "others: that of K does not grow with the mean. A line ends where its bound certifies nothing.</p>"
    )
    pictures = "".join(f"<div class=pictures>{''.join(_figures(g))}</div>{_rows(g)}" for g in grades)
    return f"<h2>Accuracy</h2><ul class=letters>{items}</ul>{text}{pictures}"


def _rows(grade: Grade) -> str:
    """Return all rows of a grade as a table that can be unfolded."""
    letters = ("S", *COLOURS)
    lines = [
        (r.family, f"{r.m:,}", f"{r.kappa:.3g}", f"{r.error:.2g}", *(_cell(r.bounds[n], r.ratio[n]) for n in letters))
        for r in grade.rows
    ]
    heads = ("input", "m", "kappa", "error", *(f"allowed to {n}" for n in letters))
    table = _table("", heads, lines).replace("<h2></h2>", "")
    return f"<details><summary>All inputs in {grade.dtype}</summary>{table}</details>"


def _cell(bound: float | None, ratio: float | None) -> str:
    if bound is None or ratio is None:
        return Markup("<span class=other>not certified</span>") if ratio is None else _mark("fail", "failed")
    return _mark("pass" if ratio <= 1 else "fail", f"{bound:.2g}")


def _figures(grade: Grade) -> Iterator[str]:
    """Draw a picture for each m at which enough normal variates were tried."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('polybn: pictures need matplotlib: pip install "polybn[plot]"') from error

    drawable = [row for row in grade.rows if row.in_range and math.isfinite(row.kappa) and row.kappa < FARTHEST]
    for m in sorted({row.m for row in drawable}):
        rows = sorted((row for row in drawable if row.m == m), key=_ratio)
        if sum(map(_normal, rows)) < ENOUGH:
            continue
        name = f"{grade.dtype}, {m:,} values a channel"
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 11}):
            figure = Figure(figsize=(5, 4.4), layout="constrained")
            figure.patch.set_alpha(0)
            axes = figure.subplots()
            _draw(axes, rows)
            axes.set_title(name, loc="left", fontsize=12)
            figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
            svg = io.StringIO()
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        yield f"<figure>{_inline(svg.getvalue(), name)}</figure>"


def _draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw errors and bounds against mean / std, which is ``sqrt(kappa^2 - 1)``."""
    ladder = [row for row in rows if _normal(row)]
    for name, colour in COLOURS.items():
        limits = [(_ratio(row), bound) for row in ladder if (bound := row.bounds.get(name))]
        if limits:
            axes.plot(*zip(*limits, strict=True), color=colour, linestyle=STYLES[name], label=f"allowed to {name}")
    # An error of 0, or a tiny one, is drawn on the lower edge: the axis is logarithmic.
    lowest = min((bound for row in ladder if (bound := row.bounds["K"])), default=FLOOR) / 1000
    for normal in (True, False):
        mine = [row for row in rows if _normal(row) is normal]
        errors = [max(row.error, lowest) if math.isfinite(row.error) else math.nan for row in mine]
        axes.plot(
            [_ratio(row) for row in mine],
            errors,
            linestyle="none",
            marker="o",
            markersize=5,
            color=GREY,
            markerfacecolor=GREY if normal else "none",
            label="measured" if normal else "measured, others",
        )
    axes.set(xscale="log", yscale="log", xlabel="mean / standard deviation", ylabel="largest error of y")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")


def _normal(row: Row) -> bool:
    return row.family.startswith("N(")


def _ratio(row: Row) -> float:
    """Return mean / std, or the lower end of the axis if that is larger."""
    return max(math.sqrt(max(row.kappa**2 - 1, 0)), NEAREST)


def _inline(svg: str, name: str) -> str:
    """Take the picture out of its file; black becomes the colour of the text, and ids become unique on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"#000000|black", "currentColor", svg)
    svg = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{_slug(name)}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = f"{name}: errors of y against mean over standard deviation, with the bounds of the classes"
    # Elements without a fill of their own, such as text, would be black.
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" fill="currentColor" ', 1)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
