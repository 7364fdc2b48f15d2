"""The built site in a real browser: make site. It leaves screenshots in build/site-pictures/."""

import re
import subprocess
import sys
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup

from csd_lib import TAG
from csd_lib.losses import csd_loss
from csd_lib.retrieval import recall_at_k, wrong_before_right

ROOT = Path(__file__).resolve().parent.parent.parent
SITE, PICTURES = ROOT / "build" / "site", ROOT / "build" / "site-pictures"
AXE = ROOT / "build" / "site-env" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = [path for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts]
PLACES = [path.relative_to(SITE).as_posix() for path in PAGES]
WIDE, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
# What a page must do once it has been read, as a list of what it does not.
LOOK = """() => {
  const bad = [];
  for (const image of document.querySelectorAll("main img")) {
    if (!image.naturalWidth) bad.push(`no picture: ${image.src}`);
    if (!image.alt.trim()) bad.push(`no alternative text: ${image.src}`);
  }
  for (const math of document.querySelectorAll("main .math"))
    if (!math.querySelector("mjx-container")) bad.push(`not typeset: ${math.textContent}`);
  for (const error of document.querySelectorAll("mjx-merror"))
    bad.push(`formula: ${error.textContent}`);
  return bad;
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def visit(browser, address):
    """A function that opens a page; ``page.bad`` collects what goes wrong on it."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")

    def opened(place):
        page = context.new_page()
        page.bad = bad = []
        page.on("console", lambda m: m.type in ("error", "warning") and bad.append(m.text))
        page.on("pageerror", lambda error: bad.append(f"JavaScript: {error}"))
        page.on("request", lambda r: is_outside(r.url) and bad.append(f"outside: {r.url}"))
        page.on("response", lambda r: r.status >= 400 and bad.append(f"{r.status}: {r.url}"))
        page.goto(f"{address}/{place}")
        page.wait_for_load_state("networkidle")
        page.evaluate("() => window.MathJax?.startup?.promise")
        return page

    def is_outside(url):
        return not url.startswith((address, "data:", "blob:"))

    yield opened
    context.close()


def faults(page):
    """Everything that is wrong with a page, light on a desk and dark on a phone."""
    bad = [*page.bad, *page.evaluate(LOOK)]
    page.add_script_tag(path=AXE)
    for mode, viewport in (("light", WIDE), ("dark", PHONE)):
        page.set_viewport_size(viewport)
        page.wait_for_timeout(600)  # the theme then looks anew at what must scroll
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > viewport["width"]:
            bad.append(f"{wide} pixels wide on {viewport['width']}")
        page.emulate_media(color_scheme=mode)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{mode}'")
        found = page.evaluate("axe.run('main', {resultTypes: ['violations']})")["violations"]
        bad += [
            f"{mode}: {rule['id']}: {node['html'][:200]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
    return bad


@cache
def soup(path):
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def test_every_page_is_there_and_no_answer():
    sources = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "notebooks/*.ipynb"]
    sources += ["notebooks/exercises/*.ipynb", "notebooks/*.md", "site/*.md"]
    files = [file for pattern in sources for file in ROOT.glob(pattern)]
    answers = {"INSTRUCTORS", "slides"}
    pages = {file.relative_to(ROOT).with_suffix(".html").as_posix() for file in files}
    pages -= {f"notebooks/{name}.html" for name in answers}
    assert len(pages) > 30 and pages <= set(PLACES)
    made = [path for path in SITE.rglob("*") if "_static" not in path.parts]
    assert [p for p in made if p.stem in answers or "solutions" in p.parts] == []
    assert (SITE / "index.html").read_text() == (SITE / "README.html").read_text()


@pytest.mark.parametrize("place", PLACES)
def test_page_is_sound(visit, place):
    """No error, nothing from outside, alt texts, formulas, a phone's width, no fault for axe."""
    page = visit(place)
    assert page.locator("h1").first.inner_text().strip()
    assert faults(page) == []


def test_an_unsound_page_turns_this_check_red(visit):
    broken = SITE / "broken.html"
    broken.write_text(
        '<html lang="en" data-theme="light"><title>x</title><script>console.error("told")</script>'
        '<script src="https://example.org/x.js"></script><script>nothing()</script>'
        '<main><h1>x</h1><div style="width: 700px">wide</div><img src="missing.png">'
        '<p style="color: #ccc; background: #fff">pale</p><span class="math">x</span></main>'
        "<script>matchMedia('(prefers-color-scheme: dark)').onchange = (e) => "
        "document.documentElement.dataset.theme = e.matches ? 'dark' : 'light'</script></html>"
    )
    try:
        bad = " ".join(faults(visit("broken.html")))
    finally:
        broken.unlink()
    parts = ["told", "outside: https://example.org", "JavaScript: ", "404: ", "no picture"]
    parts += ["no alternative", "not typeset: x", "pixels wide on 390", "dark: color-contrast"]
    assert [part for part in parts if part not in bad] == []


@pytest.mark.parametrize("path", PAGES, ids=PLACES)
def test_links_hold(path):
    links = [tag["href"] for tag in soup(path).select("a[href]")]
    assert links
    for link in links:
        place, anchor = urldefrag(link)
        if re.match(r"[a-z]+:", place):
            continue
        target = (path.parent / unquote(place)).resolve() if place else path
        assert target.is_file() and SITE in target.parents, link
        if anchor and target.suffix == ".html":
            assert soup(target).find(id=unquote(anchor)), link


@pytest.mark.parametrize("place", [place for place in PLACES if "/0" in place])
def test_a_notebook_arrives_whole(place):
    """Every code cell, printed line and figure of a notebook is on its page."""
    cells = nbformat.read((ROOT / place).with_suffix(".ipynb"), as_version=4).cells
    page = soup(SITE / place)
    code = [tag.get_text().strip() for tag in page.select("div.cell_input")]
    assert code == [cell.source.strip() for cell in cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert [tag["alt"] for tag in page.select("div.cell_output img")] == figures
    text = page.select_one("main").get_text()
    printed = "".join(o.text for o in outputs if o.output_type == "stream").splitlines()
    assert [line for line in printed if line.rstrip() not in text] == []
    assert "Google Colab: this kit is not published yet" in text


def test_search_finds(visit):
    page = visit("search.html?q=triplet")
    page.locator("#search-results li").first.wait_for()
    assert page.locator("#search-results li").count() > 3
    assert faults(page) == []
    page = visit("search.html?q=aardvark")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results li").count() == 0


def example(number, part):
    """What the notebook's cell with this text defines."""
    (path,) = (ROOT / "notebooks").glob(f"0{number}*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    (source,) = (c.source for c in cells if c.cell_type == "code" and part in c.source)
    silent = SimpleNamespace(show=lambda *_: None, unit_circle=lambda *_: None)
    names = {"torch": torch, "plots": silent}
    exec(source, names)
    return SimpleNamespace(**names)


def table(page, example_id):
    rows = page.locator(f"#{example_id} tbody tr")
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def told(page, example_id):
    text = page.locator(f"#{example_id} [role=status]").inner_text()
    return re.search(r" is (\d+\.\d{4})[.:]", text).group(1)


def moves(page, label):
    """Go through a slider's options with the keyboard, from the lowest; yields each as said."""
    slider = page.get_by_label(label)
    slider.press("Home")
    for _ in range(int(slider.get_attribute("max")) + 1):
        yield float(slider.get_attribute("aria-valuetext"))
        slider.press("ArrowRight")


def test_temperature_slider_computes_as_the_library_does(visit):
    page, pencil = visit("site/sliders.html"), example(3, "def on_circle")
    before = told(page, "csd")
    similarity = pencil.s @ torch.cat([pencil.s, pencil.t]).T
    similarity[torch.eye(4, 8, dtype=torch.bool)] = -torch.inf
    seen = {}
    for temperature in moves(page, "temperature"):
        *shares, losses = table(page, "csd")
        expected = (similarity / temperature).softmax(dim=1).T.tolist()
        shown = [[0.0 if text == "–" else float(text) for text in row] for row in shares]
        for row, right in zip(shown, expected, strict=True):
            assert row == pytest.approx(right, abs=5.1e-5)
        by_library = csd_loss(pencil.s, pencil.t, pencil.labels, temperature, reduction="none")
        assert [float(text) for text in losses] == pytest.approx(by_library.tolist(), abs=5.1e-5)
        seen[temperature] = told(page, "csd")
        assert float(seen[temperature]) == pytest.approx(by_library.mean().item(), abs=5.1e-5)
    assert before == seen[0.5] and min(seen) == 0.05 and max(seen) == 2
    assert len(set(seen.values())) == len(seen) == 11 and page.bad == []


def test_neighbour_slider_computes_as_the_library_does(visit):
    page, pencil = visit("site/sliders.html"), example(4, "degrees = ")
    names = [f"{'AB'[c]} {d:g}°" for c, d in zip(pencil.labels, pencil.degrees, strict=True)]
    rows = page.locator("#search tbody th").all_inner_texts()
    assert rows == names
    too_early = wrong_before_right(pencil.points, pencil.labels).tolist()
    seen = []
    for k in moves(page, "neighbours"):
        expected = recall_at_k(pencil.points, pencil.labels, ks=(int(k),))[int(k)]
        assert float(told(page, "search")) == pytest.approx(expected, abs=5.1e-5)
        for i, (*found, hit) in enumerate(table(page, "search")):
            assert hit == ("hit" if too_early[i] < k else "miss")
            similar = [float(pencil.points[i] @ pencil.points[names.index(n)]) for n in found]
            assert similar == pytest.approx(sorted(similar, reverse=True), abs=1e-9)
            assert sorted([*found, names[i]]) == sorted(names)
        assert page.locator("#search tr:first-child td.among").count() == k
        seen.append(told(page, "search"))
    assert len(seen) == 5 and len(set(seen)) == 4 and page.bad == []


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The site as whoever publishes the kit builds it."""
    out = tmp_path_factory.mktemp("published")
    code = (
        "import sys, csd_lib; csd_lib.REPOSITORY = 'someone/csd-kit'\n"
        "from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["-W", "-q", "-c", ROOT / "site", "-d", out / "doctrees", ROOT, out / "html"]
    subprocess.run([sys.executable, "-c", code, *options], check=True)
    return out / "html"


def test_a_published_kit_links_to_colab_and_its_sources(published):
    page = soup(published / "notebooks" / "01_data_splits.html")
    colab = f"https://colab.research.google.com/github/someone/csd-kit/blob/{TAG}/notebooks"
    assert f"{colab}/01_data_splits.ipynb" in [tag["href"] for tag in page.select("a[href]")]
    page = soup(published / "docs" / "design.html")
    source = f"https://github.com/someone/csd-kit/blob/{TAG}/csd_lib/losses.py"
    assert source in [tag["href"] for tag in page.select("main a[href]")]
    here = [tag["href"] for path in PAGES for tag in soup(path).select("a[href]")]
    assert not [link for link in here if "colab.research" in link or "/blob/" in link]


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("place", ["index", "site/sliders", "notebooks/03_distilling_later_tasks"])
def test_photographs(browser, address, place, viewport, mode):
    """To be looked at; the mode is the device's."""
    context = browser.new_context(viewport=viewport, color_scheme=mode)
    page = context.new_page()
    page.goto(f"{address}/{place}.html")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    PICTURES.mkdir(parents=True, exist_ok=True)
    name = f"{Path(place).name}-{mode}-{viewport['width']}.png"
    page.screenshot(path=PICTURES / name)
    context.close()
