"""Build the slides of the course, notebooks/slides.md, as one HTML page that needs no network.

    python tools/slides.py                  # writes build/slides.html
    python tools/slides.py --build FOLDER

Slides are separated by lines of three dashes, and each begins with its heading. From a line that
begins with "Note:" on, the rest is what the speaker says. A figure is a line of its own,

    ![a piece of its alt text](03_distilling_later_tasks.ipynb)

and is taken from the committed outputs of that notebook; the piece must fit one figure only. A
figure of docs/ is given with all of its alt text: ![...](../docs/forgetting.png).

Keys on the page: arrows, page keys, space, Home and End move; n shows the notes. A click moves on,
and back in the left quarter. Printed, each slide is a page.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import mistune
import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook
from run_notebooks import with_mathml

from csd_lib.course.plots import BLUE, ORANGE
from csd_lib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "notebooks" / "slides.md"
FIGURE = re.compile(r"^!\[(.+)\]\((\S+\.(?:ipynb|png))\)$", re.MULTILINE)
WIDE = 1.5  # a figure with a larger ratio of width to height stands below the text, not beside it

STYLE = f"""
@page {{ size: 1280px 720px; margin: 0; }}
* {{ box-sizing: border-box; }}
html, body {{ margin: 0; background: #fff; color: #000; }}
body {{ font: 30px/1.35 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }}
section {{ width: 1280px; height: 720px; padding: 36px 56px 48px; position: relative;
  display: flex; flex-direction: column; overflow: hidden; break-after: page; }}
h1, h2 {{ margin: 0 0 18px; color: {BLUE}; line-height: 1.15; font-size: 44px; }}
h1 {{ font-size: 60px; margin-top: 120px; }}
p, ul, ol, table, pre {{ margin: 0 0 18px; }}
li {{ margin-bottom: 10px; }}
strong {{ color: {BLUE}; }}
table {{ border-collapse: collapse; font-size: 28px; }}
th, td {{ padding: 7px 22px 7px 0; text-align: left; border-bottom: 2px solid #ccc; }}
code, pre {{ font-family: "Liberation Mono", Consolas, monospace; font-size: 28px; }}
math {{ font-size: 32px; }}
.content {{ flex: 1; min-height: 0; display: flex; gap: 32px; }}
.below {{ flex-direction: column; gap: 6px; }}
.beside .text {{ flex: 0 0 46%; }}
.words {{ font-size: 36px; }}
.words math {{ font-size: 42px; }}
.words table {{ font-size: 34px; }}
.figures {{ flex: 1; min-height: 0; min-width: 0; display: flex; gap: 24px; }}
.figures img {{ flex: 1; min-width: 0; min-height: 0; height: 100%; object-fit: contain; }}
.number {{ position: absolute; right: 24px; bottom: 12px; margin: 0; font-size: 22px;
  color: #555; }}
aside {{ display: none; }}
@media screen {{
  .moving {{ overflow: hidden; }}
  .moving section {{ position: absolute; left: var(--left); top: 0; outline: none;
    transform-origin: 0 0; transform: scale(var(--scale)); }}
  .moving section:not(.shown) {{ display: none; }}
  .notes section.shown + aside {{ display: block; position: fixed; left: 0; right: 0; bottom: 0;
    height: 28%; overflow: auto; padding: 12px 40px; background: #fff;
    border-top: 6px solid {ORANGE}; font-size: 24px; }}
}}
"""

SCRIPT = """
const slides = [...document.querySelectorAll("section")];
let shown = 0;
function fit() {
  const height = innerHeight * (document.body.classList.contains("notes") ? 0.72 : 1);
  const scale = Math.min(innerWidth / 1280, height / 720);
  document.body.style.setProperty("--scale", scale);
  document.body.style.setProperty("--left", (innerWidth - 1280 * scale) / 2 + "px");
}
function show(number) {
  shown = Math.max(0, Math.min(slides.length - 1, number));
  slides.forEach((slide, i) => slide.classList.toggle("shown", i === shown));
  history.replaceState(null, "", "#slide-" + (shown + 1));
  slides[shown].focus({ preventScroll: true });
}
const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1,
  ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -slides.length, End: slides.length };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "n") { document.body.classList.toggle("notes"); fit(); }
  else if (event.key in steps) show(shown + steps[event.key]);
  else return;
  event.preventDefault();
});
addEventListener("click", (event) => {
  if (event.target.closest("a, aside") || String(getSelection())) return;
  show(shown + (event.clientX < innerWidth / 4 ? -1 : 1));
});
addEventListener("resize", fit);
addEventListener("hashchange", () => show(Number(location.hash.slice(7)) - 1));
document.body.classList.add("moving");
fit();
show((Number(location.hash.slice(7)) || 1) - 1);
"""


@dataclass(frozen=True)
class Figure:
    """One figure of a committed notebook, or of docs/."""

    alt: str
    png: str  # base64

    @property
    def ratio(self) -> float:
        """Width over height, from the head of the PNG."""
        head = base64.b64decode(self.png[:64])
        return int.from_bytes(head[16:20]) / int.from_bytes(head[20:24])


def find_figure(piece: str, name: str) -> Figure:
    """Return the one figure of a notebook whose alt text contains a piece; or a PNG itself.

    Raises:
        ValueError: if there is no such file, or not exactly one such figure.
    """
    path = SOURCE.parent / name
    if not path.is_file():
        raise ValueError(f"there is no {'notebook' if path.suffix == '.ipynb' else 'file'} {name}")
    if path.suffix == ".png":
        return Figure(piece, base64.b64encode(path.read_bytes()).decode())
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [
        Figure(output.metadata["image/png"]["alt"], "".join(output.data["image/png"].split()))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    found = [figure for figure in figures if piece in figure.alt]
    if len(found) != 1:
        raise ValueError(f"{len(found)} figures of {name} have {piece!r} in their alt text, not 1")
    return found[0]


def slide_page(source: str, number: int, count: int) -> str:
    """Return one slide and its notes as HTML.

    Args:
        source: the slide's Markdown, formulas already MathML.
        number: of the slide, from 1.
        count: of all slides.

    Raises:
        ValueError: for a figure that cannot be found, or a slide without a heading.
    """
    to_html = mistune.create_markdown(escape=False, plugins=["table"])
    shown, _, note = source.strip().partition("\nNote:")
    heading = re.match(r"##? .+\n?", shown)
    if not heading:
        raise ValueError("it does not begin with a heading of level 1 or 2")
    figures = [find_figure(*found) for found in FIGURE.findall(shown)]
    text = to_html(FIGURE.sub("", shown[heading.end() :]))
    images = "".join(
        f'<img src="data:image/png;base64,{figure.png}" alt="{html.escape(figure.alt)}">'
        for figure in figures
    )
    beside = len(figures) == 1 and figures[0].ratio < WIDE
    layout = "beside" if beside else "below" if figures else "words"
    return (
        f'<section id="slide-{number}" tabindex="-1" aria-label="Slide {number} of {count}">\n'
        f"{to_html(heading[0])}"
        f'<div class="content {layout}">\n'
        f'<div class="text">{text}</div>\n'
        + (f'<div class="figures">{images}</div>\n' if images else "")
        + f'</div>\n<p class="number">{number} / {count}</p>\n</section>\n'
        f'<aside aria-label="Notes for slide {number}">{to_html(note)}</aside>\n'
    )


def page(source: str) -> str:
    """Return all slides as one HTML page.

    Raises:
        ValueError: if a slide cannot be built; the message names it.
    """
    cells = [new_markdown_cell(slide) for slide in re.split(r"^---$", source, flags=re.MULTILINE)]
    slides = [cell.source for cell in with_mathml(new_notebook(cells=cells)).cells]
    title = source.splitlines()[0].lstrip("# ")
    sections = []
    for number, slide in enumerate(slides, start=1):
        try:
            sections.append(slide_page(slide, number, len(slides)))
        except ValueError as error:
            raise ValueError(f"slide {number}: {error}") from error
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(sections)}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def main() -> None:
    """Write the page, or say in one line what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder for the page")
    folder = parser.parse_args().build.resolve()
    try:
        text = page(SOURCE.read_text("utf-8"))
    except ValueError as error:
        sys.exit(f"error: {SOURCE.name}, {error}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "slides.html"
    write_atomically(path, lambda partial: partial.write_text(text, "utf-8"))
    print(f"{path}: {text.count('<section')} slides, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
