"""Guide, slides, bundles and map: what they name exists, what they quote holds, nothing leaks."""

import ast
import base64
import importlib
import math
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import warm
from made_up import on_circle
from test_checkers import WRONG

from csd_lib import identity, losses, retrieval
from csd_lib.config import TrainConfig
from csd_lib.course.checkers import CHECKERS
from csd_lib.methods import LossSettings
from csd_lib.paper import ledger, report, seeds

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
GUIDE = (NOTEBOOKS / "INSTRUCTORS.md").read_text("utf-8")
SLIDES = (NOTEBOOKS / "slides.md").read_text("utf-8")
MAP = (NOTEBOOKS / "PAPER_TO_CODE.md").read_text("utf-8")


def cells(pattern):
    paths = sorted(NOTEBOOKS.glob(pattern))
    return [cell for path in paths for cell in nbformat.read(path, as_version=4).cells]


def headings(pattern="*.ipynb"):
    sources = [cell.source for cell in cells(pattern) if cell.cell_type == "markdown"]
    return re.findall(r"^#+ (?:\d\. )?(.+)$", "\n".join(sources), flags=re.MULTILINE)


def rows(text):
    """Cells of all rows of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# The guide ---------------------------------------------------------------------------------------


def plans():
    """Rows of each plan: first and last minute, what happens."""
    found = []
    for first, last, happens in re.findall(r"^\| (\d+)–(\d+) \| ([^|]+) \|", GUIDE, re.MULTILINE):
        if first == "0":
            found.append([])
        found[-1].append((int(first), int(last), happens))
    return found


def test_every_plan_fills_ninety_minutes_without_a_gap():
    assert len(plans()) == 7
    for plan in plans():
        ends = [last for _, last, _ in plan]
        assert [first for first, _, _ in plan] == [0, *ends[:-1]] and ends[-1] == 90


def test_exercises_of_the_plans_get_the_time_that_their_cards_ask_for():
    needed = {}
    for cell in cells("exercises/*.ipynb"):
        card = re.match(r"## Exercise (\S+):.*?\*\*Time\*\*:?\s*(\d+)", cell.source, re.DOTALL)
        if card:
            needed[card[1]] = int(card[2])
    given = {
        (number, last - first)
        for plan in plans()
        for first, last, happens in plan
        for number in re.findall(r"Exercise (\d\.\d)", happens)
    }
    assert len(given) >= 7
    assert [(number, time) for number, time in given if time < needed[number]] == []


def test_sections_named_in_the_plans_are_headings_of_the_notebooks():
    named = [n for p in plans() for *_, happens in p for n in re.findall(r"\*(.+?)\*", happens)]
    known = headings()
    assert len(named) >= 15
    assert [name for name in named if not any(h.startswith(name) for h in known)] == []


def slides_of(texts):
    found = re.findall(r"[Ss]lides? (\d+)(?:(?:–| and )(\d+))?", "\n".join(texts))
    return [n for first, last in found for n in range(int(first), int(last or first) + 1)]


def test_the_plan_of_two_sessions_shows_every_slide_in_order_and_leaves_the_last_for_home():
    one, *two = ([happens for *_, happens in plan] for plan in plans()[:3])
    home = slides_of(re.findall("^At home: slides.+", GUIDE, re.MULTILINE))
    slides = SLIDES.split("\n---\n")
    assert slides_of([*two[0], *two[1]]) + home == list(range(1, len(slides) + 1))
    assert home == [n for n, slide in enumerate(slides, 1) if "\n## At home: " in slide]
    in_class = slides_of(one)
    assert in_class == sorted(in_class) and not {*in_class} & {*home} and len(in_class) == 10


def test_minutes_in_the_notes_are_those_of_the_plan_of_two_sessions():
    given = {}
    for plan in plans()[1:3]:
        for first, last, happens in plan:
            given |= dict.fromkeys(slides_of([happens]), (first, last))
    for number, slide in enumerate(SLIDES.split("\n---\n"), 1):
        minutes = re.search(r"[Mm]inutes (\d+) to (\d+)", slide)
        if number in given:
            first, last = given[number]
            assert first <= int(minutes[1]) < int(minutes[2]) <= last, number
        else:
            assert not minutes


def test_every_question_at_the_end_of_a_chapter_has_an_answer():
    part = GUIDE.split("## Questions at the end of the chapters")[1].split("\n## ")[0]
    answered = dict(re.findall(r"### Chapter (\d)\n(.+?)(?=###|\Z)", part, re.DOTALL))
    chapters = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert [*answered] == [path.name[1] for path in chapters]
    items = r"^(?:\d\.|\*) .+?(?=^\d\.|^\* |^\S|\Z)"
    for path in chapters:
        sources = [cell.source for cell in cells(path.name)]
        (asked,) = [c.partition("## Questions")[2] for c in sources if "## Questions" in c]
        answers = re.findall(items, answered[path.name[1]], re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^\d\.", asked, re.MULTILINE)) == len(
            [answer for answer in answers if answer[0].isdigit()]
        )
        for answer in (" ".join(answer.split()) for answer in answers):
            assert answer.count("*Slip*: ") == answer.count("*Next*: ") == 1, answer


def test_worked_answers_to_questions_hold():
    labels = torch.tensor([0, 0, 1, 1])
    moved = losses.triplet_loss(on_circle(0, 60, 150, 180), labels, 1.0).item()
    assert f"the mean, which is {moved:.2f}." in " ".join(GUIDE.split())
    assert losses.triplet_loss(on_circle(0, 60, 180, 180), labels, 1.0).item() == pytest.approx(0)
    rows_of = re.search(r"\$R\$ = \((.+?)\), \((.+?)\), \((.+?)\):", GUIDE).groups()
    matrix = np.array([[float(x.replace("·", "0")) for x in row.split(",")] for row in rows_of])
    assert retrieval.forgetting(matrix) == pytest.approx(0.1)
    assert retrieval.backward_transfer(matrix) == pytest.approx(0.1)


def test_the_list_of_wrong_answers_is_that_of_the_checkers(tool, tmp_path, monkeypatch):
    answers = tool("answers")
    copy = tmp_path / "INSTRUCTORS.md"
    copy.write_text(GUIDE, "utf-8")
    monkeypatch.setattr(answers, "INSTRUCTORS", copy)
    monkeypatch.setattr(sys, "argv", ["answers.py", "--check"])
    answers.main()
    copy.write_text(GUIDE.replace("You multiply by T².", "You multiply by T."), "utf-8")
    with pytest.raises(SystemExit, match="not up to date"):
        answers.main()
    monkeypatch.setattr(sys, "argv", ["answers.py"])
    answers.main()
    assert copy.read_text("utf-8") == GUIDE


# What every checker may say, whatever the exercise.
GENERAL = r".*(: it (stops with|returns|changes)|Not right yet|The value is right, but|nothing yet)"


def test_no_sentence_of_a_checker_is_missing_from_the_list(tool):
    known = {
        number: [re.escape(sentence).replace("…", ".*") for sentence in sentences]
        for number, sentences in tool("answers").known_mistakes().items()
    }
    assert list(known) == list(CHECKERS)
    specific = 0
    for number, wrong, _ in WRONG:
        message = CHECKERS[number](wrong).message
        listed = any(re.match(sentence, message, re.DOTALL) for sentence in known[number])
        assert listed or re.match(GENERAL, message, re.DOTALL), message
        specific += listed
    assert specific > 0.8 * len(WRONG)


def test_every_number_of_guide_and_slides_is_one_of_the_kit():
    """Decimals and percentages must stand in a notebook's cells, which check them, or a table."""
    sources = "\n".join(c.source for c in cells("*.ipynb") + cells("solutions/*.ipynb"))
    names = ("README.md", *(f"docs/{n}.md" for n in ("results", "tables", "terms", "fashion")))
    pages = [(ROOT / name).read_text("utf-8") for name in names]
    known = "\n".join([*pages, MAP, sources])
    with_the_anchor = 2 * math.e**2 + math.e + math.e**-1 + 3 * math.e**-2 + math.e**2
    known += f"\n{with_the_anchor:.1f}"  # the usual slip in the pencil example
    known += f"\n{math.cos(math.pi / 2) - math.cos(math.pi / 6) + 1:.2f}"  # chapter 2, question 2
    known += "\n0.32"  # and its mean, which has a test of its own
    typed = re.sub(r"<!-- common.*?<!-- end", "", GUIDE, flags=re.DOTALL) + SLIDES
    numbers = set(re.findall(r"\d+\.\d+|\d+ %", typed)) - set(
        re.findall(r"\d\.\d", " ".join(CHECKERS))
    )
    missing = {n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\d)", known)}
    assert len(numbers) > 25 and missing == set()


def test_csd_keeps_more_than_fine_tuning_wherever_there_are_three_seeds_as_the_pages_say():
    verdicts, usual = {}, {"method": "csd", **vars(LossSettings())}.items()
    apart = {"results": ["seed"], "orders": ["seed", "class_order_seed"]}  # what runs differ in
    for folder, names in apart.items():
        records, gains = ledger.load_records(ROOT / "data" / folder), {}
        old = {r.key(): r.matrix.own[-1, 0] for r in records}  # on the old classes, at the end
        for run in (r for r in records if usual <= vars(r.config).items()):
            if report.changed_settings(run.config).keys() & {
                "learning_rate",
                "later_learning_rate",
            }:
                continue  # the pages name each preset's rates
            rival = replace(run, config=replace(run.config, method="fine-tuning")).key()
            if rival in old:
                gains.setdefault(run.key(*names), []).append(old[run.key()] - old[rival])
        verdicts[folder] = [seeds.paired(g)[2] for g in gains.values() if len(g) >= 3]
    assert len(verdicts["results"]) >= 10 and len(verdicts["orders"]) == 3
    assert {*verdicts["results"], *verdicts["orders"]} == {"holds"}
    for page in ("README.md", "docs/results.md"):
        text = (ROOT / page).read_text("utf-8")
        assert "CSD keeps more of the old classes than fine-tuning" in text, page


def test_with_chosen_rates_csd_leads_on_average_over_fine_tuning_on_photographs_alone():
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    table = re.search(r"<!-- rates -->(.+?)<!-- end of rates -->", page, re.DOTALL)[1]
    average = r"(?:[^|]+\|){3} \S+ \[(\S+) to (\S+)\]"  # after n, old and new
    average = r"^\| ([^|]+) \| CSD, [^|]+\| (Fine-tuning|LwF), [^|]+\|" + average
    found = re.findall(average, table, re.MULTILINE)
    assert len(found) == 2 * len({where for where, *_ in found}) == 8
    decided = [(where[:9], rival) for where, rival, *ends in found if float(ends[0]) > 0]
    assert decided == [("CIFAR-100", "Fine-tuning")] and all(float(x[-1]) > 0 for x in found)


def test_measured_numbers_are_those_of_the_records():
    records = ledger.load_records(ROOT / "data" / "results")

    def lost(method, gallery="own"):
        wanted = dict(dataset="digits", preset="clean", tasks=2, method=method)
        runs = [r for r in records if wanted.items() <= vars(r.config).items()]
        runs = [r for r in runs if not report.changed_settings(r.config)]
        assert len(runs) == 8
        matrices = [getattr(run.matrix, gallery) for run in runs]
        return 100 * np.mean([m[0, 0] - m[-1, 0] for m in matrices])

    forgotten = {method: f"{lost(method):.1f}" for method in ("fine-tuning", "lwf", "csd")}
    average = {}
    for method, start in product(("lwf", "csd"), ("random", "class_means")):
        settings = dict(dataset="cifar100", preset="class", precision="amp", head_init=start)
        known = TrainConfig(method=method, **settings)
        seeds = [
            r for r in records if identity.key(r.config, "seed") == identity.key(known, "seed")
        ]
        assert len(seeds) == 3
        for kind in ("own", "seen"):
            mean = 100 * np.mean([getattr(r.matrix, kind)[-1] for r in seeds])
            average[method, start, kind] = f"{mean:.1f}"
    guide, slides = (" ".join(text.split()) for text in (GUIDE, SLIDES))
    assert (
        f"mean of eight seeds: **fine-tuning** {forgotten['fine-tuning']}, **LwF** "
        f"{forgotten['lwf']}, **CSD** {forgotten['csd'].replace('-', '−')}"
    ) in slides
    assert (
        f"fine-tuning loses {forgotten['fine-tuning']} points in the small gallery and "
        f"{lost('fine-tuning', 'seen'):.1f} in the large one. But a frozen network loses "
        f"{lost('initial', 'seen'):.1f} there, too"
    ) in slides
    assert (
        f"averages of {average['lwf', 'random', 'own']} % for LwF and "
        f"{average['csd', 'random', 'own']} % for CSD with the task's own classes in the gallery, "
        f"{average['lwf', 'random', 'seen']} and {average['csd', 'random', 'seen']} with all. With "
        f"class means, the same seeds, {average['lwf', 'class_means', 'own']} and "
        f"{average['csd', 'class_means', 'own']} with the task's own classes, "
        f"{average['lwf', 'class_means', 'seen']} for both with all"
    ) in guide
    assert average["lwf", "class_means", "seen"] == average["csd", "class_means", "seen"]


# The slides --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What the tests ask about a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.sections, self.addresses = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        self.sections += tag == "section"
        if tag != "a":
            self.addresses += [attributes[k] for k in ("src", "href", "srcset") if k in attributes]


@pytest.fixture(scope="module")
def deck(made_once):
    def build(folder):
        done = warm.run(ROOT / "tools" / "slides.py", "--build", folder)
        assert done.returncode == 0, done.stderr

    return (made_once("slides", build) / "slides.html").read_text("utf-8")


def test_the_slides_are_complete_and_need_no_network(deck):
    found = Page(deck)
    assert 20 <= found.sections <= 25 and found.sections == len(SLIDES.split("\n---\n"))
    assert found.headings == [1] + [2] * (found.sections - 1)
    assert found.sections == deck.count("<aside") == SLIDES.count("\nNote: ")
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", deck)
    assert "default-src 'none'" in deck
    assert deck.count("<math") > 5 and "$" not in re.sub(
        r"<script>.*</script>", "", deck, flags=re.DOTALL
    )


def test_figures_of_the_slides_are_those_of_the_notebooks_with_their_descriptions(deck):
    outputs = [output for cell in cells("0*.ipynb") for output in cell.get("outputs", [])]
    known = {
        "".join(output.data["image/png"].split()): output.metadata["image/png"]["alt"]
        for output in outputs
        if "image/png" in output.get("data", {})
    }
    alts = dict(re.findall(r"^!\[(.+)\]\(\.\./(docs/.+\.png)\)$", SLIDES, re.MULTILINE))
    for alt, name in alts.items():
        known[base64.b64encode((ROOT / name).read_bytes()).decode()] = alt
    images = Page(deck).images
    assert len(images) == SLIDES.count("\n![") >= 15
    for image in images:
        assert known[image["src"].partition(",")[2]] == image["alt"] and len(image["alt"]) > 30


def test_type_on_the_slides_is_large(deck):
    style = re.search(r"<style>(.*?)</style>", deck, re.DOTALL)[1]
    sizes = {
        s.strip(): int(px)
        for s, px in re.findall(r"([\w.> :+-]+) \{[^}]*?font(?:-size)?: (\d+)px", style)
    }
    assert sizes["body"] >= 28
    small = {selector for selector, size in sizes.items() if size < 28}
    assert small <= {".number", ".notes section.shown + aside"}


@pytest.mark.parametrize(
    "slide, words",
    [
        ("## A\n\n![no such figure](04_retrieval_forgetting.ipynb)", "slide 2: 0 figures of 04_"),
        ("## A\n\n![Recall@1](04_retrieval_forgetting.ipynb)", r"slide 2: \d+ figures of 04_"),
        ("## A\n\n![Recall@1](07_none.ipynb)", "slide 2: there is no notebook 07_none"),
        ("## A\n\n![Recall@1](../docs/none.png)", "slide 2: there is no file ../docs/none.png"),
        ("no heading", "slide 2: it does not begin with a heading"),
    ],
)
def test_a_slide_that_cannot_be_built_is_named(tool, slide, words):
    with pytest.raises(ValueError, match=words):
        tool("slides").page(f"# Title\n\n---\n\n{slide}\n")


# The bundles -------------------------------------------------------------------------------------

STRAY = "notebooks/exercises/mine.ipynb"


def make_bundles(folder):
    """Both zips, made twice from a git repository with this working tree."""
    kit = folder / "copy"
    left = ("*.pt", "cifar100.npz", "cifar-100-python*", "*.partial", "__pycache__")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", *left)
    shutil.copytree(ROOT, kit, ignore=ignored)
    subprocess.run(["git", "init", "-q"], cwd=kit, check=True)
    subprocess.run(["git", "add", "-A"], cwd=kit, check=True)
    (kit / STRAY).write_text("not tracked")
    for number in ("one", "two"):
        done = warm.run(kit / "tools" / "bundles.py", folder / number)
        assert done.returncode == 0, done.stderr
    assert re.search(r"csd-kit-student.zip: \d+ files, [\d.]+ MB", done.stdout)
    for name in ("student", "instructor"):
        one, two = ((folder / n / f"csd-kit-{name}.zip").read_bytes() for n in ("one", "two"))
        assert one == two


@pytest.fixture(scope="module")
def bundles(made_once):
    """Both zips, opened."""
    folder = made_once("bundles", make_bundles) / "one"
    return {n: zipfile.ZipFile(folder / f"csd-kit-{n}.zip") for n in ("student", "instructor")}


def names(archive):
    assert all(name.startswith("csd-kit/") for name in archive.namelist())
    return {name.removeprefix("csd-kit/") for name in archive.namelist()}


def test_no_solved_notebook_and_nothing_untracked_is_in_the_students_zip(bundles):
    student = bundles["student"]
    with_solution = [n for n in student.namelist() if b"BEGIN SOLUTION" in student.read(n)]
    assert with_solution == []
    private = re.compile(r"solutions/|INSTRUCTORS|slides|ANSWERS|graded|^tests/|\.pt$")
    assert [name for name in names(student) if private.search(name)] == []
    assert STRAY not in names(student) | names(bundles["instructor"])


def test_students_get_the_exercises_and_notebooks_of_the_repository(bundles):
    wanted = [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("exercises/*.ipynb")]
    assert len(wanted) >= 11
    for path in wanted:
        name = path.relative_to(ROOT).as_posix()
        assert bundles["student"].read(f"csd-kit/{name}") == path.read_bytes()


def test_instructors_get_all_of_the_students_and_more(bundles):
    more = names(bundles["instructor"]) - names(bundles["student"])
    assert names(bundles["student"]) < names(bundles["instructor"])
    solved = {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS.glob("solutions/*.ipynb")}
    graded = {name.replace("solutions", "graded") for name in solved}
    assert more >= {"slides.html", "ANSWERS.md", "notebooks/INSTRUCTORS.md"} | solved | graded
    for name in graded:
        text = bundles["instructor"].read(f"csd-kit/{name}").decode()
        assert "SOLUTION" not in text and "<summary>Solution" not in text and "Hint 2" in text


def test_graded_copies_do_not_tell_what_a_guess_is_about(tool):
    """Neither the value, nor the cell that compares with it, nor what follows the hints."""
    guessed = 0
    for path in sorted(NOTEBOOKS.glob("solutions/*.ipynb")):
        solved = nbformat.read(path, as_version=4)
        graded = tool("exercises").student_copy(solved, graded=True)
        text = "\n".join(cell.source for cell in graded.cells)
        assert "Expected value</summary>" not in text and "folded text" not in text
        assert "folded away below, because" not in text
        guessed += text.count("not told here, because you guess first.")
        ids = {cell.id for cell in graded.cells}
        kept = [c.id for c in solved.cells if c.metadata.get("nbgrader") or c.id == "progress"]
        assert ids.issuperset(kept)
        headings = [re.findall("^#+ .+", c.source, re.M) for c in solved.cells]
        assert all(heading in text for found in headings for heading in found if "#" in found)
    assert guessed == 4
    exercise = "\n".join(c.source for c in tool("exercises").student_copy(solved).cells)
    assert "Expected value</summary>" in exercise and "session.check(" in exercise


def test_cells_for_nbgrader_have_their_own_id():
    found = [cell for cell in cells("solutions/*.ipynb") if cell.metadata.get("nbgrader")]
    assert len(found) > 30
    assert [c.id for c in found if c.metadata.nbgrader.grade_id != c.id] == []


def test_quizzes_are_there_for_platforms(bundles):
    """GIFT: each question has one right choice and two wrong ones, each with its reason."""
    text = bundles["instructor"].read("csd-kit/quizzes.gift").decode()
    questions = text.strip().split("\n\n")
    summaries = "\n".join(cell.source for cell in cells("*.ipynb") if "## Quiz" in cell.source)
    assert sum(q.count("\n") - 1 for q in questions) == summaries.count("<summary>") > 60
    line = r"([=~])((?:[^\\~=#{}:]|\\.)+)#((?:[^\\~=#{}:]|\\.)+)"  # nothing unescaped
    for question in questions:
        head, *choices, end = question.split("\n")
        assert re.fullmatch(r"::Chapter \d, \d::\[markdown\](?:[^\\~=#{}:]|\\.)+ \{", head)
        marks = [re.fullmatch(line, choice)[1] for choice in choices]
        assert sorted(marks) == ["=", "~", "~"] and end == "}"
        first = re.fullmatch(line, choices[0])[2]
        assert re.sub(r"\\(.)", r"\1", first) in " ".join(summaries.split())
    assert "](" not in text and "quizzes.gift" not in str(names(bundles["student"]))


def test_the_answer_key_has_every_exercise_and_every_discussion(bundles):
    key = bundles["instructor"].read("csd-kit/ANSWERS.md").decode()
    solved = cells("solutions/*.ipynb")
    exercises = [
        n for c in solved for n in re.findall(r"^## Exercise (\S+):", c.source, re.MULTILINE)
    ]
    parts = dict(re.findall(r"^### Exercise (\S+):(.+?)(?=^##|\Z)", key, re.MULTILINE | re.DOTALL))
    assert list(parts) == exercises and len(exercises) >= 22
    for number, part in parts.items():
        assert "**Expected**: " in part and "```python\n" in part
        assert ("Common wrong answers:\n\n* " in part) == (number in CHECKERS)
    answered = [c for c in solved if c.id.startswith("answer-")]
    assert len(answered) >= 11
    for cell in answered:
        name = cell.id.removeprefix("answer-")
        assert (
            f"### Discussion {name}\n\n**{name}.** " in key and "**Answer.** " + cell.source in key
        )
    assert "SOLUTION" not in key


def test_the_students_zip_works_in_an_empty_folder(bundles, tmp_path):
    bundles["student"].extractall(tmp_path)
    kit = tmp_path / "csd-kit"
    notebook = nbformat.read(kit / "notebooks" / "01_data_splits.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    code = f"""{first}
import csd_lib
from csd_lib.course import widgets
from csd_lib.paper import ledger
records = ledger.load_records()
(record,) = [r for r in records if r.files and r.config.method == "csd"]
features, labels = ledger.load_features(record)
print(csd_lib.__file__, len(features), len(widgets.load_recording().moments), sep="\\n")
"""
    done = warm.run("-c", code, cwd=kit / "notebooks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mode ")
    assert done.stdout.splitlines()[-3:] == [str(kit / "csd_lib" / "__init__.py"), "10000", "25"]
    readme = (kit / "README.md").read_text("utf-8")
    targets = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", readme))
    left_out = re.compile("notebooks/(INSTRUCTORS|slides|solutions)|tests/|tools/")
    broken = [target for target in targets if not (kit / target).exists()]
    assert [target for target in broken if not left_out.match(target)] == []


def test_a_solution_among_the_students_files_stops_the_tool(tool, monkeypatch, tmp_path):
    bundles = tool("bundles")
    solved = "notebooks/solutions/01_data_splits.ipynb"
    monkeypatch.setattr(bundles, "STUDENT", ("notebooks/solutions/*.ipynb",))
    monkeypatch.setattr(bundles, "tracked_files", lambda: [solved, "README.md"])
    monkeypatch.setattr(sys, "argv", ["bundles.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"{solved} would give a solution"):
        bundles.main()
    monkeypatch.setattr(bundles, "STUDENT", ("README.md", "no/such/file"))
    with pytest.raises(SystemExit, match="git tracks no file no/such"):
        bundles.main()
    assert list(tmp_path.iterdir()) == []


# From the paper to the code ----------------------------------------------------------------------


def test_every_name_of_the_map_can_be_imported():
    found = set(re.findall(r"`(csd_lib\.[\w.]+)`", MAP))
    assert len(found) >= 30
    for name in found:
        _, module, *attributes = name.split(".")
        place = importlib.import_module(f"csd_lib.{module}")
        for attribute in attributes:
            fields = getattr(place, "__dataclass_fields__", {})
            assert hasattr(place, attribute) or attribute in fields, name
            place = getattr(place, attribute, None)


def test_every_test_of_the_map_exists():
    found = set(re.findall(r"`(tests/\w+\.py)::(\w+)`", MAP))
    assert len(found) >= 15
    for path, name in found:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_section_of_the_map_is_a_heading_of_its_notebook():
    found = re.findall(r"\[(\d), “(.+?)”\]\((\S+?)\)", MAP)
    assert len(found) >= 15
    for number, heading, name in found:
        assert name.startswith(f"0{number}_") and heading in headings(name)


def test_every_row_of_equations_and_symbols_has_code_a_test_and_a_section():
    table = [row for row in rows(MAP) if len(row) == 5 and "---" not in row[0]]
    assert len(table) >= 24
    for row in table:
        if row[0] in ("paper", "symbol"):
            continue
        assert "`csd_lib." in row[2] and "`tests/" in row[3] and "ipynb" in row[4], row


def worked_values():
    labels = torch.tensor([0, 0, 1, 1])
    four = on_circle(0, 60, 90, 180)
    kd = [torch.tensor([values]) for values in ([1.0, 1.0, 3.0], [2.0, 0.0])]
    student, teacher = on_circle(0, 60, 120, 180), on_circle(0, 0, 180, 180)
    return {
        "cross entropy": losses.cross_entropy(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])),
        "triplet, margin 1": losses.triplet_loss(four, labels, 1.0),
        "triplet, margin 0.2": losses.triplet_loss(four, labels, 0.2),
        "KD, $T = 2$": losses.kd_loss(*kd, 2.0),
        "KD, $T = 1$": losses.kd_loss(*kd, 1.0),
        "CSD, $T = 0.5$": losses.csd_loss(student, teacher, labels, 0.5),
        "CSD, Eq. 8": losses.csd_loss_paper(student, teacher, labels),
        "MMD": losses.mmd_loss(on_circle(0), on_circle(90)),
        "FECD, $T = 4$": losses.fecd_loss(on_circle(0, 90), on_circle(0, 0)),
    }


def by_hand():
    """The pencil's way, without the library."""
    e, log = math.exp, math.log
    anchors = [
        log(e(1) + e(-1) + 3 * e(-2) + 2 * e(2)) - (1 + 2 + 2) / 3,  # s1
        log(3 * e(1) + e(1) + 3 * e(-1)) - 1,  # s2: ½ with s1, s3, t1, t2; −½ with s4, t3, t4
    ]
    below = log(e(0.5) + e(-0.5) + e(-1))
    kernels = sum(e(-1 / b) for b in (0.25, 0.5, 1, 2, 4))
    p = [e(0.25) / (e(0.25) + 1), 1 / (e(0.25) + 1)]
    return anchors, below, 10 - 2 * kernels, 8 * sum(log(0.5 / x) for x in p)


def test_the_worked_numbers_of_the_map_are_computed_again():
    table = {row[0]: row[3] for row in rows(MAP) if len(row) == 4 and re.match(r"\d", row[3])}
    assert table == {
        name: f"{value.item():.{len(table[name].partition('.')[2])}f}"
        for name, value in worked_values().items()
    }
    assert all(len(value.partition(".")[2]) >= 2 for value in table.values())


def test_the_steps_that_the_map_writes_out_are_right():
    (first, second), below, mmd, fecd = by_hand()
    assert f"mean of {first:.3f}, {second:.3f}, {second:.3f}, {first:.3f}" in MAP
    assert f"= {math.exp(below):.2f}$, its logarithm {below:.3f}" in MAP
    assert f"$1 - {below:.3f} = {1 - below:.3f}$" in MAP
    values = worked_values()
    assert values["MMD"].item() == pytest.approx(mmd, abs=1e-6)
    assert values["FECD, $T = 4$"].item() == pytest.approx(fecd, abs=1e-6)
    assert values["CSD, $T = 0.5$"].item() == pytest.approx((first + second) / 2, abs=1e-6)
