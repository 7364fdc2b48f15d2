"""The site of the kit: the README, docs and notebooks as they are, built by ``make site``.

The folder of the sources is the repository itself, so that every page keeps its place and every
link between pages holds. Nothing is executed, and a built page loads nothing from outside.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from csd_lib import REPOSITORY, TAG, __version__

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = not REPOSITORY.startswith("YOUR_ACCOUNT/")
# What of MathJax a page may ask for: the formulas, their fonts, and what its menu offers.
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts", "a11y", "sre", "ui")
PACKAGE = ROOT / "build" / "site-env" / "node_modules" / "mathjax"

project, version, release = "CSD kit", __version__, __version__
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "notebooks/*.md",
    "notebooks/*.ipynb",
    "notebooks/exercises/*.ipynb",
    "data/README.md",
    "benchmarks/README.md",
    "site/*.md",
]
# Answers stay off the site, and no folder without pages is searched for them.
exclude_patterns = ["notebooks/INSTRUCTORS.md", "notebooks/slides.md", "notebooks/solutions"]
exclude_patterns += [".*", "build", "runs", "tests", "csd_lib", "data/results"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
mathjax_path = "mathjax/es5/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": True}}  # names the version for myst-parser

html_theme = "sphinx_book_theme"
html_title = "CSD kit"
html_static_path, html_css_files, html_favicon = ["static"], ["kit.css"], "static/favicon.svg"
html_use_index, html_show_sphinx, html_sourcelink_suffix = False, False, ""
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field is at the side already
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's device
if PUBLISHED:
    html_theme_options |= {
        "repository_url": f"https://github.com/{REPOSITORY}",
        "repository_branch": TAG,
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }

# The only thing written for the site: its order. A new page joins the group that its name fits.
CONTENTS = {
    "Notebooks": ["notebooks/0*", "site/*"],
    "Exercises": ["notebooks/exercises/*"],
    "To look up": ["notebooks/GLOSSARY", "notebooks/PAPER_TO_CODE", "notebooks/*"],
    "What comes out": [
        "docs/results",
        "docs/tables",
        "docs/terms",
        "docs/fashion",
        "docs/fine-grained",
        "docs/galleries",
    ],
    "Using it": ["docs/install", "docs/command-line", "docs/api", "docs/*", "data/*"],
    "About": ["CONTRIBUTING", "CHANGELOG", "benchmarks/*"],
}


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the tables of contents to the first page; a reader sees them at the side."""
    if docname != root_doc:
        return
    listed: set[str] = set()
    for caption, patterns in CONTENTS.items():
        names = [n for p in patterns for n in sorted(app.project.docnames) if Path(n).match(p)]
        names = [n for n in dict.fromkeys(names) if n not in listed]
        listed.update(names)
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]
        source[0] += "\n\n" + "\n".join(lines) + "\n"


def add_alt_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a notebook the alternative text that its output carries.

    Raises:
        ValueError: if a notebook has more or fewer figures than its page.
    """
    path = Path(app.env.doc2path(app.env.current_document.docname))
    if path.suffix != ".ipynb":
        return
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    for image, alt in zip(doctree.findall(nodes.image), figures, strict=True):
        image["alt"] = alt


def unlink_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Let a link to a file that is no page lead to the repository, or be plain text without one."""
    folder = Path(app.env.doc2path(app.env.current_document.docname)).parent
    for link in list(doctree.findall(nodes.Element)):
        if not isinstance(link, addnodes.download_reference | addnodes.pending_xref):
            continue
        target = link["reftarget"].split("#")[0]
        if link.get("refdomain") == "doc":
            file = ROOT / f"{target}.md"
            is_page = target in app.project.docnames
        else:
            file = folder / target
            is_page = not target
        if is_page or not file.exists():
            continue  # Sphinx makes the link, or says what is wrong with it
        text = [child.deepcopy() for child in link[0].children]
        if PUBLISHED:
            place = os.path.relpath(file, ROOT)
            address = f"https://github.com/{REPOSITORY}/blob/{TAG}/{place}"
            text = [nodes.reference("", "", *text, refuri=address, internal=False)]
        link.replace_self(text)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages, and the first page where a web server looks for it."""
    if error or app.builder.name != "html":
        return
    for part in ("LICENSE", *(f"es5/{part}" for part in MATHJAX)):
        source, target = PACKAGE / part, app.outdir / "_static" / "mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Tell Sphinx when to call the functions above."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", add_alt_texts, priority=100)
    app.connect("doctree-read", unlink_sources, priority=100)  # before files to copy are listed
    app.connect("build-finished", finish)
