"""Where all commands write, how they show that they work, and how they name themselves in hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from polybn.atomic import write_atomic
from polybn.spec import DomainError

# Without markup: a directory may well be called "runs/[lr=1]".
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)

STANDARD_OUTPUT = Path("-")
"""The name of a file that stands for standard output, in the options of commands."""


def words_beside(*files: Path | None) -> Console:
    """Return where words for people go: to standard error if standard output is one of the files."""
    return err if STANDARD_OUTPUT in files else out


def write(path: Path, text: str) -> None:
    """Write a text to a file, or to standard output if the name is ``-``."""
    if path == STANDARD_OUTPUT:
        out.file.write(text)
        out.file.flush()
    else:
        write_atomic(path, text.encode())


def named(path: Path) -> str:
    """Return how to call a file in a sentence."""
    return "standard output" if path == STANDARD_OUTPUT else str(path)


def check_place(command: str, option: str, path: Path, *read: Path) -> None:
    """Refuse a file that cannot be written, or that is one of those to ``read``, before the work for it.

    Any other file that exists is replaced, as a whole.
    """
    if path == STANDARD_OUTPUT:
        return
    for place in read:
        if path.is_file() and place.exists() and place.resolve() in (own := path.resolve(), *own.parents):
            raise DomainError(
                f"polybn {command}: {option} must be another file than those that are read; got {path} "
                f"(it would be lost; try {path.stem}-2{path.suffix})"
            )
    if path.is_dir():
        better = path / f"report{path.suffix}"
        raise DomainError(f"polybn {command}: {option} must name a file; got {path}, a folder (try {better})")
    check_folder(command, option, path.parent, file=path)


def check_folder(command: str, option: str, folder: Path, *, file: Path | None = None) -> None:
    """Refuse a folder that cannot be written, before the work for it; unless it is for one ``file``, it may be new."""
    there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    rule, got = ("lie in", file) if file is not None else ("be", folder)
    wrong = f"polybn {command}: {option} must {rule} a folder"
    if not there.is_dir():
        raise DomainError(f"{wrong}; got {got}, and {there} is no folder")
    if file is not None and there != folder:
        raise DomainError(f"{wrong} that exists; got {got} (mkdir -p {shlex.quote(str(folder))})")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DomainError(f"{wrong} that can be written; got {got} (see ls -ld {shlex.quote(str(there))})")


def progress(words: Console) -> Progress:
    """Return a bar for long work: how much is done, of how much, and what is being done now.

    At a terminal it stays below the words; a terminal that gets no words has it alone. Elsewhere there is none.
    """
    console = words if words.is_terminal else err
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # long words are cut, and not the numbers
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False, table_column=rest),
        console=console,
        expand=True,
        transient=True,
        disable=not console.is_terminal,
    )


def whole(heading: str, *names: str) -> Column:
    """Return a column that is never narrower than its names, because they are what is typed again."""
    return Column(heading, no_wrap=True, min_width=max(map(len, (heading, *names))))


def folded(heading: str, *words: str) -> Column:
    """Return a column that breaks words that are too long, where others would be cut, but is as wide as these words."""
    longest = max((len(word) for text in words for word in text.split()), default=None)
    return Column(heading, overflow="fold", min_width=longest)


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
