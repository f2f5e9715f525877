"""Long commands at a terminal say what they are doing and how much is left; elsewhere they add nothing."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from polybn import console
from polybn.bench import contenders, tasks
from polybn.bench.contenders import Found
from polybn.bench.tasks import Task
from polybn.conformance import peers
from tests.support.command import Polybn

CHECK = ("check", "--adapter", "polybn-numpy", "--only", "P16", "--only", "P40", "--dtype", "float32")
AGREE = ("agree", "numpy", "polybn-numpy-plain", "--cases", "10")
PEERS = ("check", "--peers")
BENCH = ("bench", "--quick", "--only", "numpy", "--against", "copy", "--rounds", "1")
SEEN = {
    CHECK: [r"0/2 \S+ importing polybn-numpy", r"0/2 \S+ P16 One value per channel", r"1/2 \S+ P40 No values: an empt"],
    AGREE: [r"0/10 \S+ numpy: training, float16, shape", r"9/10 \S+ polybn-numpy-plain: training, bfloat16, shape"],
    PEERS: [r"0/2 \S+ first", r"1/2 \S+ second"],
    BENCH: [r"0/1 \S+ \w"],
}
"""What the bar shows, by command."""


def lines_of(drawn: str) -> list[str]:
    """Return what was drawn, line by line, without colours and movements."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "\n", plain))


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, soft_wrap=True, markup=False, highlight=False)


def drawn_on(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be little to time, and two quick peers."""
    monkeypatch.setattr(tasks, "tasks", lambda quick, grow: [Task(kind="forward", shape=(7, 3, 2))])
    monkeypatch.setattr(contenders, "discover", lambda: [Found("numpy", "1"), Found("copy", "2")])
    monkeypatch.setattr(peers, "everyone", lambda: ["first", "second"])
    monkeypatch.setattr(peers, "run", lambda names, limit: (peers.Peer(name, why_not="no") for name in names))


@pytest.mark.parametrize("command", SEEN)
def test_a_terminal_shows_what_is_done_now_and_how_much_is_left(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    screen = terminal()
    monkeypatch.setattr(console, "out", screen)
    assert polybn_(*command).code == 0
    lines = lines_of(drawn_on(screen))
    for words in SEEN[command]:
        assert any(re.search(words, line) for line in lines), words


def test_lines_stay_whole_beside_the_bar(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    """One console draws both: two would write over each other."""
    screen = terminal()
    monkeypatch.setattr(console, "out", screen)
    polybn_(*CHECK)
    lines = [line.rstrip() for line in lines_of(drawn_on(screen))]
    assert any(line.startswith("pass   P16      One value per channel") for line in lines)
    assert not any("━" in line and "pass" in line for line in lines)


@pytest.mark.parametrize("command", SEEN)
def test_a_terminal_that_gets_no_words_has_the_bar_alone(
    polybn_: Polybn, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    screen = terminal()
    monkeypatch.setattr(console, "err", screen)
    said = polybn_(*command)
    assert (said.code, said.err) == (0, "")
    assert "\x1b" not in said.out
    assert any(re.search(SEEN[command][0], line) for line in lines_of(drawn_on(screen)))


@pytest.mark.parametrize("command", SEEN)
def test_where_no_terminal_is_nothing_is_added(polybn_: Polybn, command: tuple[str, ...]) -> None:
    said = polybn_(*command)
    assert (said.code, said.err) == (0, "")
    assert not re.search(r"\x1b|\d/\d+ 0:", said.out)
