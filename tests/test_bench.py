"""Fair timing, with contenders and clocks that the tests turn themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from docs._ext import bench
from polybn import dispatch
from polybn.bench import contenders, pictures, processes, record, rounds, tables, tasks, worker
from polybn.bench.contenders import Found
from polybn.bench.peers import PEERS
from polybn.bench.tasks import LENET, SHAPES, Task, shapes
from polybn.cli import app
from tests.support.command import Polybn

TASK = Task(kind="derivative", shape=(7, 3, 5))


class Fake:
    """Returns the given seconds in turn, and records each request."""

    def __init__(self, name: str, answers: list[Any], asked: list[str]) -> None:
        self.name, self.answers, self.asked = name, answers, asked

    def ask(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        self.asked.append(self.name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, dict) else {"seconds": answer}


def plan(count: int) -> rounds.Plan:
    return rounds.Plan([TASK], [Found("a", "1"), Found("b", "2")], "a", rounds=count)


def measured(count: int, **answers: list[Any]) -> tuple[dict[str, record.Row], list[str]]:
    asked: list[str] = []
    fakes = {name: Fake(name, values, asked) for name, values in answers.items()}
    rows = rounds.measure(TASK, fakes, plan(count), rest=lambda seconds: None)
    return {row.contender: row for row in rows}, asked


def test_ratios_are_of_two_times_of_one_round() -> None:
    """On a machine that slows down tenfold from round to round each ratio is 2; the warm-up does not count."""
    rows, _ = measured(3, a=[99.0, 1.0, 10.0, 100.0], b=[1.0, 2.0, 20.0, 200.0])
    found = record.Record("a", rows=list(rows.values()))
    assert found.ratio(rows["b"]) == record.Ratio(2.0, 2.0, 2.0)
    assert rows["b"].median == 20.0


def test_the_spread_is_that_of_the_quartiles() -> None:
    assert record.paired([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == record.Ratio(2.0, 3.0, 4.0)


def test_each_round_has_all_in_an_order_of_its_own() -> None:
    _, asked = measured(60, a=[1.0], b=[1.0], c=[1.0])
    assert Counter(asked) == {"a": 61, "b": 61, "c": 61}
    orders = {tuple(asked[i : i + 3]) for i in range(0, len(asked), 3)}
    assert len(orders) == 6
    assert {(x, y) for x, y in pairwise(asked) if x != y} == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    rows, asked = measured(4, a=[1.0], b=[1.0, {"cannot": "its process ended with code -9"}])
    assert rows["b"].cannot == "its process ended with code -9"
    assert rows["b"].seconds == []
    assert len(rows["a"].seconds) == 4
    assert Counter(asked) == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("times", "median", "left"),
    [([0.4, 0.1, 0.2, 9.0], 0.2, 1), ([0.2, 0.2, 0.2, 9.0], 0.2, 1), ([8.0, 9.0], 8.0, 1), ([0.1] * 9, 0.1, 3)],
    ids=["three", "three that fill it", "a long one", "many"],
)
def test_a_block_takes_the_median_of_its_calls(times: list[float], median: float, left: int) -> None:
    now = [0.0]

    def call() -> None:
        now[0] += times.pop(0)

    assert worker.block(call, 0.55, clock=lambda: now[0]) == pytest.approx(median)
    assert len(times) == left


def script(code: str) -> processes.Contender:
    return processes.Contender([sys.executable, "-c", code])


def test_a_contender_that_hangs_is_ended_in_time() -> None:
    hanging = script("input(); input()")
    start = time.monotonic()
    answer = hanging.ask({}, limit=0.5)
    assert answer == hanging.ask({}, limit=60) == {"cannot": "no answer within 0.5 s"}
    assert time.monotonic() - start < 30
    assert hanging.process.returncode is not None


def test_a_contender_that_crashes_says_how() -> None:
    crashing = script("import os; input(); os._exit(3)")
    assert crashing.ask({}, limit=60) == {"cannot": "its process ended with code 3"}


def test_a_worker_answers_and_says_what_it_cannot() -> None:
    with processes.started({"x": "copy"}) as entrants:
        answer = entrants["x"].ask({"task": TASK.to_json() | {"kind": "forward"}, "block": 0.0}, 120)
        assert answer["seconds"] > 0
        cannot = entrants["x"].ask({"task": {**TASK.to_json(), "kind": "lenet"}, "block": 0.0}, 120)
        assert "NotImplementedError" in cannot["cannot"]


PARENT = """
import signal
from polybn.bench import processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
with processes.started({"idle": "copy", "at work": "copy"}) as entrants, processes.busy() as spinning:
    at_work = entrants["at work"]
    print(*(one.process.pid for one in entrants.values()), *(p.pid for p in spinning), flush=True)
    at_work.ask({"task": {"kind": "forward", "shape": [2, 3]}, "block": 600.0}, 600)
"""
"""A process that runs with its contender until it is ended."""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_all_processes_end_with_the_run(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        children = [int(word) for word in run.stdout.readline().split()]
        try:
            assert len(children) == 4
            time.sleep(0.5)  # the worker has begun with its block of ten minutes
            run.send_signal(how)
            run.wait(30)
            deadline = time.monotonic() + 30
            while any(map(alive, children)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not [pid for pid in children if alive(pid)]
        finally:
            run.kill()
            for pid in filter(alive, children):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or ") Z" not in stat.read_text()


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows, _ = measured(2, a=[1.0], b=[{"cannot": "no"}])
    written = record.Record("a", {"cores": "2"}, {"a": "1", "b": "2"}, list(rows.values()))
    written.save(tmp_path / "bench.json")
    assert record.load(tmp_path / "bench.json") == written
    (tmp_path / "bench.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 1"):
        record.load(tmp_path / "bench.json")


def test_tables_show_means_medians_and_spreads() -> None:
    rows = []
    for shape, factor in zip(SHAPES, (1, 4, 1, 4, 1, 4), strict=True):
        task = Task(kind="derivative", shape=shape)
        rows += [record.Row(task, "a", [1.0, 1.0]), record.Row(task, "b", [factor * 1.0, factor * 1.0])]
    found = tables.tables(record.Record("a", contenders={"a": "", "b": ""}, rows=rows))
    assert list(found) == ["geometric means of all shapes", "forward and derivative"]
    assert found["geometric means of all shapes"] == [["time", "forward and derivative"], ["b", "2.00"]]
    heading, line, reference = found["forward and derivative"]
    assert heading == [
        "time",
        "256x6 24x24",
        "256x16 8x8",
        "256x120",
        "32x64 56x56",
        "32x256 14x14",
        "32x64 112x112",
    ]
    assert line == ["b", *["1.00 (1.00 to 1.00)", "4.00 (4.00 to 4.00)"] * 3]
    assert reference == ["a, ms", *["1000"] * 6]


def test_a_mean_is_left_out_where_a_contender_could_not_run() -> None:
    rows = [record.Row(task, "a", [1.0]) for task in (*shapes("forward"), LENET)]
    rows += [record.Row(task, "b", [3.0]) for task in (*shapes("forward")[1:], LENET)]
    found = tables.means(record.Record("a", contenders={"a": "", "b": ""}, rows=rows))
    assert found == [["time", "forward", "LeNet step"], ["b", "", "3.00"]]


def test_tables_fit_a_terminal_and_a_page() -> None:
    """The table is narrow enough even with the longest names and figures."""
    ratio = str(record.Ratio(10, 12.345, 20))
    lines = [["time", *map(tables._heading, shapes("forward"))], ["mxnet+operators", *[ratio] * 6]]
    assert max(map(len, tables.plain(lines).splitlines())) <= 80
    assert tables.plain(lines).splitlines()[1].split() == ["24x24", "8x8", "56x56", "14x14", "112x112"]
    assert tables.plain(lines).splitlines()[2].split() == ["mxnet+operators", *["12.35"] * 6]
    assert tables.markdown(lines).splitlines()[2].startswith("| mxnet+operators | 12.35<br>(10.00 to 20.00) | ")


def test_the_page_shows_the_record_or_how_to_make_it(tmp_path: Path) -> None:
    path = tmp_path / "bench-cpu.json"
    assert "`polybn bench --busy --grow --json docs/results/bench-cpu.json`" in bench.table(path)
    rows = [record.Row(LENET, "a", [0.02]), record.Row(LENET, "b", [0.03])]
    record.Record("a", contenders={"a": "", "b": ""}, rows=rows).save(path)
    assert "| b | 30 | 1.50<br>(1.50 to 1.50) |  |\n" in bench.table(path)


def test_quickly_each_backend_is_timed_in_its_fastest_form() -> None:
    known = ["jax", "jax+jit", "jax+native", "numpy", "numpy+out", "torch", "pytorch", "pytorch-compiled", "copy"]
    assert contenders.fastest(known) == ["jax+jit", "numpy", "torch"]


def test_no_peer_has_the_name_of_a_backend() -> None:
    assert not set(PEERS) & set(dispatch.installed())


def test_json_for_standard_output_has_it_alone(polybn_: Polybn, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [Task(kind="forward", shape=SHAPES[2])]
    monkeypatch.setattr(tasks, "tasks", lambda quick, grow: small)
    monkeypatch.setattr(contenders, "discover", lambda: [Found("numpy", "1"), Found("copy", "2")])
    said = polybn_("bench", "--quick", "--only", "numpy", "--against", "copy", "--rounds", "1", "--json", "-")
    assert said.code == 0
    assert [row["contender"] for row in json.loads(said.out)["rows"]] == ["numpy", "copy", "copy again"]
    assert "medians of time over copy's" in said.err
    said = polybn_("bench", "--json", "no/bench.json")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pictures need matplotlib" in polybn_("bench", "--pictures", ".").err
    assert said.err == "error: polybn bench: --json must lie in a folder that exists; got no/bench.json (mkdir -p no)\n"


def test_every_contender_has_a_line_in_the_picture() -> None:
    found = record.load(bench.RECORD)
    names = {"copy", *contenders.fastest([*found.contenders]), *(name for name in PEERS if name in found.contenders)}
    assert len(names) > len(pictures.COLOURS)
    figure = pictures.roofline(found)
    assert figure is not None
    assert all({line.get_label() for line in axes.lines} == names for axes in figure.axes)


def test_the_command_times_and_writes_a_record_and_a_picture(tmp_path: Path) -> None:
    small = [*(Task(kind="derivative", shape=(7, 3, size)) for size in (1, 2)), Task(kind="forward", shape=SHAPES[2])]
    words = [
        "bench",
        "--quick",
        "--only",
        "numpy",
        "--against",
        "copy",
        "--rounds",
        "1",
        "--json",
        "a.json",
        "--pictures",
        ".",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(tasks, "tasks", lambda quick, grow: small)
        patch.setattr(contenders, "discover", lambda: [Found("numpy", "1"), Found("copy", "2")])
        done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    written = record.load(tmp_path / "a.json")
    assert [(row.task, row.contender) for row in written.rows] == [
        (task, name) for task in small for name in ("numpy", "copy", "copy again")
    ]
    assert all(row.median > 0 for row in written.rows)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["roofline.svg"]
    assert "<dc:date>" not in (tmp_path / "roofline.svg").read_text(), "it is written as all pictures are: whole"
