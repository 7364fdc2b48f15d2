"""Make the students' copies of the exercises from the solved notebooks.

    python tools/exercises.py                            # what `make exercises` does
    python tools/exercises.py --check                    # fail if a copy is not up to date
    python tools/exercises.py --graded FOLDER            # copies without folded solutions

The solved notebooks in notebooks/solutions are the only source. nbgrader clears what stands between
BEGIN SOLUTION and END SOLUTION, and the written answers; the code goes into the folded cell below.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions

ROOT = Path(__file__).resolve().parent.parent
SOLVED, STUDENT = ROOT / "notebooks" / "solutions", ROOT / "notebooks" / "exercises"
STUB = "# Your code here, in place of the dots.\n..."
MARK = "<!-- solution -->"
FOLDED_SOLUTION = f"<details>\n<summary>Solution</summary>\n\n{MARK}\n\n</details>"


def student_copy(solved: NotebookNode, graded: bool = False) -> NotebookNode:
    """Return a copy with stubs instead of solutions, and without outputs.

    Args:
        solved: a notebook of ``notebooks/solutions``.
        graded: leave the folded solutions out.
    """
    notebook = copy.deepcopy(solved)
    ClearOutputPreprocessor().preprocess(notebook, {})
    clear = ClearSolutions(code_stub={"python": STUB}, text_stub="*Write your answer here.*")
    code = ""
    for index, cell in enumerate(notebook.cells):
        if "BEGIN SOLUTION" in cell.source:
            lines = cell.source.splitlines()
            code = "\n".join(line for line in lines if not line.strip().startswith("###"))
        if FOLDED_SOLUTION in cell.source:
            before, _, after = cell.source.partition(FOLDED_SOLUTION)
            shown = FOLDED_SOLUTION.replace(MARK, f"```python\n{code}\n```")
            cell.source = before.rstrip() + ("" if graded else "\n\n" + shown) + after
        clear.preprocess_cell(cell, {"language": "python"}, index)
        cell.metadata.pop("nbgrader", None)
        if cell.id == "badge":
            cell.source = cell.source.replace("/solutions/", "/exercises/")
    notebook.metadata.pop("csd", None)  # the stamp of the outputs
    return notebook


def main() -> None:
    """Write the copies, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--graded", type=Path, metavar="FOLDER", help="copies without solutions")
    arguments = parser.parse_args()
    folder = arguments.graded or STUDENT
    folder.mkdir(parents=True, exist_ok=True)
    stale = {path.name for path in folder.glob("*.ipynb")}
    for path in sorted(SOLVED.glob("*.ipynb")):
        notebook = student_copy(nbformat.read(path, as_version=4), graded=bool(arguments.graded))
        text, target = nbformat.writes(notebook) + "\n", folder / path.name
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            stale.discard(path.name)
        elif arguments.check:
            stale.add(path.name)
        else:
            target.write_text(text, encoding="utf-8")
            stale.discard(path.name)
    if stale:
        sys.exit(f"error: {', '.join(sorted(stale))} in {folder}: not what is in {SOLVED.name}")


if __name__ == "__main__":
    main()
