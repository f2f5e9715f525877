"""Where all commands write, and how they name themselves in hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

# Without markup: a directory may well be called "runs/[lr=1]".
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)


def shown(text: str) -> str:
    """Return a line that may hold names from a file with everything unprintable escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def hint(*words: object) -> str:
    """Return a command line of polybn that works when the user pastes it into the same shell."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    called = sys.argv[0]
    if Path(called).name != "polybn":  # python -m polybn, or from another program
        return [sys.executable, "-m", "polybn"]
    found = shutil.which("polybn")
    on_path = os.sep not in called or (found is not None and Path(found).resolve() == Path(called).resolve())
    return ["polybn"] if on_path else [called]
