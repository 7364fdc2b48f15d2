"""Every page keeps the promises made to readers."""

import os
import re
import sys

import nbformat
import pytest
from gate import CHECKS, NOTEBOOKS

from csd_lib import course, doctor
from csd_lib.course import session as session_module

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
CHAPTERS = [path for path in NOTEBOOKS if path.stem[:2] not in ("00", "07")]  # with exercises
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def images(path):
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    return [o for o in outputs if "image/png" in o.get("data", {})]


def test_the_notebooks_are_those_of_the_course():
    assert [path.stem for path in NOTEBOOKS] == [
        "00_forgetting_in_a_minute",
        "01_data_splits",
        "02_first_task",
        "03_distilling_later_tasks",
        "04_retrieval_forgetting",
        "05_feature_drift_umap",
        "06_reproducing_the_paper",
        "07_your_own_images",
        "08_what_each_term_buys",
    ]


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
def test_reads_well(path):
    markdown = "\n".join(cell.source for cell in cells(path, "markdown"))
    text = re.sub(r"```.*?```|<details>.*?</details>|\$\$.*?\$\$", "", markdown, flags=re.DOTALL)
    headings = re.findall(r"^(#+) ", text, flags=re.MULTILINE)
    assert headings.count("#") == 1 and headings[0] == "#" and set(headings) <= {"#", "##", "###"}
    assert "**You will learn**" in text and "**Time**" in text
    assert re.search(r"## Questions\n.*\n1\. .*\n2\. .*\n3\. ", text, flags=re.DOTALL)
    assert not re.search(r"\[(here|this|link)\]", text, flags=re.IGNORECASE)
    assert len(re.findall(r"\w+", text)) <= 2500


@each_chapter
def test_a_chapter_is_remembered(path):
    """It begins with a question on an earlier one, and ends with five lines and a quiz."""
    before, *_ = (cell.source for cell in cells(path, "markdown")[1:])
    earlier = r"\*\*From (the last chapter|chapter \d)\.\*\* .*\?"
    assert path == CHAPTERS[0] or re.match(earlier, before, re.DOTALL)
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


@each_notebook
def test_every_figure_has_a_description_and_the_file_stays_small(path):
    for image in images(path):
        assert len(image.metadata["image/png"]["alt"]) > 30
    assert images(path) and path.stat().st_size <= 470_000


@each_chapter
def test_what_a_chapter_says_is_checked(path):
    source = (CHECKS / f"{path.stem}.py").read_text("utf-8")
    assert source.count("session.check(") + source.count("assert ") >= 8
    assert "nbval-skip" not in path.read_text() and "raises-exception" not in path.read_text()


@each_notebook
def test_links_between_notebooks_lead_somewhere(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert targets and all((path.parent / target).exists() for target in targets)


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
    assert len(re.findall(r'alt="[^"]{30,}"', page)) == len(images(path))
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
