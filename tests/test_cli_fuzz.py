"""Every option of the command line with every kind of wrong value: exit code 2, before any work.

The options are read from the signatures, so a new one is tried too. What our own code refuses is
one line; a value that cannot be read at all is refused by tyro, in a box that names the option.
"""

import inspect
import os
import sys
from dataclasses import fields, replace

import limits
import pytest
from typed import csd

import csd_lib.datasets
import csd_lib.experiment
import csd_lib.prepare
import csd_lib.train
from csd_lib import commands, download, paths
from csd_lib.config import TrainConfig
from csd_lib.paper import ledger

# Positional ones; and "data", where a value is taken for the positional one: see test_own_images.
NOT_TRIED = {
    "reproduce": {"experiment"},
    "sweep": {"experiment"},
    "data": {"what", "image_size", "check"},
}
VALUES = [
    *("", "no such name", "two\nlines", "None", "True", "1,2", "[1]", "-1", "0", "1", "1.5"),
    *("nan", "inf", "-inf", "1e-30", "1e30", "1" + "0" * 30, "9" * 300),
]
COMMANDS = {
    "train": [],
    "reproduce": ["eq8", "--dataset", "digits"],
    "sweep": ["eq8", "--settings", "dataset=digits"],
    "report": [],
    "data": ["--check"],
}


def options(command):
    """Names of all options, as they are typed."""
    names = list(inspect.signature(getattr(commands, command)).parameters)
    if command == "train":
        names = [field.name for field in fields(TrainConfig)] + ["folder", "quiet"]
    if command == "reproduce":
        names = [*(name for name in names if name != "config"), *commands.SHARED]
    return [name for name in names if name not in NOT_TRIED.get(command, ())]


def values(command, option):
    """What to try; behind a switch every value is the same, a word that is not understood."""
    parameter = inspect.signature(getattr(commands, command)).parameters.get(option)
    is_switch = parameter is not None and parameter.annotation in (bool, "bool")
    return VALUES[:4] if is_switch else VALUES


class Started(Exception):  # noqa: N818 - it is no error: the values were accepted
    """Raised where the first epoch would begin."""


@pytest.fixture
def cli(monkeypatch, tmp_path, digits):
    """Runs a command in this process up to its first epoch: (exit code or Started, output)."""

    def started(*_, **__):
        raise Started

    def load(name, root=None, image_size=None):
        return digits if name == "digits" else started()

    monkeypatch.setattr(csd_lib.train, "TaskTraining", started)
    for module in (csd_lib.prepare, csd_lib.datasets):
        monkeypatch.setattr(module, "load_dataset", load)
    monkeypatch.setattr(ledger, "load_images", started)
    monkeypatch.setitem(sys.modules, "submitit", sys)  # it would be asked for later
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    nobody = replace(download.CIFAR100, address=str(tmp_path / "no-origin"))
    monkeypatch.setattr(download, "CIFAR100", nobody)
    for name in [name for name in os.environ if name.startswith("CSD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CSD_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments):
        try:
            done = csd(*arguments)
        except Started:
            return Started, "", ""
        return done.returncode, done.stdout, done.stderr

    return run


def problem(code, out, err, option, value):
    """Say what is wrong with a refusal, or None if it is as it should be."""
    if code != 2:
        return f"exit code {code}"
    if out or "Traceback" in err:
        return f"stdout {out[:80]!r}, stderr {err[-200:]!r}"
    if err.startswith("error: "):
        lines = err.splitlines()
        if len(lines) > 1 or len(err) > 600:
            return f"not one short line: {err[:200]!r}"
    text = " ".join(err.split())
    typed, value = f"--{option.replace('_', '-')}", " ".join(value.split())
    text, value = text.replace(" ", ""), value.replace(" ", "")  # the box breaks lines
    if not any(name in text for name in (option, typed, value or "Unrecognizedoptions")):
        return f"names neither option nor value: {err[:200]!r}"
    return None


# The values that are legitimate. A folder may have any name.
PATHS = {*VALUES} - {"", "9" * 300}  # which is too long for a file system
TRAIN = {
    part.name: {text for text in VALUES if limits.takes_text(part, text)}
    for part in fields(TrainConfig)
    if limits.is_plain(part)
}
TRAIN |= dict(
    image_size={"None"},  # digits have one size
    network={"None"},
    weights={"None"},
    init_from={"None"},
    milestones={"None", "1", "1e-30"},
)
ALLOWED = {
    "train": {**TRAIN, "folder": PATHS},
    "reproduce": dict(
        **{name: TRAIN[name] for name in commands.SHARED if name in TRAIN},
        seeds={"0", "1"},
        tasks={"None"},
        folder=PATHS,
    ),
    "sweep": dict(
        seeds={"0", "1"},
        at_once={"None", "1"},
        cpus={"1"},
        gpus={"0", "1"},
        hours={"1", "1.5", "1e-30"},
        cells_per_job={"1"},
        folder=PATHS,
    ),
    "report": dict(folder={"None"}, figures=PATHS),
    "data": {},
}


OPTIONS = [(command, option) for command in COMMANDS for option in options(command)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command, option", OPTIONS)
def test_a_wrong_value_is_refused_before_any_work(cli, command, option, tmp_path):
    wrong, accepted = {}, set()
    for value in values(command, option):
        flag = f"--{option.replace('_', '-')}"
        code, out, err = cli(command, *COMMANDS[command], flag, value)
        if code in (0, Started):
            accepted.add(value)
        elif found := problem(code, out, err, option, value):
            wrong[value] = found
    assert wrong == {}
    assert accepted == ALLOWED[command].get(option, set())
