"""The agreement of several batch norms as a picture: a square for each pair, coloured by its share of the bounds."""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from polybn.atomic import write_atomic
from polybn.spec import DomainError

if TYPE_CHECKING:
    import os

    from polybn.conformance.agree import Agreement

FORMATS = ("png", "svg", "pdf")


def check_path(path: str | os.PathLike[str]) -> str:
    """Return the picture format that a file name ends in; refuse other names, and to go on without matplotlib."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise DomainError(
            f"polybn agree: --picture must end in {', '.join('.' + known for known in FORMATS)}; "
            f"got {Path(path).name!r} (the end of the name is the format)"
        )
    if find_spec("matplotlib") is None:
        raise ImportError('polybn agree: --picture needs matplotlib: pip install "polybn[plot]"')
    return suffix


def draw(found: Agreement, path: str | os.PathLike[str]) -> None:
    """Draw the matrix of all pairs into a .png, .svg or .pdf file."""
    form = check_path(path)
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names, size = found.names, len(found.names)
    figure = Figure(figsize=(2.6 + 1.5 * size, 2.2 + 1.1 * size), dpi=120, layout="constrained")
    axes = figure.subplots()
    # A share above 1 is a fault, so the darkest colours are kept for those.
    shades = [[math.nan if a == b else min(max(found.worst(a, b).share, 1e-3), 1e3) for b in names] for a in names]
    axes.imshow(shades, cmap="YlOrRd", norm=LogNorm(1e-3, 1e3))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if a != b:
                worst = found.worst(a, b)
                colour = "white" if worst.share > 30 else "black"
                axes.text(j, i, f"{worst.share:.2g}\n{worst.quantity}, {worst.dtype}", ha="center", va="center",
                          fontsize=9, color=colour)  # fmt: skip
    axes.set_xticks(range(size), names, rotation=20, ha="right")
    axes.set_yticks(range(size), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(
        f"Largest difference over {found.cases} calls,\nas a share of both error bounds together",
        loc="left",
        fontsize=11,
    )
    data = io.BytesIO()
    figure.savefig(data, format=form, metadata={"Software": None} if form == "png" else None)
    write_atomic(path, data.getvalue())
