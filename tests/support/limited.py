"""A process with little memory and little time, which inspects model files one by one and says how each ended.

Each file is inspected twice: the first time may import libraries, and the memory of the second one is measured.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from pathlib import Path

from polybn import cli

MEMORY = 3 * 2**30
"""Bytes of address space; PyTorch alone maps more than one and a half gibibytes."""
SECONDS = 60


def main(names: list[str]) -> None:
    """Inspect files, each as the command line does; print a list of exit code, output, errors and memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    print(json.dumps([(*_inspect(name), _measure(name)) for name in names]))  # noqa: T201


def _measure(name: str) -> int:
    """Return by how many bytes the peak of the process's resident memory is above its beginning."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    _inspect(name)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _inspect(name: str) -> tuple[object, str, str]:
    sys.argv = ["polybn", "inspect", name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit:
            return exit.code, out.getvalue(), err.getvalue()
        except BaseException as error:
            return repr(error), out.getvalue(), err.getvalue()
    return None, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
