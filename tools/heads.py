"""Write the same head into every notebook: the way to Google Colab and the set-up cell.

    python tools/heads.py            # write them (make heads)
    python tools/heads.py --check    # exit code 1 if a notebook has another head

Both are made from the repository and the version in csd_lib/__init__.py. A chapter's first cell
also gets its reading time, from its words and cells. All else, and all outputs, stay as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from csd_lib import REPOSITORY, TAG, __version__
from csd_lib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "notebooks/exercises", "notebooks/solutions")
FIRST_LINE = "# Run this first, as often as you like: it finds csd_lib, picks a mode and says why."
WHEEL = f"csd_lib-{__version__}-py3-none-any.whl"
SETUP = f"""{FIRST_LINE}
import sys
from pathlib import Path

kits = [str(f) for f in Path("x").absolute().parents if (f / "csd_lib/course").is_dir()]
sys.path[:0] = [kit for kit in kits[:1] if kit not in sys.path]
from csd_lib import course
from csd_lib.course import plots

session = course.start(keep_in_drive=False)  # True: keeps runs in your Google Drive"""
# How fast a chapter is read: slowly, with formulas to follow and figures to look at. Chosen so that
# the chapters come out near what their readers needed: at one speed the short ones were right and
# the long ones 15 to 40 % too short, for who reads longer reads more slowly, and goes back.
WORDS_A_MINUTE, CELLS_A_MINUTE = 60, 2
FRESH = 25  # minutes; two thirds of the speed are left after them


def notebook_paths() -> list[Path]:
    """Return all notebooks of the kit."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]


def badge(notebook: NotebookNode, place: str) -> str:
    """Return how to open a notebook in Google Colab, as text: a picture would need a network.

    A kit without an address has no link that works, and says so.
    """
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ").split(":")[0]
    if REPOSITORY.startswith("YOUR_ACCOUNT/"):
        return (
            f"*Google Colab*: this kit is not published yet, so there is no link. Upload this "
            f"notebook and `{WHEEL}` to Colab, and run `%pip install -q --no-deps {WHEEL}` there "
            f"before the next cell."
        )
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{TAG}/{place}"
    release = f"https://github.com/{REPOSITORY}/releases/download/{TAG}/{WHEEL}"
    return (
        f"[**Open “{title}” in Google Colab**]({address}), and run `%pip install -q --no-deps "
        f"{release}` there before the next cell."
    )


def reading_minutes(notebook: NotebookNode) -> int:
    """Return how long a chapter takes to read, from its words and code cells, in whole minutes."""
    texts = [cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown"]
    shown = re.sub(r"<details>.*?</details>|\$\$.*?\$\$", "", "\n".join(texts), flags=re.DOTALL)
    words = len(re.findall(r"[^\W_]+", shown))
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    minutes = words / WORDS_A_MINUTE + code / CELLS_A_MINUTE
    return round(minutes + 0.5 * max(0, minutes - FRESH))


def exercise_minutes(notebook: NotebookNode) -> int:
    """Return the minutes that the cards of a notebook's exercises ask for, added up."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    cards = re.findall(r"^#+ Exercise .*?\*\*Time\*\*:\s*(\d+)", text, re.DOTALL | re.MULTILINE)
    return sum(map(int, cards))


def write_time(notebook: NotebookNode) -> None:
    """Put the measured minutes into a chapter's first cell, where it says **Time**."""
    line = f"**Time**: {reading_minutes(notebook)} minutes to read (by its words and code cells)"
    if minutes := exercise_minutes(notebook):
        line += f", and {minutes} for the exercises inside"
    first, old = notebook.cells[0], re.compile(r"\*\*Time\*\*:.*?\.(?= |$)", re.DOTALL)
    first["source"] = old.sub(f"{line}.", first.source)


def write_head(notebook: NotebookNode, place: str) -> None:
    """Put the badge and the set-up cell in front of a notebook's other code cells.

    Args:
        notebook: changed in place.
        place: its path in the repository.
    """
    cells = [cell for cell in notebook.cells if cell.get("id") != "badge"]
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    if not cells[first].source.startswith(FIRST_LINE):
        cells.insert(first, new_code_cell())
    cells[first].update(id="setup", source=SETUP)
    cells.insert(first, new_markdown_cell(badge(notebook, place), id="badge"))
    notebook.cells = cells


def main() -> None:
    """Write the heads, or say which notebooks have another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    texts, readme = {}, ROOT / "README.md"
    listed = readme.read_text("utf-8")
    for path in notebook_paths():
        place = path.relative_to(ROOT).as_posix()
        notebook = nbformat.read(path, as_version=4)
        write_head(notebook, place)
        if path.parent.name == "notebooks":
            write_time(notebook)
            row = rf"(\]\({place}\) .*\| )\d+( min \|)"
            listed = re.sub(row, rf"\g<1>{reading_minutes(notebook)}\2", listed)
        texts[path] = nbformat.writes(notebook) + "\n"
    texts[readme] = listed
    differ = [path for path, text in texts.items() if text != path.read_text("utf-8")]
    if check and differ:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in differ)
        sys.exit(f"error: make heads would change {names}")
    for path in differ:
        write_atomically(path, lambda partial, t=texts[path]: partial.write_text(t, "utf-8"))
    print(f"heads: {len(differ)} files changed")


if __name__ == "__main__":
    main()
