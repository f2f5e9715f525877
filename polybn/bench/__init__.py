"""Fair timing: every contender in a process of its own, one active at a time, and ratios taken round by round.

In one process, the threads of one library that still spin are timed as the slowness of the next. Here all others are
blocked on a pipe. Their order is another one in each round, and a ratio is that of two times of one round, since a
shared machine changes its speed from second to second. The contender that all are compared with runs in two processes;
how far their ratio lies from 1 is the noise below which nothing is said.
"""

from polybn.bench.contenders import Found, discover
from polybn.bench.record import Record, load
from polybn.bench.rounds import Plan, run
from polybn.bench.tasks import SHAPES, Task

__all__ = ["SHAPES", "Found", "Plan", "Record", "Task", "discover", "load", "run"]
