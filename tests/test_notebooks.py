"""Every page keeps the promises made to readers."""

import os
import re
import statistics
import sys
from itertools import combinations, pairwise

import nbformat
import pytest
from gate import CHECKS, NOTEBOOKS, ROOT, SOLUTIONS, cells

from csd_lib import course, doctor
from csd_lib.course import session as session_module

STUDENT = sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb"))
SHORT = [path for path in NOTEBOOKS if path.stem[:2] in ("00", "07")]  # without exercises
CHAPTERS = [path for path in NOTEBOOKS if path not in SHORT]


def each(paths):
    return pytest.mark.parametrize(
        "path", paths, ids=lambda path: f"{path.parent.name}-{path.stem}"
    )


each_notebook, each_chapter = each(NOTEBOOKS), each(CHAPTERS)
each_page = each([*NOTEBOOKS, *SOLUTIONS, *STUDENT])


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


def images(path):
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    return [o for o in outputs if "image/png" in o.get("data", {})]


def test_the_notebooks_are_those_of_the_course():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(9)]
    assert [path.name for path in SOLUTIONS] == [path.name for path in STUDENT]
    assert [path.name[:2] for path in SOLUTIONS] == ["01", "02", "03", "04", "05"]


@pytest.fixture(scope="module")
def fingerprint():
    return course.smoke_fingerprint()


@each_notebook
def test_committed_outputs_are_complete_and_belong_to_this_code(path, fingerprint):
    """After a change to the library or a notebook: make notebooks."""
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "not run from top to bottom"
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    stamp = notebook.metadata["csd"]
    assert stamp["mode"] == "smoke"
    assert stamp["fingerprint"] == fingerprint, "the library computes other numbers: make notebooks"
    assert stamp["source"] == course.source_hash(notebook), "the cells have changed: make notebooks"


@each_notebook
def test_it_says_what_one_learns_and_ends_with_questions(path):
    text = unfolded(prose(path))
    assert "**You will learn**" in text and "**Time**" in text
    assert re.search(r"## Questions\n.*\n1\. .*\n2\. .*\n3\. ", text, flags=re.DOTALL)


@each([path for path in NOTEBOOKS if path.stem[:2] != "00"])
def test_a_chapter_is_remembered(path):
    """It begins with a question on an earlier one, and ends with five lines and a quiz."""
    before, *_ = (cell.source for cell in cells(path, "markdown")[1:])
    earlier = r"\*\*From (the last chapter|chapter \d)\.\*\* .*\?"
    assert path.stem[:2] == "01" or re.match(earlier, before, re.DOTALL)
    text = "\n\n".join(cell.source for cell in cells(path, "markdown"))
    lines = re.search(r"## Take away\n\n(.+?)\n\n", text + "\n\n", re.DOTALL)[1]
    assert len(re.findall(r"^\* ", lines, re.MULTILINE)) == 5
    quiz = re.search(r"## Quiz\n(.+?)## Questions", text, re.DOTALL)[1]
    questions = re.split(r"^\*\*\d\.\*\* ", quiz, flags=re.MULTILINE)[1:]
    assert len(questions) >= 3
    for question in questions:
        options = re.findall(
            r"<summary>[a-d]\) .+?</summary>\n\n([✓✗]) (.+?)\n\n</details>", question
        )
        assert len(options) >= 3 and [mark for mark, _ in options].count("✓") == 1
        assert all(len(why.split()) >= 5 for _, why in options), "each answer says why"


@each_chapter
def test_a_chapter_says_how_long_it_takes_and_has_an_exercise_inside(path, tool):
    heads = tool("heads")
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source
    assert f"**Time**: {heads.reading_minutes(notebook)} minutes to read" in first
    assert f"and {heads.exercise_minutes(notebook)} for the exercises inside" in first
    assert heads.exercise_minutes(notebook) >= 10


@pytest.mark.parametrize(
    "words, code, minutes",
    [(600, 0, 10), (0, 20, 10), (1500, 0, 25), (1500, 4, 28), (2100, 0, 40), (600, 50, 40)],
)
def test_reading_is_counted_in_words_and_cells_and_grows_slower(words, code, minutes, tool):
    texts = ("# A head is not counted", "w " * words)
    parts = [nbformat.v4.new_markdown_cell(text) for text in texts]
    parts += [nbformat.v4.new_code_cell("1") for _ in range(code)]
    notebook = nbformat.v4.new_notebook(cells=parts)
    counted = tool("heads").reading_minutes(notebook)
    assert counted == minutes


@each_chapter
def test_what_a_chapter_says_is_checked(path):
    source = (CHECKS / f"{path.stem}.py").read_text("utf-8")
    assert source.count("session.check(") + source.count("assert ") >= 8
    assert "nbval-skip" not in path.read_text() and "raises-exception" not in path.read_text()


# --- the shape of every page ---------------------------------------------------------------------


@each_page
def test_one_sitting(path):
    notebook = nbformat.read(path, as_version=4)
    lines = [len(code_lines(cell)) for cell in cells(path, "code")]
    if path in SHORT:
        assert len(notebook.cells) <= 20
    else:
        assert 25 <= len(notebook.cells) <= (62 if path in CHAPTERS else 50)
        assert statistics.median(lines) <= 6
    assert max(lines) <= 12
    assert len(re.findall(r"\w+", unfolded(prose(path)))) <= 2500
    assert path.stat().st_size <= 470_000


@each_page
def test_no_saved_output_shows_photographs_that_may_not_be_passed_on(path):
    for cell in cells(path, "code"):
        if 'load_dataset("cifar100")' in cell.source:
            assert not any("image/png" in output.get("data", {}) for output in cell.outputs)


@each_page
def test_no_code_is_hidden(path):
    for cell in nbformat.read(path, as_version=4).cells:
        hiding = {"collapsed", "jupyter", "cellView", "hide_input"} & set(cell.metadata)
        assert not hiding and "#@title" not in cell.source
        assert not {"hide-input", "hide-cell", "remove-input"} & set(cell.metadata.get("tags", []))


@each_page
def test_headings_are_in_order(path):
    levels = [len(h) for h in re.findall(r"^(#+) ", prose(path), flags=re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(levels) <= 3
    assert all(after - before <= 1 for before, after in pairwise(levels))


@each_page
def test_links_say_where_they_lead_and_lead_there(path):
    for words, target in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", prose(path)):
        assert len(words) > 4 and not re.fullmatch(r"(click )?(here|this|link)", words.lower())
        if not target.startswith("https:"):
            assert (path.parent / target).exists(), f"{words} leads to {target}"


@each_page
def test_every_picture_in_the_text_has_a_description(path):
    text = prose(path)
    assert "<img" not in text
    assert all(len(alt) > 30 for alt in re.findall(r"!\[([^\]]*)\]", text))


@each_page
def test_every_figure_is_described_in_alt_text_and_in_the_line_below_it(path):
    for cell in cells(path, "code"):
        texts = [o.get("data", {}).get("text/markdown", "") for o in cell.outputs]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata["image/png"]["alt"]
                assert len(alt) > 30 and any(alt in text for text in texts)


@each(SOLUTIONS)
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


def test_no_code_is_pasted_from_one_notebook_into_another():
    """Five neighbouring lines, except in the set-up cell that all notebooks share."""
    windows = {}
    for path in (*NOTEBOOKS, *SOLUTIONS):
        each_cells = map(code_lines, cells(path, "code")[1:])
        windows[path.name, path.parent.name] = {
            tuple(lines[i : i + 5]) for lines in each_cells for i in range(len(lines) - 4)
        }
    for one, other in combinations(windows, 2):
        assert not windows[one] & windows[other], (one, other)


# --- pages and modes ----------------------------------------------------------------------------


@pytest.fixture
def make_run(tool, monkeypatch):
    """The tool behind make run, which changes the environment."""
    for name in ("CSD_MODE", "CSD_RUNS", "CSD_WIDGETS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tool("run_notebooks")


@each_notebook
def test_pages_have_alt_text_and_formulas_that_need_no_network(path, make_run, tmp_path):
    make_run.write_page(nbformat.read(path, as_version=4), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    formulas = sum(cell.source.count("$$") for cell in cells(path, "markdown")) // 2
    assert page.count("<math") >= formulas and "$$" not in page
    assert len(re.findall(r'alt="[^"]{30,}"', page)) == len(images(path)) > 0
    links = re.findall(r'href="(\d\d_\w+)\.(\w+)"', page)
    assert links and {ending for _, ending in links} == {"html"}
    assert not re.findall(r'src="http|<link[^>]*href="http|import\("http', page)


def test_make_run_runs_each_notebook_and_names_the_one_that_fails(
    make_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "notebooks").mkdir()
    for name, source in {"01_good": "print(6 * 7)", "02_bad": "1 / 0"}.items():
        parts = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell(source)]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=parts), path)
    monkeypatch.setattr(make_run, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--build", str(tmp_path / "build")])
    with pytest.raises(SystemExit, match=r"error: 02_bad\.ipynb failed"):
        make_run.main()
    said = capsys.readouterr()
    assert re.search(r"\[[12]/2\] 01_good.ipynb ... \d+ s\n", said.out)
    assert re.search(r"\[[12]/2\] 02_bad.ipynb ... FAILED\n", said.out)
    assert "ZeroDivisionError" in said.err
    assert "42" in (tmp_path / "build" / "01_good.html").read_text()


@pytest.mark.parametrize(
    "mode, words",
    [("smoke", "digits"), ("clothes", "clothes"), ("class", "CIFAR"), ("paper", "full")],
)
def test_each_mode_says_what_it_chose_and_why(mode, words, monkeypatch, capsys):
    monkeypatch.setenv("CSD_MODE", mode)
    if mode in ("class", "paper"):  # in clothes steps are measured, which here would take 10 s
        monkeypatch.setattr(doctor, "measure", lambda *_: doctor.Rates(0.02, 0.03, 0, 0))
    session = course.start()
    printed = capsys.readouterr().out
    assert f"Mode {mode}, because CSD_MODE says so" in printed and words in printed
    config = session.config("csd")
    assert config.dataset == {"smoke": "digits", "clothes": "fashion"}.get(mode, "cifar100")
    assert config.epochs == {"smoke": 15, "clothes": 5, "class": 25, "paper": 800}[mode]
    assert ("Training in chapters 1 to 6 takes about" in printed) == (mode != "smoke")


def test_mode_without_a_choice_follows_the_gpu(monkeypatch, capsys):
    monkeypatch.delenv("CSD_MODE", raising=False)
    monkeypatch.setattr(session_module, "mode_forecast", lambda mode, device, seconds: "an hour")
    for has_gpu, mode in ((False, "smoke"), (True, "class")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert course.start().mode == mode
        printed = capsys.readouterr().out
        assert ("a CUDA GPU" if has_gpu else "no CUDA GPU") in printed
        assert ("an hour" in printed) == has_gpu


def test_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("CSD_MODE", "fast")
    with pytest.raises(ValueError, match=r"CSD_MODE='fast'.*smoke, clothes, class, paper"):
        course.start()


@pytest.mark.parametrize("value", [1.2, float("nan")])
def test_a_quoted_number_that_does_not_hold_fails_in_smoke_mode_only(value, capsys):
    with pytest.raises(AssertionError, match=r"drift is .* but the text says 1 ± 0\.1"):
        course.Session("smoke", "cpu", (0,)).check("drift", value, 1, 0.1)
    course.Session("class", "cpu", (0,)).check("drift", value, 1, 0.1)
    assert "text: 1 ± 0.1" in capsys.readouterr().out
