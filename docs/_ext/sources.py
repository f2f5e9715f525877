"""Sources as pages of the site, so that a clause and a function can link to a line, on any host or none."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[2]


def pages(_app: object) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file of polybn and tests, with a link target at each line, for html-collect-pages."""
    formatter = HtmlFormatter(lineanchors="L", anchorlinenos=True, cssclass="highlight")
    for path in sorted(path for folder in ("polybn", "tests") for path in (ROOT / folder).glob("**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        body = highlight(path.read_text(encoding="utf-8"), PythonLexer(), formatter)
        # Pygments writes L-12; the usual form, on GitHub for example, is L12.
        lines = body.replace('"L-', '"L').replace('"#L-', '"#L')
        context = {"title": name, "body": f"<h1>{name}</h1>{lines}"}
        yield f"sources/{name}", context, "page.html"


def link(domain: str, info: dict[str, str]) -> str | None:
    """Return the link from a page in api/ to the definition of a public name, for Sphinx's linkcode."""
    if domain != "py" or not info["module"]:
        return None
    found: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    try:
        path = Path(inspect.getsourcefile(found) or "").relative_to(ROOT)
        line = inspect.getsourcelines(found)[1]
    except (TypeError, OSError, ValueError):  # data, or a name from elsewhere
        return None
    return f"../sources/{path.as_posix()}.html#L{line}"
