"""Environment variables have one list and one reader; an empty one counts as not set."""

import os
import re
from pathlib import Path

import pytest

from csd_lib import paths

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("CSD_")]:
        monkeypatch.delenv(name)


def test_every_variable_that_is_named_anywhere_is_in_the_list():
    files = [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "tests").rglob("*.py")),
        *(*(ROOT / "csd_lib").rglob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")),
    ]
    named = set()
    for path in files:
        if path.name != Path(__file__).name:
            named |= set(re.findall(r"\bCSD_[A-Z_]+\b", path.read_text()))
    assert named == set(paths.VARIABLES)


def test_the_environment_is_read_in_one_module():
    reading = re.compile(r"environ\.get|environ\[[^]]+\](?! =)|getenv|in os\.environ")
    found = [p.name for p in (ROOT / "csd_lib").rglob("*.py") if reading.search(p.read_text())]
    assert found == ["paths.py"]


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_counts_as_not_set(monkeypatch, empty):
    usual = paths.runs_folder(), paths.results_folder(), paths.data_folder()
    assert usual == (ROOT / "runs", ROOT / "data" / "results", ROOT / "data")
    for name in paths.VARIABLES:
        monkeypatch.setenv(name, empty)
        assert paths.variable(name) == ""
    assert (paths.runs_folder(), paths.results_folder(), paths.data_folder()) == usual


def test_variables_move_runs_and_results(monkeypatch, tmp_path):
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "a"))
    monkeypatch.setenv("CSD_RESULTS", str(tmp_path / "b"))
    assert (paths.runs_folder(), paths.results_folder()) == (tmp_path / "a", tmp_path / "b")


def test_installed_everything_is_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "csd_lib" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert paths.runs_folder() == tmp_path / "runs"
    assert paths.results_folder() == tmp_path / "data" / "results"


def test_a_typo_is_named_with_what_was_meant(monkeypatch):
    assert paths.unknown_variables() == []
    monkeypatch.setenv("CSD_RUN", "x")
    monkeypatch.setenv("CSD_XYZZY", "x")
    monkeypatch.setenv("CSD_DATA", "x")
    assert paths.unknown_variables() == [
        "CSD_RUN has no meaning: is it CSD_RUNS?",
        "CSD_XYZZY has no meaning",
    ]


def test_try_writing_leaves_nothing_and_makes_no_folder(tmp_path):
    paths.try_writing(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError):
            paths.try_writing(folder)
