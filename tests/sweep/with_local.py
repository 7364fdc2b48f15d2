"""Sweeps through submitit's processes on this machine."""

import os
import signal
import subprocess
import sys

import numpy as np
import torch
from common import DISTURBED_AT, EPOCHS, LIMIT, Kept, went_on
from one_node import processes_of, wait_for

from csd_lib import grid
from csd_lib.paper import ledger

SETTINGS = ["--settings", "dataset=digits", "preset=clean", "device=cpu"]


def test_two_workers_record_what_one_process_does_and_never_do_one_cell(tmp_path, monkeypatch):
    kept = Kept(tmp_path)
    methods = ["initial", "fine-tuning", "csd", "joint"]
    settings = [*SETTINGS, "epochs=1", f"method={','.join(methods)}"]
    text = kept.run("sweep", "table1", *settings, "--at-once", "2")
    assert "4 cells, 2 processes" in text and "Fine-tuning" in text, "one table"
    assert len(kept.begun()) == len(set(kept.begun())) == 4, kept.said()
    swept = {record.config.method: record for record in kept.records()}
    assert sorted(swept) == sorted(methods)
    assert all(len(kept.history(method=m)) == len(swept[m].history) for m in methods)

    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "one" / "runs"))
    torch.set_num_threads(1)
    read = grid.read_settings([*settings[1:]])
    configs = grid.make_configs("table1", (0,), read)
    ledger.reproduce(configs, tmp_path / "one" / "results", progress=False)
    for alone in ledger.load_records(tmp_path / "one" / "results"):
        np.testing.assert_equal(vars(alone.matrix), vars(swept[alone.config.method].matrix))

    again = kept.run("sweep", "table1", *settings, "--dry-run")
    assert "0 cells to run" in again
    assert "processes" not in kept.run("sweep", "table1", *settings), "nothing is started"


def test_a_script_with_a_term_of_its_own_may_lie_elsewhere(tmp_path):
    kept, script = Kept(tmp_path), tmp_path / "mine" / "mine.py"
    script.parent.mkdir()
    script.with_name("my_terms.py").write_text(
        "from csd_lib.methods import TERMS, Term\n\n"
        "def far(o, s):\n    return (o.features - o.teacher_features).square().mean()\n\n"
        "TERMS['far'] = Term('far', far)\n"
    )
    script.write_text("import my_terms\nfrom csd_lib.__main__ import main\n\nmain()\n")
    sweep = ["sweep", "grid", *SETTINGS, "epochs=1", "method=initial,ce+far", "--at-once", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *sweep],
        env=kept.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    recorded = [path.parent.name for path in kept.results.rglob("results.json")]
    assert [name.split("-")[1] for name in sorted(recorded)] == ["ce+far", "initial"]


def started(kept, seed):
    """A sweep of two long cells that is at work on the one with this seed."""
    command = [
        "sweep",
        "grid",
        *SETTINGS,
        f"epochs={EPOCHS}",
        "method=initial",
        "--seeds",
        "0",
        "1",
    ]
    process = kept.start(*command, "--at-once", "2")
    try:
        wait_for(lambda: len(kept.history(seed=seed)) >= DISTURBED_AT, "it does not begin", LIMIT)
    except BaseException:
        process.terminate()
        raise
    return command, process


def test_what_a_killed_worker_leaves_another_one_finishes(tmp_path):
    kept = Kept(tmp_path)
    _, process = started(kept, seed=1)
    (log,) = [
        p for p in kept.runs.glob("sweeps/*/*log.out") if "seed 1" in p.read_text().splitlines()[-1]
    ]
    controller = int(log.name.partition("_")[0])
    before = kept.history(seed=1)
    workers = [n for n in processes_of("submitit.core._submit") if parent(n) == controller]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    try:
        text, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, text
    assert sorted(record.config.seed for record in kept.records()) == [0, 1]
    assert went_on(before, kept.history(seed=1))


def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(tmp_path):
    kept = Kept(tmp_path)
    command, process = started(kept, seed=0)
    process.terminate()
    text, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in text
    wait_for(lambda: not processes_of(kept.runs), "workers are left", 60)
    before = kept.history(seed=0)
    assert len(before) < EPOCHS and kept.records() == []
    kept.run(*command)
    assert len(kept.records()) == 2 and went_on(before, kept.history(seed=0))


def parent(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None
