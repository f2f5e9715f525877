"""The check, after the build, of all links from one page of the site to another."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, the places in it that links can lead to, and its pictures without a description."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.targets: set[str] = set()
        self.undescribed: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        found = dict(attrs)
        self.targets |= {str(found[key]) for key in ("id", "name") if found.get(key)}
        self.links += [link for key in ("href", "src") if (link := found.get(key))]
        if tag == "img" and not found.get("alt"):
            self.undescribed.append(str(found.get("src")))


def flaws(site: Path) -> Iterator[str]:
    """Yield a sentence for each link into the built site that leads nowhere, and for each picture without alt text."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        yield from (f"{here}: the picture {source} has no alt text" for source in page.undescribed)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{here}: {link} leads to no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].targets:
                yield f"{here}: {link} leads to no place in its page"
