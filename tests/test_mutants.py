"""The list of seeded defects fits the files, and the tool that seeds them can tell."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEFECTS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())
each_defect = pytest.mark.parametrize("name", DEFECTS)


@each_defect
def test_a_defect_changes_one_place_of_its_file_into_other_valid_code(name):
    defect = DEFECTS[name]
    assert set(defect) == {"what", "file", "before", "after", "test"}
    assert "\n" not in defect["what"]
    text = (ROOT / defect["file"]).read_text()
    assert text.count(defect["before"]) == 1, "its `before` must be there exactly once"
    changed = text.replace(defect["before"], defect["after"])
    assert changed != text
    if defect["file"].endswith(".py"):
        compile(changed, defect["file"], "exec")


@each_defect
def test_the_test_that_must_notice_it_exists(name):
    assert DEFECTS[name]["test"]
    for test in DEFECTS[name]["test"]:
        place = r"(tests/(?:test_\w+|integrations/with_\w+|chapters)\.py)::(test_\w+)(?:\[(.+)\])?"
        file, function, case = re.fullmatch(place, test).groups()
        if "chapters" in file and case:  # notebooks-05_feature_drift_umap, for example
            assert (ROOT / f"{case.replace('-', '/', 1)}.ipynb").exists(), case
        assert f"\ndef {function}(" in (ROOT / file).read_text()
        # It fails after any change of the library until `make notebooks`, so it tells nothing.
        assert "committed_outputs" not in function


# --- the tool, on a kit of one function ----------------------------------------------------------

LIBRARY = '"""Add numbers."""\n\n\ndef add(a, b):\n    return a + b\n'
TESTS = """
import pytest
from csd_lib.numbers import add

def test_sum():
    assert add(1, 2) == 3

def test_nothing():
    pass

@pytest.fixture
def three():
    assert add(1, 2) == 3

def test_fixture(three):
    pass

@pytest.mark.skip
def test_skipped():
    pass

def test_broken():
    assert False
"""


@pytest.fixture
def mutants(tmp_path):
    """A function that runs the tool on a list, and returns its exit code and what it says."""
    if not shutil.which("git"):
        pytest.skip("the tool needs git")
    for name, text in {
        "csd_lib/__init__.py": "",
        "csd_lib/numbers.py": LIBRARY,
        "tests/test_numbers.py": TESTS,
        ".gitignore": "ignored\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "ignored").symlink_to("/nowhere")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)

    def run(installed_from=None, **defects):
        entries = [
            f"[{name}]\nwhat = 'a defect'\nfile = 'csd_lib/numbers.py'\nbefore = '{before}'\n"
            f"after = '{after}'\ntest = ['tests/test_numbers.py::{test}']\n"
            for name, (before, after, test) in defects.items()
        ]
        (tmp_path / "tests" / "mutants.toml").write_text("\n".join(entries))
        # This kit needs nothing that is slow to import, and is not the one that is installed.
        code = (
            f"import sys, mutants; mutants.SLOW = []; place = {installed_from!r}\n"
            "mutants.installed_from = lambda: place; sys.exit(mutants.main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "--list", "tests/mutants.toml"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "tools"),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (tmp_path / "csd_lib" / "numbers.py").read_text() == LIBRARY
        return done.returncode, done.stdout

    return run


def test_only_a_failing_test_counts_as_caught(mutants):
    code, said = mutants(
        wrong_sign=("a + b", "a - b", "test_sum"),
        harmless=("a + b", "b + a", "test_sum"),
        unseen=("a + b", "a - b", "test_nothing"),
        in_a_fixture=("a + b", "a - b", "test_fixture"),
        not_imported=('"""Add numbers."""', "import no_such_module", "test_sum"),
    )
    verdicts = re.findall(r"^(\w+) +(\w+) +[\d.]+ s  tests/", said, flags=re.MULTILINE)
    assert verdicts == [
        ("caught", "wrong_sign"),
        ("SURVIVED", "harmless"),
        ("SURVIVED", "unseen"),
        ("BROKEN", "in_a_fixture"),
        ("BROKEN", "not_imported"),
    ], said
    assert "No module named 'no_such_module'" in said
    assert code == 1 and said.endswith("1 of 5 defects caught\n")


def test_if_all_are_caught_the_exit_code_is_0(mutants):
    assert mutants(wrong_sign=("a + b", "a - b", "test_sum"))[0] == 0


@pytest.mark.parametrize("test", ["test_of_another_name", "test_skipped", "test_broken"])
def test_a_test_that_does_not_pass_without_the_defect_is_refused(mutants, test):
    code, said = mutants(wrong_sign=("a + b", "a - b", test))
    assert code == 1 and "caught" not in said
    assert "Without any defect these tests must pass" in said


@pytest.mark.parametrize("before, count", [("a - b", 0), ("b", 3)])
def test_lines_that_are_not_there_exactly_once_are_refused(mutants, before, count):
    code, said = mutants(wrong_sign=(before, "", "test_sum"))
    assert code == 2 and f"`before` is {count} times in csd_lib/numbers.py" in said


def test_an_environment_of_another_folder_is_refused(mutants):
    code, said = mutants(installed_from="/elsewhere", wrong_sign=("a + b", "a - b", "test_sum"))
    assert code == 2 and "this environment's csd_lib is that of /elsewhere: use" in said


def test_the_folder_of_an_editable_install_is_found(tool, tmp_path, monkeypatch):
    installed_from = tool("mutants").installed_from
    folder = tmp_path / "csd_lib-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: csd-lib\nVersion: 1\n")
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_from() == tmp_path
    (folder / "direct_url.json").unlink()
    assert installed_from() is None
