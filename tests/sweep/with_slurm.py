"""Sweeps on a real Slurm of one node with two cores."""

from collections import Counter

import one_node
import pytest
from common import DISTURBED_AT, EPOCHS, LIMIT, Kept, went_on

from csd_lib import identity
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_folder

SETTINGS = ["dataset=digits", "preset=clean", "device=cpu"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with one_node.slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def kept(cluster, tmp_path):
    return Kept(tmp_path, cluster)


def queue(kept):
    """The jobs that are not over yet: number, state and what they wait for."""
    text = one_node.said(kept.environment, "squeue", "-h", "-r", "-o", "%i %T %E")
    return [line.split() for line in text.splitlines()]


def until_the_queue_is_empty(kept):
    one_node.wait_for(lambda: not queue(kept), "the jobs do not end", LIMIT)


def sweep(kept, *arguments, **options):
    return kept.run("sweep", *arguments, "--engine", "slurm", **options)


def test_an_array_records_every_cell_once_also_if_it_is_sent_twice(kept, digits):
    methods = ["initial", "fine-tuning", "csd", "joint"]
    command = ["table1", "--settings", *SETTINGS, "epochs=1", f"method={','.join(methods)}"]
    assert "0 cells" not in sweep(kept, *command)
    waits_for = [words for words in queue(kept) if "afterany" in words[-1]]
    assert len(waits_for) == 2, "fine-tuning and csd wait for their first task"
    sweep(kept, *command)  # the same cells once more, while the first ones are in the queue
    until_the_queue_is_empty(kept)

    records = kept.records()
    assert sorted(record.config.method for record in records) == sorted(methods), kept.said()
    for record in records:
        assert len(kept.history(method=record.config.method)) == len(record.history)
    # Eight jobs; a title is said by whoever begins a cell, and never twice for one.
    begun = Counter(line.partition("] ")[2] for line in kept.begun())
    assert len(begun) == 4 and {*begun.values()} == {1}, kept.said()
    configs = [
        TrainConfig(dataset="digits", method=method, epochs=1, device="cpu") for method in methods
    ]
    wanted = [c for config in configs for c in (config, identity.first_task(config)) if c]
    names = {run_folder(config, digits).name for config in wanted}
    assert {path.name for path in kept.runs.iterdir()} == {*names, "sweeps"}
    assert "0 cells in 0 jobs" in sweep(kept, *command)
    assert "Fine-tuning" in kept.run("report"), "all results meet in one table"


def test_a_killed_a_preempted_and_a_stopped_cell_go_on_where_they_were(kept):
    command = ["grid", "--settings", *SETTINGS, f"epochs={EPOCHS}", "method=initial"]
    command += ["--seeds", "0", "1", "2"]
    sweep(kept, *command)
    array = queue(kept)[0][0].partition("_")[0]
    before = {}
    for seed, disturb in enumerate(
        [
            ("scancel", "--signal=KILL"),  # as when the memory is full: Slurm takes it as failed
            ("scontrol", "requeue"),  # preemption
            ("scancel", "--signal=USR2"),  # what submitit is told before the time is over
        ]
    ):
        one_node.wait_for(
            lambda seed=seed: len(kept.history(seed=seed)) >= DISTURBED_AT, kept.said(), LIMIT
        )
        before[seed] = kept.history(seed=seed)
        one_node.said(kept.environment, *disturb, f"{array}_{seed}")
    until_the_queue_is_empty(kept)
    assert sorted(record.config.seed for record in kept.records()) == [1, 2], kept.said()
    assert "Requeued job" in kept.said(), "the last one went through submitit's checkpoint"

    assert "1 cells in 1 jobs" in sweep(kept, *command)
    until_the_queue_is_empty(kept)
    assert len(kept.records()) == 3, kept.said()
    for seed, lines in before.items():
        assert len(lines) < EPOCHS, "it was over before it was disturbed: nothing was tested"
        assert went_on(lines, kept.history(seed=seed)), seed


def test_what_slurm_refuses_is_one_line(kept):
    command = ["grid", "--settings", *SETTINGS, "epochs=1", "--slurm", "partition=none"]
    text = sweep(kept, *command, code=2)
    assert "invalid partition" in text and "Traceback" not in text
    assert queue(kept) == []
