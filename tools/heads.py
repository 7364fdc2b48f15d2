"""Write the same head into every notebook: the link to Google Colab and the set-up cell.

    python tools/heads.py            # write them (make heads)
    python tools/heads.py --check    # exit code 1 if a notebook has another head

Both are made from the repository and the version in csd_lib/__init__.py. All other cells, and all
outputs, stay as they are.
"""

from __future__ import annotations

import argparse
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
import importlib.util
import os
import sys
from pathlib import Path
from subprocess import call

kits = [f for f in Path("x").absolute().parents if (f / "csd_lib/course").is_dir()]
sys.path[:0] = [str(kit) for kit in kits[:1] if str(kit) not in sys.path]
if not importlib.util.find_spec("csd_lib"):
    if "google.colab" not in sys.modules:
        sys.exit("csd_lib is missing: open this notebook inside the unpacked kit")
    url = "https://github.com/{REPOSITORY}/releases/download/{TAG}/{WHEEL}"
    wheel = str([os.getenv("CSD_WHEEL") or url, *Path().glob("csd_lib-*any.whl")][-1])
    remedy = "upload {WHEEL} to Colab's files and run this again"
    if "YOUR_ACCOUNT" in wheel:
        sys.exit(f"This kit has no address (YOUR_ACCOUNT is a placeholder): {{remedy}}")
    if call([sys.executable, "-m", "pip", "install", "-qq", "--no-deps", wheel]):
        sys.exit(f"csd_lib cannot be installed from {{wheel}}: {{remedy}}")

from csd_lib import course
from csd_lib.course import plots

session = course.start(keep_in_drive=False)  # True: keeps runs in your Google Drive"""


def notebook_paths() -> list[Path]:
    """Return all notebooks of the kit."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]


def badge(notebook: NotebookNode, place: str) -> str:
    """Return a notebook's link to Google Colab, as text: a picture would need a network."""
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ").split(":")[0]
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{TAG}/{place}"
    return f"[**Open “{title}” in Google Colab**]({address})"


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
    differ = []
    for path in notebook_paths():
        place = path.relative_to(ROOT).as_posix()
        notebook = nbformat.read(path, as_version=4)
        write_head(notebook, place)
        text = nbformat.writes(notebook) + "\n"
        if text != path.read_text("utf-8"):
            differ.append(place)
            if not check:
                write_atomically(path, lambda partial, t=text: partial.write_text(t, "utf-8"))
    if check and differ:
        sys.exit(f"error: make heads would change {', '.join(differ)}")
    print(f"heads: {len(differ)} of {len(notebook_paths())} notebooks changed")


if __name__ == "__main__":
    main()
