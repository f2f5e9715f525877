"""``polybn`` as its script runs it, inside of the test's process; the fixture ``polybn_`` hands it out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from polybn import cli


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Polybn = Callable[..., Said]


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Polybn:
    """Return ``polybn`` as a function of its arguments."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["polybn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        code = exit.value.code
        assert isinstance(code, int)
        return Said(code, *capsys.readouterr())

    return run
