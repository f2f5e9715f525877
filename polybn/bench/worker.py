"""A contender's process: it reads one task per line and answers with the seconds of a call, until its input ends."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from polybn.bench.contenders import Call, found, maker
from polybn.bench.tasks import STEPS, Task

CALLS = 3
"""The smallest number of short calls in a round; the median counts, so the first call may be slow."""


def main(name: str) -> None:
    """Serve the contender of this name."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer
    make = maker(name)
    task, call = None, None
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any]
        try:
            if (asked := Task.from_json(question["task"])) != task:
                task, call = None, None  # frees the arrays of the last task before the next ones are made
                call = make(asked)
                task = asked
                call()
            assert call is not None
            answer = {"seconds": block(call, question["block"]) / (STEPS if asked.kind == "lenet" else 1)}
        except Exception as error:  # a library may raise anything; the others go on
            answer = {"cannot": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def block(call: Call, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median time of the calls made within a block of time; a call that takes longer is made once."""
    times: list[float] = []
    spent = 0.0
    while not times or spent < seconds or (len(times) < CALLS and max(times) < seconds):
        start = clock()
        call()
        times.append(clock() - start)
        spent += times[-1]
    return statistics.median(times)


def follow(parent: int) -> None:
    """End this process, whatever it is doing, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def listed() -> None:
    """Print all contenders that can run here, as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(found()), file=answers, flush=True)


if __name__ == "__main__":
    threading.Thread(target=follow, args=[int(sys.argv[1])], daemon=True).start()
    main(sys.argv[2]) if len(sys.argv) > 2 else listed()
