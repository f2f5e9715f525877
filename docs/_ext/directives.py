"""The Sphinx extension: directives for generated text, formulas in MathML, and a check of all links."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

from docs._ext import (
    agreement,
    bench,
    budget,
    clauses,
    commands,
    dask_scaling,
    dialects,
    exports,
    links,
    members,
    pictures,
    sources,
    support,
)

DRAWN = Path("_build") / "pictures"
GENERATED = {
    "specification": clauses.specification,
    "bench": bench.table,
    "bench-older": bench.means,
    "budget": budget.table,
    "budget-step": budget.steps,
    "support": support.table,
    "commands": commands.to_markdown,
    "disagreement": pictures.disagreement_table,
    "runs": pictures.runs_table,
    "agreement": agreement.table,
    "dialects": dialects.table,
    "dialect-facts": dialects.facts,
    "conversions": dialects.conversions,
    "exports": exports.table,
    "dask-scaling": dask_scaling.table,
}


class Generated(SphinxDirective):
    """``generated``: text made from another source, in the markup language of the page around it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed text."""
        found: list[nodes.Node] = self.parse_text_to_nodes(GENERATED[self.arguments[0]](), allow_section_headings=True)
        return found


class Members(SphinxDirective):
    """``members``: the public names of a module, each as autodoc describes it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the descriptions."""
        found: list[nodes.Node] = self.parse_text_to_nodes(members.to_rst(self.arguments[0]))
        return found


class Pages(TocTree):
    """``pages``: a toctree that ignores entries without a page, because deleting a backend deletes its page."""

    def run(self) -> list[nodes.Node]:
        """Return the toctree."""
        self.env.note_reread()
        self.content: StringList = StringList([e for e in self.content if e in self.env.found_docs], "pages")
        found: list[nodes.Node] = super().run()
        return found


class Picture(SphinxDirective):
    """``picture``: a picture drawn from a record, for light and for dark pages; the content is its caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the two pictures and the caption."""
        figure = nodes.figure()
        for theme in ("light", "dark"):
            uri = f"/{DRAWN.as_posix()}/{self.arguments[0]}-{theme}.svg"
            figure += nodes.image(uri=uri, alt=self.options["alt"], classes=[f"only-{theme}"])
        figure += nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
        return [figure]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, the renderer of formulas and the check of links."""
    app.add_directive("generated", Generated)
    app.add_directive("members", Members)
    app.add_directive("pages", Pages)
    app.add_directive("picture", Picture)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("builder-inited", lambda app: pictures.draw(Path(app.srcdir) / DRAWN))
    app.connect("html-collect-pages", sources.pages)
    app.connect("build-finished", _check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# Browsers draw MathML themselves, so that formulas need no script, font or picture, and nothing from another host.
def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _check_links(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for flaw in links.flaws(Path(app.outdir)):
            getLogger(__name__).warning(flaw)
