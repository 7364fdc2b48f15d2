"""The command line as a user meets it; test_faults.py kills it and fills its disk."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest

from csd_lib.__main__ import main

CLI = [sys.executable, "-m", "csd_lib"]


def start_cli(*arguments, **environment):
    """The command in a process of its own, which takes three seconds to import all."""
    env = {**os.environ, **environment}
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, env=env)


def run_cli(*arguments, runs=None, **environment):
    """The same in this process."""
    environment |= {"CSD_RUNS": str(runs)} if runs else {}
    stdout, stderr, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["csd_lib", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def only_line(text):
    """Progress bars may precede the message; a message is one line."""
    lines = [line for line in text.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_train_prints_the_matrices_and_keeps_config_history_and_results(tmp_path):
    command = ["train", "--epochs", "1", "--tasks", "2", "--seed", "3"]
    done = start_cli(*command, CSD_RUNS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "after task 2" in done.stdout and "forgetting" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("digits-csd-2tasks-seed3-")
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["seed"] == 3 and len(results["matrix"]["own"]) == 2
    assert {"date", "device", "versions", "code", "training_seconds"} <= set(results)
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2

    again = run_cli(*command, runs=tmp_path)
    assert again.stdout == done.stdout, "a finished run is loaded, not trained again"
    table = run_cli("report", "--markdown", runs=tmp_path)
    assert "| CSD |" in table.stdout and "seeds 3" in table.stdout


def test_help_lists_every_field_of_the_config():
    from dataclasses import fields

    from csd_lib.train import TrainConfig

    text = run_cli("train", "--help").stdout
    assert [
        f.name for f in fields(TrainConfig) if f"--{f.name.replace('_', '-')}" not in text
    ] == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--dataset", "mnist"], ["'mnist'", "digits", "cifar100"]),
        (["train", "--method", "replay"], ["'replay'", "fine-tuning"]),
        (["train", "--tasks", "11"], ["tasks=11", "10 classes"]),
        (["train", "--batch-size", "1"], ["batch_size=1", "from 2 to"]),
        (["train", "--epochs", "0"], ["epochs=0"]),
        (["train", "--device", "cuda:77"], ["cuda:77"]),
        (["report", "--folder", "nothing-here"], ["no finished run", "nothing-here"]),
        (["reproduce", "table9"], ["'table9'", "table1", "figure3"]),
        (["reproduce", "table1", "--preset", "quick"], ["'quick'", "reference", "clean"]),
        (["train", "--preset", "class"], ["'class'", "digits"]),
        (["train", "--method", "kd+ce"], ["'kd+ce'", "this order"]),
        (["train", "--precision", "tf32", "--device", "cpu"], ["tf32", "fp32"]),
        (["train", "--cuda-graph", "--device", "cpu"], ["cuda_graph", "cpu"]),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = run_cli(*arguments, runs=tmp_path)
    assert done.returncode == 2
    message = only_line(done.stderr)
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


def test_an_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = start_cli("train", "--folder", str(tmp_path / "file" / "run"))
    assert done.returncode == 2
    assert "cannot write to" in only_line(done.stderr)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"hello"])
def test_a_corrupt_cifar100_file_is_named(tmp_path, content):
    path = tmp_path / "cifar100.npz"
    path.write_bytes(content)
    done = run_cli("train", "--dataset", "cifar100", runs=tmp_path / "runs", CSD_DATA=str(path))
    assert done.returncode == 2
    assert str(path) in only_line(done.stderr)


def test_data_says_where_cifar100_is_and_how_others_get_it(tmp_path):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2
    arrays = {f"{part}_images": images for part in ("train", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "test")}
    np.savez(tmp_path / "cifar100.npz", **arrays, class_names=np.array(["ant", "bee"]))
    for arguments in (["data"], ["data", "--check"]):
        done = run_cli(*arguments, CSD_DATA=str(tmp_path))
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
    done = run_cli("data", "--check", CSD_DATA=str(tmp_path))
    assert done.returncode == 2 and words in only_line(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if name else [])


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"config": ')
    done = run_cli("report", runs=tmp_path)
    assert done.returncode == 2 and "results.json" in only_line(done.stderr)
