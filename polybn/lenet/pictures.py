"""What all pictures share: matplotlib, the formats, and writing the file."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from polybn.atomic import write_atomic
from polybn.console import check_place
from polybn.spec import DomainError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target: TypeAlias = "str | os.PathLike[str] | BinaryIO"
"""A path, whose name picks the format, or a binary file, which gets a PNG."""

# Dates and versions are left out, so that the same picture has the same bytes.
FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def check_option(command: str, option: str, path: Path, *read: Path) -> None:
    """Refuse a picture that could not be drawn, or not written, before the work for it; see ``check_place``."""
    _kind(path)
    check_place(command, option, path, *read)
    new_figure()  # which says how to get matplotlib


def check_target(target: Target) -> str:
    """Check the name of a picture, and that its directory exists; return its format."""
    if not isinstance(target, (str, os.PathLike)):
        return "png"
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        found = f"{path}, which is one" if path.is_dir() else f"{path}, and {path.parent} is no directory"
        raise DomainError(f"polybn: a picture must be a file in a directory that exists; got {found}")
    return _kind(path)


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        names = ", ".join(f".{name}" for name in FORMATS)
        raise DomainError(f"polybn: the name of a picture must end in one of {names}; got {path} (it picks the format)")
    return kind


def new_figure(**options: Any) -> Figure:
    """Make a figure, or say how to get matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"polybn: pictures need matplotlib: {sys.executable} -m pip install matplotlib") from error
    return Figure(**options)


def save(figure: Figure, target: Target, **options: Any) -> None:
    """Write a figure in the format of its name."""
    import matplotlib

    kind = check_target(target)
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "polybn"}):  # otherwise ids in an SVG file are random
        figure.savefig(data, format=kind, metadata=FORMATS[kind], **options)
    if isinstance(target, (str, os.PathLike)):
        write_atomic(target, data.getvalue())
    else:
        target.write(data.getvalue())
