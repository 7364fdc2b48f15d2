"""The instructor's lists: common wrong answers, read from the checkers, and the answer key.

    python tools/answers.py            # write the list into notebooks/INSTRUCTORS.md
    python tools/answers.py --check    # exit code 1 if that list is not up to date

tools/bundles.py puts the answer key, made from notebooks/solutions, into the instructor's bundle,
and the chapters' quizzes as GIFT, a text that Moodle and other platforms for courses import.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode

from csd_lib.course.checkers import CHECKERS
from csd_lib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTORS = ROOT / "notebooks" / "INSTRUCTORS.md"
SOLVED = ROOT / "notebooks" / "solutions"
QUESTION = re.compile(r"^\*\*(\d)\.\*\* (.+?)(?=^\*\*\d\.\*\*|^## |\Z)", re.DOTALL | re.MULTILINE)
CHOICE = re.compile(r"<summary>\w\) (.+?)</summary>\s*([✓✗]) (.+?)\s*</details>", re.DOTALL)
MARK = "common wrong answers"


def between_marks(text: str, mark: str, content: str) -> str:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    marks = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
    rendered, places = marks.subn(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)
    if places != 1:
        sys.exit(f"error: {places} places are marked {mark!r}, expected one")
    return rendered


def known_mistakes() -> dict[str, list[str]]:
    """Return what each exercise's checker can say about a wrong answer, in the checker's order.

    The sentences are read from the checkers' source, so none is listed that a checker lacks. Parts
    that depend on the learner's answer are shown as an ellipsis.
    """
    found = {
        number: sorted(_sentences(check), key=itemgetter(0)) for number, check in CHECKERS.items()
    }
    return {number: list(dict.fromkeys(s for _, s in pairs)) for number, pairs in found.items()}


def _sentences(check: Callable[..., Any]) -> Iterator[tuple[int, str]]:
    """Find the sentences in one checker, each with its line.

    They are the keys of its mistakes, the values of its hints, and in ``raise Mistake(...)``.
    """
    module = inspect.getmodule(check)
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(check)))):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as table)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict() as table)
            ) if name in ("mistakes", "flaws", "hints"):
                texts = table.values if name == "hints" else table.keys
                yield from ((text.lineno, _text(text, module)) for text in texts)
            case ast.Dict(keys=[None, *_], values=[ast.Name(id=shared), *_]):  # {**shared, ...}
                yield from ((node.lineno, sentence) for sentence in getattr(module, shared))
            case ast.Raise(exc=ast.Call(func=ast.Name(id="Mistake"), args=[text])):
                yield node.lineno, _text(text, module)


def _text(node: ast.expr, module: ModuleType) -> str:
    """Return a text that is written out or named, with an ellipsis for what is filled in."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return getattr(module, node.id)
    return "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)


def solved_notebooks() -> list[NotebookNode]:
    """Return the solved notebooks in their order."""
    return [nbformat.read(path, as_version=4) for path in sorted(SOLVED.glob("*.ipynb"))]


def exercise_titles() -> dict[str, str]:
    """Return the title of every exercise, by its number."""
    headings = re.compile(r"^## Exercise (\S+): (.+)$", re.MULTILINE)
    cells = [cell for notebook in solved_notebooks() for cell in notebook.cells]
    return {number: title for cell in cells for number, title in headings.findall(cell.source)}


def wrong_answers() -> str:
    """Return the common wrong answers of all exercises as Markdown."""
    titles = exercise_titles()
    parts = [
        f"**{number} {titles[number]}**\n\n" + _bullets(sentences)
        for number, sentences in known_mistakes().items()
    ]
    return "\n\n".join(parts)


def answer_key() -> str:
    """Return every exercise's code, expected value, wrong answers and discussion as Markdown."""
    mistakes = known_mistakes()
    parts = ["# Answer key", "Made from the solved notebooks. For instructors; not for students."]
    for notebook in solved_notebooks():
        for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
            if cell.cell_type == "markdown":
                heading = re.search(r"^#+ Exercise.+$", cell.source, re.MULTILINE)
                parts += ["#" + heading[0]] if heading else []
                parts += _expected(cell.source)
            if not cell.metadata.get("nbgrader", {}).get("solution"):
                continue
            if cell.cell_type == "code":
                lines = [x for x in cell.source.splitlines() if not x.strip().startswith("###")]
                parts.append("```python\n" + "\n".join(lines) + "\n```")
                sentences = mistakes.get(cell.id.removeprefix("solution-").replace("-", "."))
                parts += ["Common wrong answers:", _bullets(sentences)] if sentences else []
            else:
                name = cell.id.removeprefix("answer-")
                question = before.source[before.source.index(f"**{name}.**") :]
                parts += [f"### Discussion {name}", question, "**Answer.** " + cell.source]
    return "\n\n".join(parts) + "\n"


def quizzes() -> str:
    """Return all chapters' quizzes in GIFT; each choice brings what its fold says as feedback."""
    parts = []
    for path in sorted(INSTRUCTORS.parent.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        (source, *_) = [c.source for c in cells if c.source.startswith("## Quiz")] or [""]
        for number, text in QUESTION.findall(source):
            choices = [
                f"{'=' if mark == '✓' else '~'}{_gift(choice)}#{_gift(why)}"
                for choice, mark, why in CHOICE.findall(text)
            ]
            question = _gift(text.partition("<details>")[0])
            lines = [f"::Chapter {path.name[1]}, {number}::[markdown]{question} {{", *choices, "}"]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _gift(text: str) -> str:
    """Write a text on one line, without links, and with what has a meaning in GIFT escaped."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"([\\~=#{}:])", r"\\\1", " ".join(text.split()))


def _expected(source: str) -> list[str]:
    """Find what an exercise says about the expected value: in its text, or folded away."""
    shown = re.findall(r"\*\*Expected\*\*: .+?(?=\n\n|\Z)", source, re.DOTALL)
    folded = re.findall(
        r"<summary>Expected value</summary>\s*(.+?)\s*</details>", source, re.DOTALL
    )
    return shown + [f"**Expected**: {text}" for text in folded]


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"* {sentence}" for sentence in sentences)


def main() -> None:
    """Rewrite or check the list in the instructors' guide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    text = INSTRUCTORS.read_text("utf-8")
    rendered = between_marks(text, MARK, wrong_answers())
    if check and rendered != text:
        sys.exit("error: INSTRUCTORS.md is not up to date: python tools/answers.py")
    if rendered != text:
        write_atomically(INSTRUCTORS, lambda partial: partial.write_text(rendered, "utf-8"))


if __name__ == "__main__":
    main()
