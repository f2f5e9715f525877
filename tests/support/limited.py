"""A process with little memory and little time, which inspects model files one by one and says how each ended."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys

from polybn import cli

MEMORY = 3 * 2**30
"""Bytes of address space; PyTorch alone maps more than one and a half gibibytes."""
SECONDS = 60


def main(names: list[str]) -> None:
    """Inspect files, each as the command line does; print a list of exit code, output and errors."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    print(json.dumps([_inspect(name) for name in names]))  # noqa: T201


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
