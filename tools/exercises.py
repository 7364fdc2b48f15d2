"""Make the students' copies of the exercises, and those inside chapters, from the solved notebooks.

    python tools/exercises.py                            # part of `make notebooks`
    python tools/exercises.py --check                    # fail if a copy is not up to date
    python tools/exercises.py --graded FOLDER            # copies that give nothing away

The solved notebooks in notebooks/solutions are the only source. nbgrader clears what stands between
BEGIN SOLUTION and END SOLUTION, and the written answers; the code goes into the folded cell below.

Copies for grading have no folded solutions. Where a guess comes first they do not tell what was
measured: no folded value, no cell that compares with it, and nothing of what follows the hints.

A chapter has an exercise where one of its cells has the id core-2-2: that cell and the three after
it (stub, checker, hints with the folded solution) are those of exercise 2.2.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "notebooks"
SOLVED, STUDENT = CHAPTERS / "solutions", CHAPTERS / "exercises"
STUB = "# Your code here, in place of the dots.\n..."
MARK = "<!-- solution -->"
FOLDED_SOLUTION = f"<details>\n<summary>Solution</summary>\n\n{MARK}\n\n</details>"
FOLDED_VALUE = re.compile(
    r"<details>\n<summary>Expected value</summary>.*?</details>\n*", flags=re.DOTALL
)
GUESS = "folded away below, because you guess first."  # on the cards of such exercises


def student_copy(solved: NotebookNode, graded: bool = False) -> NotebookNode:
    """Return a copy with stubs instead of solutions, and without outputs.

    Args:
        solved: a notebook of ``notebooks/solutions``.
        graded: leave the folded solutions out, and what gives a guess away.
    """
    notebook = copy.deepcopy(solved)
    if graded:
        keep_the_guess_open(notebook)
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


def keep_the_guess_open(notebook: NotebookNode) -> None:
    """Where a card asks for a guess, take out what was measured, and all that follows the hints."""
    kept, guessing, told = [], False, False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if told:  # a cell may end with the heading of what comes next
                heading = re.search(r"^## ", cell.source, flags=re.MULTILINE)
                cell.source = cell.source[heading.start() :] if heading else ""
            if cell.source.startswith("## "):
                guessing, told = GUESS in cell.source, False
            told = told or (guessing and "<summary>Hint 1" in cell.source)
            cell.source = cell.source.replace(GUESS, "not told here, because you guess first.")
            cell.source = FOLDED_VALUE.sub("", cell.source)
        given_away = told if cell.cell_type == "code" else not cell.source
        if not given_away and not (guessing and "session.check(" in cell.source):
            kept.append(cell)
    notebook.cells = kept


def places() -> dict[str, str]:
    """Return which chapter holds which exercise: a file's name by the exercise's number."""
    found = {}
    for path in sorted(CHAPTERS.glob("*.ipynb")):
        for number in re.findall(r'"id": "core-(\d)-(\d)"', path.read_text("utf-8")):
            found[".".join(number)] = path.name
    return found


def say_where(notebook: NotebookNode) -> None:
    """Say in a student's copy which exercises stand in a chapter, too."""
    chapters = places()
    for cell in notebook.cells:
        number = re.match(r"## Exercise (\S+):", cell.source)
        if cell.cell_type == "markdown" and number and number[1] in chapters:
            name = chapters[number[1]]
            heading, rest = cell.source.split("\n", 1)
            where = f"[notebook {name[1]}](../{name})"
            cell.source = (
                f"{heading}\n\n*This one is in {where}, where it matters. If you have solved it "
                f"there, copy your function.*\n{rest}"
            )


def core_cells(number: str) -> list[NotebookNode]:
    """Return the four cells of one exercise as they stand in a chapter: card, stub, check, help."""
    (path,) = SOLVED.glob(f"0{number[0]}*.ipynb")
    cells = student_copy(nbformat.read(path, as_version=4)).cells
    name = number.replace(".", "-")
    start = next(i for i, c in enumerate(cells) if c.source.startswith(f"## Exercise {number}:"))
    stub = next(i for i, c in enumerate(cells) if c.id == f"solution-{name}")
    card, answer, check, hints = cells[start], cells[stub], cells[stub + 1], cells[stub + 2]
    card.source, check.source = "#" + card.source, re.search(r"course\..+", check.source)[0]
    if places()[number][1] != number[0]:  # it has the number of another chapter
        heading, rest = card.source.split("\n", 1)
        others = f"[exercises {number[0]}](exercises/{path.name})"
        card.source = f"{heading}\n\n(It is one of {others}.)\n{rest}"
    for cell, part in ((card, ""), (answer, "-answer"), (check, "-check"), (hints, "-help")):
        cell.id = f"core-{name}{part}"
    return [card, answer, check, hints]


def with_exercises(chapter: NotebookNode) -> NotebookNode:
    """Return a chapter with the exercises that it names, as the solved notebooks have them."""
    notebook = copy.deepcopy(chapter)
    old = {cell.id: cell for cell in notebook.cells}
    cells = []
    for cell in notebook.cells:
        found = re.fullmatch(r"core-(\d)-(\d)", cell.id)
        if found:
            cells += core_cells(".".join(found.groups()))
        elif not cell.id.startswith("core-"):
            cells.append(cell)
    for cell in cells:
        if cell.cell_type == "code" and cell.id.startswith("core-") and cell.id in old:
            kept = old[cell.id]  # with its outputs
            cell.update(outputs=kept.outputs, execution_count=kept.execution_count)
    notebook.cells = cells
    return notebook


def main() -> None:
    """Write the copies, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--graded", type=Path, metavar="FOLDER", help="copies for grading")
    arguments = parser.parse_args()
    folder = arguments.graded or STUDENT
    folder.mkdir(parents=True, exist_ok=True)
    stale = {*folder.glob("*.ipynb")}
    made = {}
    for path in sorted(SOLVED.glob("*.ipynb")):
        notebook = student_copy(nbformat.read(path, as_version=4), graded=bool(arguments.graded))
        if not arguments.graded:
            say_where(notebook)
        made[folder / path.name] = notebook
    if not arguments.graded:
        for path in sorted(CHAPTERS.glob("*.ipynb")):
            made[path] = with_exercises(nbformat.read(path, as_version=4))
    for target, notebook in made.items():
        text = nbformat.writes(notebook) + "\n"
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            stale.discard(target)
        elif arguments.check:
            stale.add(target)
        else:
            target.write_text(text, encoding="utf-8")
            stale.discard(target)
    if stale:
        names = ", ".join(sorted(str(path) for path in stale))
        sys.exit(f"error: {names}: not what is in {SOLVED.name}")


if __name__ == "__main__":
    main()
