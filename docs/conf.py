"""Configuration of Sphinx: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for docs._ext

from docs._ext import sources
from polybn import __version__

project = "PolyBN"
author = "The PolyBN maintainers"
copyright = "The PolyBN maintainers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "numpydoc",
    "myst_nb",  # it has myst_parser within
    "sphinx_copybutton",
    "docs._ext.directives",
]
exclude_patterns = ["_build", "examples"]

nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(numpy|typing|collections|hypothesis|fractions)\..*")]

highlight_language = "none"  # for blocks without a language, which hold output

html_theme = "furo"
html_title = f"PolyBN {__version__}"
html_static_path = ["_static"]
html_css_files = ["polybn.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks show what is saved in them; tests/test_notebooks.py runs them

linkcode_resolve = sources.link

# Readers need the shapes of arrays, which docstrings give and annotations do not.
autodoc_typehints = "none"
numpydoc_show_class_members = False
# All checks but these: sections that a docstring may do without (EX01, SA01, ES01), what tests/test_docstrings.py
# checks with fewer words (GL08, PR01, PR04, PR07, RT03), fields and data that a sentence explains (GL02, SS03,
# SS06), and descriptions that begin with a dtype or a formula (PR08, RT04).
numpydoc_validation_checks = {
    "all", "EX01", "SA01", "ES01", "GL08", "PR01", "PR04", "PR07", "RT03", "GL02", "SS03", "SS06", "PR08", "RT04",
}  # fmt: skip

# In modules for authors of backends and of tests, one line for each function is enough.
numpydoc_validation_exclude = {r"conformance\.oracle\.", r"polybn\.(arguments|options)\.", r"spec\.traits_of$"}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
