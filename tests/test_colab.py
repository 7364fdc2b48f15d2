"""Where the kit is not unpacked: the head of every notebook, the wheel, and Google Drive.

``make colab`` runs the notebooks with Colab's own packages; see tests/colab/imitation.py.
"""

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import nbformat
import pytest
import servers
import torch
import warm
from stopped import outcome

import csd_lib
from csd_lib import InputError, course, fetch, files, paths
from csd_lib.config import TrainConfig
from csd_lib.course import session
from csd_lib.paper import ledger

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "colab" / "stand_in"
COURSE = Path("csd_lib", "course", "__init__.py")
FOLDERS = ("notebooks", "notebooks/exercises", "notebooks/solutions")
NOTEBOOKS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
WHEEL = f"csd_lib-{csd_lib.__version__}-py3-none-any.whl"


def cells(path):
    return nbformat.read(path, as_version=4).cells


def setup_cell():
    return next(cell.source for cell in cells(NOTEBOOKS[0]) if cell.id == "setup")


# --- the head of every notebook ----------------------------------------------------------------


def test_make_heads_would_change_nothing():
    done = warm.run(ROOT / "tools" / "heads.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_notebook_has_one_badge_then_the_one_setup_cell(path):
    found = cells(path)
    first = next(i for i, cell in enumerate(found) if cell.cell_type == "code")
    assert [cell.id for cell in found[first - 1 : first + 1]] == ["badge", "setup"]
    assert [cell.id for cell in found].count("badge") == 1
    assert found[first].source == setup_cell()
    badge = found[first - 1].source
    if csd_lib.REPOSITORY.startswith("YOUR_ACCOUNT/"):
        assert "not published yet" in badge and "](http" not in badge
    assert f"`%pip install -q --no-deps {WHEEL}`" in badge


def test_a_published_kit_has_a_link_that_names_notebook_and_tag(tool, monkeypatch):
    heads = tool("heads")
    monkeypatch.setattr(heads, "REPOSITORY", "someone/csd-kit")
    place = "notebooks/01_data_splits.ipynb"
    text = heads.badge(nbformat.read(ROOT / place, as_version=4), place)
    tag = f"v{csd_lib.__version__}"
    assert "[**Open “1. Data splits” in Google Colab**]" in text
    address = "https://colab.research.google.com/github/someone/csd-kit/blob"
    assert f"({address}/{tag}/{place})" in text
    assert f"https://github.com/someone/csd-kit/releases/download/{tag}/{WHEEL}`" in text


def test_the_setup_cell_is_short_and_installs_nothing():
    source = setup_cell()
    assert len([line for line in source.splitlines() if line.strip()]) <= 8
    assert "pip" not in source and "subprocess" not in source


# --- the set-up cell, in a process of its own --------------------------------------------------

# What a second run of the cell must leave as it was.
KEEP = "import sys\nloaded, path = set(sys.modules), list(sys.path)"
SAME = "assert path == sys.path and loaded == set(sys.modules)\nprint(course.__file__)"


def test_inside_the_kit_the_setup_cell_finds_this_csd_lib_and_may_run_twice():
    code = "\n".join([setup_cell(), KEEP, setup_cell(), SAME])
    env = {**os.environ, "CSD_MODE": "smoke"}
    done = warm.run("-c", code, cwd=ROOT / "notebooks", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(ROOT / COURSE)


def test_outside_the_kit_the_setup_cell_takes_the_installed_csd_lib(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    unset = ("CSD_RUNS", "CSD_RESULTS")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"CSD_MODE": "smoke", "PYTHONPATH": str(tmp_path / "installed")}
    code = "\n".join([setup_cell(), KEEP, setup_cell(), SAME])
    done = warm.run("-c", code, cwd=empty, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "installed" / COURSE)


# --- the wheel ---------------------------------------------------------------------------------


def test_the_wheel_is_small_and_holds_the_code_and_the_records_but_no_model(wheel):
    assert wheel.name == WHEEL and wheel.stat().st_size < 8e6
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "csd_lib").rglob("*.py")}
    results = ROOT / "data" / "results"
    records = {path.relative_to(results) for path in results.rglob("results.json")}
    assert len(code) > 20 and len(records) > 50
    rest = {name for name in names - code if not name.startswith("csd_lib-")}
    brought = {f"csd_lib/recorded/{name}" for name in (*records, "digits-epochs.npz")}
    brought |= {"csd_lib/py.typed"}
    brought |= {f"csd_lib/embedded/{name}" for name in ("fashion.npz", "LICENSE", "README.md")}
    assert code <= names and rest == brought


def test_an_installed_csd_lib_reads_its_own_records_and_writes_none_beside_them(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    files = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if path.is_file()}
    code = """
import csd_lib
from csd_lib.datasets import load_dataset
from csd_lib.paper import ledger
assert len(load_dataset("fashion").test_labels) == 1000
records = ledger.load_records()
kept = [record for record in records if record.files]
sums = [float(ledger.load_features(record)[0].double().sum()) for record in kept]
ledger.load_model(kept[0])
print(csd_lib.__file__, ledger.results_folder(), ledger.find_file("digits-epochs.npz"), sep="\\n")
print(len(records), *sums)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CSD_RESULTS", "CSD_RUNS")}
    environment |= {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    for source in (ROOT / "data" / "results", tmp_path / "nothing"):  # the second time: the cache
        done = warm.run("-c", code, cwd=tmp_path, env={**environment, "CSD_FILES": source})
        assert done.returncode == 0, done.stderr
        module, own, epochs, numbers = done.stdout.splitlines()
        assert module == str(installed / "csd_lib" / "__init__.py")
        assert own == str(tmp_path / "data" / "results")
        assert epochs == str(installed / "csd_lib" / "recorded" / "digits-epochs.npz")
        count, *sums = numbers.split()
        here = ledger.load_records(ROOT / "data" / "results")
        kept = [record for record in here if record.files]
        assert int(count) == len(here)
        assert sums == [str(float(ledger.load_features(r)[0].double().sum())) for r in kept]
    left = {path: path.stat().st_mtime_ns for path in installed.rglob("*") if path.is_file()}
    assert left == files


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A record as an installed csd_lib has it: its features are elsewhere."""
    monkeypatch.delenv("CSD_RESULTS", raising=False)
    monkeypatch.delenv("CSD_FILES", raising=False)
    monkeypatch.setattr(ledger, "PACKAGED", tmp_path / "recorded")
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    found = (ROOT / "data" / "results" / "cifar100").glob("*-csd-*/features.npz")
    (source,) = (path.parent for path in found)
    place = tmp_path / "recorded" / "cifar100" / source.name
    place.mkdir(parents=True)
    shutil.copy(source / "results.json", place)
    (record,) = ledger.load_records()
    return record


def test_features_of_a_kit_without_an_address_say_what_to_do(packaged, monkeypatch):
    monkeypatch.setattr(ledger, "REPOSITORY", "YOUR_ACCOUNT/csd-kit")
    monkeypatch.setattr(ledger, "fetch", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(InputError, match=r"YOUR_ACCOUNT/csd-kit is no real address: set CSD_FILES"):
        ledger.load_features(packaged)


def test_features_come_from_the_release_if_there_is_one(packaged, monkeypatch):
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr(ledger, "REPOSITORY", "someone/csd-kit")
    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    with pytest.raises(InputError, match=r"no network.*set CSD_FILES"):
        ledger.load_features(packaged)
    place = f"data/results/cifar100/{packaged.folder.name}/features.npz"
    base = f"https://raw.githubusercontent.com/someone/csd-kit/v{csd_lib.__version__}"
    assert asked == [f"{base}/{place}"]


@pytest.mark.parametrize(
    "answer, message",
    [
        (servers.wrong, "cannot be fetched from .*has another SHA-256 .* and is deleted"),
        (servers.half, "cannot be fetched from .*bytes arrived"),
        (servers.not_found, "cannot be fetched from .*404"),
    ],
)
def test_features_that_did_not_arrive_whole_are_refused_and_not_kept(
    answer, message, packaged, serve, monkeypatch
):
    place = Path("cifar100", packaged.folder.name, "features.npz")
    server = serve(answer, (ROOT / "data" / "results" / place).read_bytes())
    monkeypatch.setenv("CSD_FILES", server.url)
    with pytest.raises(InputError, match=message):
        ledger.load_features(packaged)
    assert not list(paths.data_folder().rglob("features.npz"))
    server.answer = servers.whole
    assert ledger.load_features(packaged)[0].shape == (10_000, 64)
    assert {path for path, _ in server.asked} == {f"/{place}"}
    (kept,) = paths.data_folder().rglob("features.npz*")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == packaged.files["features.npz"]


def test_damaged_features_in_the_cache_are_fetched_again(packaged, monkeypatch):
    monkeypatch.setenv("CSD_FILES", str(ROOT / "data" / "results"))
    features, _ = ledger.load_features(packaged)
    (kept,) = paths.data_folder().rglob("features.npz*")
    kept.write_bytes(b"damaged")
    assert torch.equal(ledger.load_features(packaged)[0], features)


def test_what_an_installed_csd_lib_has_recorded_is_not_run_again(packaged, monkeypatch):
    source = next((ROOT / "data" / "results" / "digits").glob("*-csd-2tasks-seed0-*"))
    place = shutil.copytree(source, ledger.PACKAGED / "digits" / source.name)
    monkeypatch.setattr(ledger, "run_experiment", lambda *_, **__: pytest.fail("run again"))
    config = TrainConfig(**files.read_json(place / "results.json")["config"])
    assert ledger.reproduce([config], progress=False) == [place]


def test_own_records_come_before_those_of_the_package(packaged):
    own = paths.data_folder() / "results" / "cifar100" / packaged.folder.name
    files.make_folder(own)
    shutil.copy(packaged.folder / "results.json", own)
    assert [record.folder for record in ledger.load_records()] == [own]


def test_a_file_that_is_in_no_folder_of_records_is_named(packaged):
    with pytest.raises(InputError, match=r"there is no digits-epochs\.npz in .*: copy it"):
        ledger.find_file("digits-epochs.npz")


# --- course.start on Colab ---------------------------------------------------------------------


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """In this process: Colab without a GPU, and a stand-in for Drive that notes its mounts."""
    mounts = []
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.chdir(tmp_path)
    for name in ("google", "google.colab", "google.colab.drive"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from google.colab import drive

    mount = drive.mount
    monkeypatch.setattr(drive, "mount", lambda place: (mounts.append(place), mount(place)))
    monkeypatch.setattr(course.session, "DRIVE", tmp_path / "drive")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("CSD_MODE", "CSD_RUNS"):
        monkeypatch.setenv(name, "")  # so that what start() sets is undone
        monkeypatch.delenv(name)
    yield mounts
    for name in ("google", "google.colab", "google.colab.drive"):
        sys.modules.pop(name, None)


MENU = "Runtime → Change runtime type → T4 GPU → Save"


def test_colab_without_a_gpu_says_so_loudly_and_goes_on_in_smoke_mode(colab, capsys, monkeypatch):
    assert course.start().mode == "smoke"
    printed = capsys.readouterr().out
    assert "no GPU" in printed and MENU in printed and "border: 4px" in printed
    monkeypatch.setenv("CSD_MODE", "smoke")
    course.start()
    assert MENU not in capsys.readouterr().out, "who asks for smoke needs no GPU"
    monkeypatch.delenv("CSD_MODE")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(session, "mode_forecast", lambda *_, **__: "an hour")
    course.start()
    assert MENU not in capsys.readouterr().out


def test_outside_colab_nothing_is_loud_and_drive_is_ignored_with_a_note(capsys, monkeypatch):
    monkeypatch.delenv("CSD_MODE", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    course.start(keep_in_drive=True)
    printed = capsys.readouterr().out
    assert MENU not in printed and "border" not in printed
    assert (
        f"keep_in_drive is only for Google Colab: runs are kept in {paths.runs_folder()}" in printed
    )
    course.start()
    assert "keep_in_drive" not in capsys.readouterr().out


def test_drive_is_mounted_only_on_an_explicit_yes(colab, capsys):
    course.start()
    printed = capsys.readouterr().out
    assert colab == [] and "CSD_RUNS" not in os.environ
    assert f"{paths.runs_folder()} and vanish with this runtime; keep_in_drive=True" in printed
    course.start(keep_in_drive=True)
    folder = course.session.DRIVE / "MyDrive" / "csd-kit" / "runs"
    assert colab == [str(course.session.DRIVE)] and folder.is_dir()
    assert paths.runs_folder() == folder
    printed = capsys.readouterr().out
    assert f"Runs are kept in {folder}: a new runtime goes on" in printed
    assert "vanish" not in printed


def refuse(place):
    raise ValueError("mount failed")


@pytest.mark.parametrize(
    "target, broken, problem",
    [
        ("google.colab.drive.mount", refuse, "mount failed"),
        (
            "shutil.disk_usage",
            lambda folder: namedtuple("Usage", "free")(99e6),
            "less than 100 MB are free",
        ),
        ("google.colab.drive.mount", lambda place: Path(place).touch(), "Not a directory"),
    ],
)
def test_a_drive_that_cannot_be_used_costs_one_line_and_nothing_else(
    target, broken, problem, colab, capsys, monkeypatch
):
    before = paths.runs_folder()
    monkeypatch.setattr(target, broken)
    assert course.start(keep_in_drive=True).mode == "smoke"
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "Google Drive cannot be used" in line]
    assert problem in line
    assert paths.runs_folder() == before and "vanish with this runtime" in printed


RUN_ON_COLAB = """
import os, signal, sys
from pathlib import Path
import google.colab
from csd_lib import course, runs

course.session.DRIVE = Path("drive").absolute()
session = course.start(keep_in_drive={keep})
append = runs.RunFolder.append_history

def append_and_die(kept, record):
    append(kept, record)
    if kept.folder and record["task"] == 1 and record["epoch"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)

if {dies}:
    runs.RunFolder.append_history = append_and_die
print(session.run("csd", epochs=4).folder)
"""


def run_on_colab(folder, keep, dies=False):
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "CSD_RUNS"}
    environment |= {"CSD_MODE": "smoke", "PYTHONPATH": f"{STAND_IN}:{ROOT}"}
    code = "import torch; torch.set_num_threads(1)" + RUN_ON_COLAB.format(keep=keep, dies=dies)
    return warm.run("-c", code, cwd=folder, env=environment)


def test_after_a_disconnect_a_new_runtime_finishes_the_run_in_drive_bit_for_bit(tmp_path):
    killed = run_on_colab(tmp_path / "colab", keep=True, dies=True)
    assert killed.returncode == -9, killed.stderr
    kept = tmp_path / "colab" / "drive" / "MyDrive" / "csd-kit" / "runs"
    (folder,) = kept.glob("*-csd-*")
    assert not (folder / "results.json").exists()
    before = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len(before) == 6
    resumed = run_on_colab(tmp_path / "colab", keep=True)
    assert resumed.stdout.splitlines()[-1] == str(folder), resumed.stderr
    after = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert after[:4] == before[:4], "with the seconds that each epoch took: not trained again"

    whole = run_on_colab(tmp_path / "whole", keep=False)
    assert outcome(folder) == outcome(Path(whole.stdout.splitlines()[-1])) and len(after) == 8
