"""A report as JUnit XML, which CI services can show test by test."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from polybn.conformance.report import Report
    from polybn.conformance.result import Result

KINDS = {
    "fail": "failure",
    "echo": "failure",
    "expected failure": "skipped",
    "not certified": "skipped",
    "not applicable": "skipped",
}
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, not even escaped."""


def document(report: Report) -> str:
    """Return the report as one test suite, with a test case for each id."""
    cases = [_case(report.info.name, result) for result in report.results]
    wrong = [("check", error) for error in report.errors]
    wrong += [(name, "not reached: the check was interrupted") for name in report.missing]
    suite = _quoted(report.info.name)
    cases += [
        f"<testcase classname={suite} name={_quoted(name)}><error message={_quoted(words)}/></testcase>"
        for name, words in wrong
    ]
    failed = len(report.failures) + report.count("echo")
    skipped = sum(KINDS.get(result.status) == "skipped" for result in report.results)
    head = (
        f'<testsuite name={suite} tests="{len(cases)}" failures="{failed}" errors="{len(wrong)}" '
        f'skipped="{skipped}" time="{report.seconds:.3f}">'
    )
    said = f"<system-out>{_clean(escape(str(report)))}</system-out>"
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', head, *cases, said, "</testsuite>", ""])


def _case(name: str, result: Result) -> str:
    head = f'<testcase classname={_quoted(name)} name={_quoted(result.id)} time="{result.seconds:.3f}"'
    kind = KINDS.get(result.status)
    if kind is None:
        return f"{head}/>"
    words = " ".join(filter(None, (result.status, result.reason and f"({result.reason})", result.words)))
    body = _clean(escape("\n".join(filter(None, (result.title, result.words, result.reproducer)))))
    return f"{head}><{kind} message={_quoted(words)}>{body if kind == 'failure' else ''}</{kind}></testcase>"


def _quoted(text: str) -> str:
    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
