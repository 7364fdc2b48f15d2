"""The shape of every notebook: a sitting long, readable by everybody, nothing pasted."""

import re
import statistics
from itertools import combinations, pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
OPENING, *CHAPTERS, OWN_IMAGES, TERMS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS.append(TERMS)
SOLVED = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
STUDENT = sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb"))
EVERY = [OPENING, *CHAPTERS, OWN_IMAGES, *SOLVED, *STUDENT]


def name(path):
    return path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()


each_notebook = pytest.mark.parametrize("path", EVERY, ids=name)


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def prose(path):
    """The Markdown of a notebook, without code blocks and formulas."""
    text = "\n\n".join(cell.source for cell in cells(path, "markdown"))
    return re.sub(r"```.*?```|\$\$.*?\$\$", "", text, flags=re.DOTALL)


def unfolded(text):
    """What is read by those who open nothing."""
    return re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def code_lines(cell):
    lines = [line.strip() for line in cell.source.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_there_are_an_opening_seven_chapters_and_exercises_for_five():
    assert OPENING.name.startswith("00_") and len(CHAPTERS) == 7
    assert OWN_IMAGES.name.startswith("07_") and TERMS.name.startswith("08_")
    assert [p.name for p in SOLVED] == [p.name for p in STUDENT]
    assert [p.name[:2] for p in SOLVED] == ["01", "02", "03", "04", "05"]


@each_notebook
def test_one_sitting(path):
    notebook = nbformat.read(path, as_version=4)
    lines = [len(code_lines(cell)) for cell in cells(path, "code")]
    if path in (OPENING, OWN_IMAGES):
        assert len(notebook.cells) <= 19
    else:
        assert 25 <= len(notebook.cells) <= (62 if path in CHAPTERS else 50)
        assert statistics.median(lines) <= 6
    assert max(lines) <= 12
    assert len(re.findall(r"\w+", unfolded(prose(path)))) <= 2500
    assert path.stat().st_size <= 470_000


@each_notebook
def test_no_saved_output_shows_photographs_that_may_not_be_passed_on(path):
    for cell in cells(path, "code"):
        if 'load_dataset("cifar100")' in cell.source:
            assert not any("image/png" in output.get("data", {}) for output in cell.outputs)


@each_notebook
def test_no_code_is_hidden(path):
    for cell in nbformat.read(path, as_version=4).cells:
        hiding = {"collapsed", "jupyter", "cellView", "hide_input"} & set(cell.metadata)
        assert not hiding and "#@title" not in cell.source
        assert not {"hide-input", "hide-cell", "remove-input"} & set(cell.metadata.get("tags", []))


@each_notebook
def test_headings_are_in_order(path):
    levels = [len(h) for h in re.findall(r"^(#+) ", prose(path), flags=re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@each_notebook
def test_links_say_where_they_lead_and_lead_there(path):
    for words, target in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", prose(path)):
        assert len(words) > 4 and not re.fullmatch(r"(click )?(here|this|link)", words.lower())
        if not target.startswith("https:"):
            assert (path.parent / target).exists(), f"{words} leads to {target}"


@each_notebook
def test_every_picture_in_the_text_has_a_description(path):
    text = prose(path)
    assert "<img" not in text
    assert all(len(alt) > 30 for alt in re.findall(r"!\[([^\]]*)\]", text))


@each_notebook
def test_every_figure_is_described_in_alt_text_and_in_the_line_below_it(path):
    for cell in cells(path, "code"):
        texts = [o.get("data", {}).get("text/markdown", "") for o in cell.outputs]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata["image/png"]["alt"]
                assert len(alt) > 30 and any(alt in text for text in texts)


@pytest.mark.parametrize("path", SOLVED, ids=name)
def test_every_exercise_is_a_card(path):
    """Goal, difficulty, minutes, expected value, stub, two hints and a folded solution."""
    text = prose(path)
    exercises = re.split(r"^## Exercise ", text, flags=re.MULTILINE)[1:]
    assert len(exercises) >= 4
    for exercise in exercises:
        card = exercise.split("## Discussion")[0]
        for part in (
            r"\*\*Goal\*\*: ",
            r"\*\*Difficulty\*\*: ●",
            r"\*\*Time\*\*:\s\d+",
            "Expected",
        ):
            assert re.search(part, card), f"{part} is missing in {exercise[:30]}"
        assert card.count("<summary>Hint 1") == card.count("<summary>Hint 2") >= 1
        assert card.count("<summary>Solution") == card.count("<summary>Hint 2")
    assert len(re.findall(r"^\*\*\d-[A-C]\.\*\*", text, flags=re.MULTILINE)) >= 2


def windows(path, size=5):
    """All runs of neighbouring code lines, except in the set-up cell that all notebooks share."""
    found = set()
    for cell in cells(path, "code")[1:]:
        lines = code_lines(cell)
        found |= {tuple(lines[i : i + size]) for i in range(len(lines) - size + 1)}
    return found


@pytest.mark.parametrize(
    "one, other",
    list(combinations([OPENING, *CHAPTERS, OWN_IMAGES, *SOLVED], 2)),
    ids=lambda path: name(path),
)
def test_no_code_is_pasted_from_one_notebook_into_another(one, other):
    assert not windows(one) & windows(other)
