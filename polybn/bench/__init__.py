"""Fair timing: every contender runs in a process of its own, one at a time, and ratios are taken round by round.

In one process, spinning threads of one library would slow down the next. Here all other processes are blocked on a
pipe. The order is random in each round, and both times of a ratio are from the same round, because the speed of a
shared machine changes from second to second. The reference, with which all are compared, runs in two processes: the
ratio of its two times shows the noise, and smaller differences mean nothing.
"""

from polybn.bench.contenders import Found, discover
from polybn.bench.record import Record, load
from polybn.bench.rounds import Plan, run
from polybn.bench.tasks import SHAPES, Task

__all__ = ["SHAPES", "Found", "Plan", "Record", "Task", "discover", "load", "run"]
