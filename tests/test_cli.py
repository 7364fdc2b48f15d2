"""The command line as a user meets it; test_faults.py kills it and fills its disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions, requires
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pytest
import warm
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typed import csd

from csd_lib import __version__

ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-m", "csd_lib"]


@pytest.fixture
def few_records(tmp_path):
    """Three recorded runs: a report of all computes a hundred fingerprints."""
    for run in (
        "csd-2tasks-seed0-10db6572",
        "csd-2tasks-seed1-8ce8394b",
        "joint-2tasks-seed1-8ce8394b",
    ):
        source = ROOT / "data" / "results" / "digits" / f"digits-{run}"
        shutil.copytree(source, tmp_path / "few" / run)
    return str(tmp_path / "few")


def only_line(text):
    """Progress bars may precede the message; a message is one line."""
    lines = [line for line in text.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_programs_get_a_run_once_that_was_recorded_and_lies_under_runs_too(few_records, tmp_path):
    names = ("csd-2tasks-seed0-10db6572", "csd-2tasks-seed1-8ce8394b")
    for name in names:
        shutil.copytree(Path(few_records) / name, tmp_path / "runs" / name)
    path = tmp_path / "runs" / names[1] / "results.json"
    content = json.loads(path.read_text())
    content["matrix"]["own"][0][0] += 0.01  # of the same run on another machine
    path.write_text(json.dumps(content))
    done = csd("report", "--json", runs=tmp_path / "runs", CSD_RESULTS=few_records)
    assert [Path(run["folder"]).parent.name for run in json.loads(done.stdout)] == [
        "few",
        "few",
        "few",
        "runs",
    ]


def test_train_prints_the_matrices_and_keeps_config_history_and_results(tmp_path):
    command = ["train", "--epochs", "1", "--tasks", "2", "--seed", "3"]
    done = warm.run("-m", "csd_lib", *command, env={**os.environ, "CSD_RUNS": tmp_path})
    assert done.returncode == 0, done.stderr
    assert "after task 2" in done.stdout and "forgetting" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("digits-csd-2tasks-seed3-")
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["seed"] == 3 and len(results["matrix"]["own"]) == 2
    assert {"date", "device", "versions", "data", "fingerprint", "training_seconds"} <= set(results)
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2

    again = csd(*command, runs=tmp_path)
    assert again.stdout == done.stdout, "a finished run is loaded, not trained again"
    table = csd("report", "--markdown", "--folder", str(tmp_path))
    assert "| CSD |" in table.stdout and "seeds 3" in table.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--dataset", "mnist"], ["'mnist'", "digits", "cifar100"]),
        (["train", "--method", "replay"], ["'replay'", "fine-tuning"]),
        (["train", "--tasks", "11"], ["tasks=11", "10 classes"]),
        (["train", "--device", "cuda:77"], ["cuda:77"]),
        (["report", "--folder", "nothing-here"], ["no finished run", "nothing-here"]),
        (["report", "--against", "csd"], ["against='csd'", "NAME=VALUE"]),
        (["report", "--against", "lamda_kd=1"], ["'lamda_kd'", "lambda_kd"]),
        (["report", "--against", "method=csd,lwf"], ["method", "one value"]),
        (["report", "--against", "seed=1"], ["seed=1", "leave out the seed"]),
        (["report", "--against", "method=csd", "--json"], ["--against", "no runs of yours"]),
        (["reproduce", "table9"], ["'table9'", "table1", "figure3"]),
        (["reproduce", "table1", "--preset", "quick"], ["'quick'", "reference", "clean"]),
        (["sweep", "table9"], ["'table9'", "table1", "figure3", "grid"]),
        (["sweep", "grid", "--settings", "lamda_kd=1"], ["'lamda_kd'", "lambda_kd"]),
        (["sweep", "grid", "--settings", "tasks=11"], ["tasks=11", "10 classes"]),
        (["sweep", "grid", "--slurm", "partition=gpu"], ["partition=gpu", "--engine slurm"]),
        (["train", "--preset", "class"], ["'class'", "digits"]),
        (["report", "--csv", "--figures", "f"], ["--figures f", "--csv"]),
        (["train", "--method", "kd+ce"], ["'kd+ce'", "this order"]),
        (["train", "--precision", "tf32", "--device", "cpu"], ["tf32", "fp32"]),
        (["train", "--cuda-graph", "true", "--device", "cpu"], ["cuda_graph", "cpu"]),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = csd(*arguments, runs=tmp_path)
    assert done.returncode == 2
    message = only_line(done.stderr)
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


def test_data_says_where_cifar100_is_and_how_others_get_it(tmp_path):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2
    arrays = {f"{part}_images": images for part in ("train", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "test")}
    np.savez(tmp_path / "cifar100.npz", **arrays, class_names=np.array(["ant", "bee"]))
    for arguments in (["data"], ["data", "--check"]):
        done = csd(*arguments, CSD_DATA=str(tmp_path))
        assert done.returncode == 0, done.stderr
        place = f"{tmp_path / 'cifar100.npz'}: 0 MB, 4 training and 4 test images of 2 classes"
        assert place in done.stdout and "CSD_DATA=THAT_FOLDER" in done.stdout
        assert "http.server" not in done.stdout, "only the archive can be handed out by network"
    assert [path.name for path in tmp_path.iterdir()] == ["cifar100.npz"]


@pytest.mark.parametrize(
    "name, words",
    [
        (None, "cifar100.npz does not exist yet: python -m csd_lib data makes it"),
        ("cifar100.npz", "cifar100.npz cannot be read"),
        ("cifar-100-python.tar.gz", "cifar-100-python.tar.gz has 5 bytes instead of 169,001,437"),
    ],
)
def test_data_check_names_what_is_missing_or_damaged_and_writes_nothing(tmp_path, name, words):
    if name:
        (tmp_path / name).write_bytes(b"hello")
    done = csd("data", "--check", CSD_DATA=str(tmp_path))
    assert done.returncode == 2 and words in only_line(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if name else [])


def test_a_damaged_result_is_named_and_the_rest_is_reported(tmp_path, few_records):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"config": ')
    done = csd("report", runs=tmp_path, CSD_RESULTS=few_records)
    assert done.returncode == 0 and "left out: " in done.stdout
    assert "run/results.json cannot be read" in done.stdout and "digits" in done.stdout


# --- how a command ends ----------------------------------------------------------------------


CSD = "sys.argv[0] = 'csd'; from csd_lib.__main__ import main; main()"


def csd_stopped(number, module):
    """A command ``csd`` that gets a signal when a module is first imported."""
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    return [sys.executable, "-c", code + CSD]


def csd_without(*packages):
    """A command ``csd`` as if some packages were not installed."""
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        f"find, hidden = PathFinder.find_spec, set({packages!r})\n"
        "def find_spec(name, path=None, target=None):\n"
        "    return None if name.split('.')[0] in hidden else find(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
    )
    return [sys.executable, "-c", code + CSD]


def test_version_names_kit_python_and_torch_without_importing_torch():
    command = [*csd_without("torch", "numpy", "tyro"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    python = ".".join(map(str, sys.version_info[:3]))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stderr
    assert [__version__, python, installed("torch")] == re.findall(r"\d[\w.+]+", done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize(
    "number, module",
    [
        (signal.SIGINT, "tyro"),
        (signal.SIGINT, "torch.nn"),
        (signal.SIGTERM, "csd_lib.config"),
    ],
)
def test_a_signal_during_the_imports_ends_in_one_line(number, module):
    command = [*csd_stopped(number, module), "report"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert "stopped" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_signal_in_training_ends_in_one_line_and_the_same_command_goes_on(tmp_path):
    command = ["-m", "csd_lib", "train", "--epochs", "6", "--folder", tmp_path / "run"]
    history = tmp_path / "run" / "history.jsonl"
    seen = 0

    def an_epoch_is_over():
        return history.exists() and history.stat().st_mtime_ns > seen and history.read_text()

    for number in (signal.SIGINT, signal.SIGTERM):
        process = warm.Python(*command)
        while process.poll() is None and not an_epoch_is_over():
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == 128 + number, err
        assert out == "" and "Traceback" not in err
        assert err.splitlines()[-1].startswith("stopped")
        seen = history.stat().st_mtime_ns
    done = warm.run(*command)
    assert done.returncode == 0 and "after task 2" in done.stdout, done.stderr
    assert len(history.read_text().splitlines()) == 12


@pytest.fixture
def no_records(tmp_path, monkeypatch):
    """A report then computes no fingerprints, which takes seconds."""
    for name in ("CSD_RESULTS", "CSD_RUNS"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are others there")
@pytest.mark.parametrize("arguments", [["report"], ["--help"], ["--version"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(arguments, no_records):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*CLI, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("arguments", [["report"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_one_line(arguments, no_records):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CLI, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == only_line(done.stderr) and "No space" in done.stderr


def test_without_any_output_a_command_still_works():
    closed = f"exec {sys.executable} -m csd_lib --help >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], stderr=subprocess.DEVNULL).returncode == 0


def test_a_terminal_that_knows_only_ascii_gets_all_numbers(few_records):
    command = ["report", "--folder", few_records]
    plain, env = csd(*command), {**os.environ, "PYTHONIOENCODING": "ascii"}
    ascii_only = subprocess.run([*CLI, *command], capture_output=True, text=True, env=env)
    assert "±" in plain.stdout and "–" in plain.stdout
    assert ascii_only.returncode == 0, ascii_only.stderr
    assert ascii_only.stdout == plain.stdout.replace("±", "+/-").replace("–", "-")


def test_a_strangers_file_cannot_command_the_terminal(tmp_path):
    escape = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
    source = next((ROOT / "data" / "results" / "cifar100").rglob("results.json"))
    record = json.loads(source.read_text())
    record |= {name: record.get(name, "") + escape for name in ("device", "date", "code")}
    record["versions"]["torch"] += escape
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "results.json").write_text(json.dumps(record))
    for arguments in (["report"], ["report", "--folder", str(tmp_path)]):
        done = csd(*arguments, CSD_RESULTS=str(tmp_path), runs=tmp_path / "none")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


# --- without the course's packages -------------------------------------------------------------


def core_distributions():
    """What installing the kit without extras brings along, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = set(), list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name not in found and (marker is None or marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += requires(name) or []
    return found


def test_training_and_reporting_need_none_of_the_courses_packages(tmp_path):
    core = {*core_distributions(), "csd-lib"}
    others = [
        module
        for module, owners in packages_distributions().items()
        if not core & set(map(canonicalize_name, owners)) and not module.startswith("_")
    ]
    course = {"torchvision", "matplotlib", "seaborn", "umap", "IPython", "ipywidgets"}
    assert course <= set(others)
    *command, code = csd_without(*others)
    figures = ["report", "--figures", str(tmp_path / "figures")]
    each = (["train", "--epochs", "1"], ["report"], figures)
    calls = "; ".join(f"sys.argv[1:] = {arguments}; main()" for arguments in each)
    command = [*command, code.removesuffix("main()") + calls]
    environment = {**os.environ, "CSD_RUNS": str(tmp_path), "CSD_RESULTS": str(tmp_path / "none")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.count("Not reproduced") == 1, done.stderr
    trained, _, reported = done.stdout.partition("Not reproduced")
    assert "after task 2" in trained and "CSD" in reported.split("Your runs in")[1], done.stderr
    assert done.returncode == 2 and "csd-lib" in only_line(done.stderr), "it names the remedy"
    assert not (tmp_path / "figures").exists()
