"""Processes of contenders, and processes that keep cores busy; all end with the block that started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(100000): pass"
"""A program that keeps a core busy until its parent is gone, so that it ends even if the parent is killed."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLYBN_NUM_THREADS")


class Contender:
    """A process that answers questions, one line each; it ends when its input does."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        # In a group of its own, so that Ctrl-C reaches only the parent, which then ends this group. Not in a session of
        # its own: Linux may give each of these the same share of the processors, whatever the number of its threads.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
        self.gone = ""

    def ask(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Return the answer, or a reason under ``"cannot"``; after ``limit`` seconds the process is killed."""
        if self.gone:
            return {"cannot": self.gone}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(limit, self.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:  # it has ended before it could read
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if line.endswith("\n") and not late:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.end()
        self.gone = (
            f"no answer within {limit:g} s" if late else f"its process ended with code {self.process.returncode}"
        )
        return {"cannot": self.gone}

    def kill(self) -> None:
        """Kill the process and its children, such as compilers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def started(names: Mapping[str, str], threads: int | None = None) -> Iterator[dict[str, Contender]]:
    """Start a process for each entrant; ``names`` maps entrants to contenders."""
    command = [sys.executable, "-m", "polybn.bench.worker", str(os.getpid())]
    environment = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    with contextlib.ExitStack() as stack:
        running = {}
        for entrant, name in names.items():
            running[entrant] = Contender([*command, name], environment)
            stack.callback(running[entrant].end)
        yield running


@contextlib.contextmanager
def busy(count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep cores busy with other processes inside this block."""
    with contextlib.ExitStack() as stack:
        spinning = []
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())], process_group=0)
            spinning.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield spinning
