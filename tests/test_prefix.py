"""Schedules that differ between tasks, and runs that stop before their schedule's end."""

from dataclasses import replace

import pytest
from stopped import same_bits, stop_after

from csd_lib import InputError, files, identity, runs
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment, run_name
from csd_lib.paper import report
from csd_lib.record import Record
from csd_lib.train import learning_rate, train

QUICK = TrainConfig(epochs=4, device="cpu", milestones=(0.5,), method="fine-tuning")


@pytest.fixture
def own_runs(own_folders):
    return own_folders / "runs"


def test_later_tasks_may_be_shorter_and_their_schedule_with_them(digits):
    config = replace(QUICK, later_epochs=2)
    run = train(config, digits, progress=False)
    assert [(h["task"], h["epoch"]) for h in run.history] == [(0, e) for e in range(4)] + [
        (1, 0),
        (1, 1),
    ]
    rates = [h["learning_rate"] for h in run.history]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-2, 1e-3])
    assert (
        identity.key(config) != identity.key(QUICK) == identity.key(replace(QUICK, later_epochs=4))
    )
    assert identity.key(identity.first_task(config)) == identity.key(identity.first_task(QUICK)), (
        "they share their first task"
    )


def test_sgd_is_another_run_with_momentum(digits):
    adam, sgd = QUICK, replace(QUICK, optimizer="sgd", learning_rate=0.05)
    assert run_name(adam, "data", "code") != run_name(sgd, "data", "code")
    run = train(replace(sgd, method="initial", epochs=8, milestones=()), digits, progress=False)
    losses = [h["loss"] for h in run.history]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("selection", ["last", "held_out"])
def test_a_prefix_is_the_whole_run_so_far_and_the_whole_run_goes_on_from_it(
    digits, own_runs, selection
):
    """Also where the stop lies between two looks of a selection."""
    config = replace(QUICK, selection=selection)
    whole = run_experiment(config, digits, folder=own_runs / "by-hand", progress=False)
    prefix = run_experiment(replace(config, stop_at_epoch=3), digits, progress=False)
    assert len(prefix.history) == 6
    for name in ("loss", "learning_rate", "selection_recall"):
        found, wanted = ([h.get(name) for h in run.history[:3]] for run in (prefix, whole))
        assert found == wanted
    trained = []
    on = run_experiment(
        config, digits, progress=False, on_epoch=lambda h, s: trained.append(len(h))
    )
    assert trained == [4, 5, 6, 7, 8], "three of the first task's epochs were there already"
    assert same_bits(on, whole) and not same_bits(prefix, whole)


def test_a_stop_goes_on_from_a_half_done_whole_run_but_not_from_one_that_is_further(
    digits, own_runs, monkeypatch
):
    monkeypatch.setattr(runs.RunFolder, "is_due", lambda self: bool(self.folder))  # every epoch
    with pytest.raises(KeyboardInterrupt):
        run_experiment(QUICK, digits, progress=False, on_epoch=stop_after(3))
    trained = []
    for stop in (3, 1):
        config = replace(QUICK, stop_at_epoch=stop, method="initial")
        assert runs.find_prefix(own_runs, config, digits) is None, "of another method"
    config = replace(QUICK, stop_at_epoch=3)
    run_experiment(config, digits, progress=False, on_epoch=lambda h, s: trained.append(len(h)))
    assert trained[0] == 3, "the checkpoint after the second epoch was used"
    assert runs.find_prefix(own_runs, replace(QUICK, stop_at_epoch=1), digits) is None


def test_a_prefix_from_another_kind_of_device_is_passed_over(digits, own_runs):
    found = run_experiment(replace(QUICK, stop_at_epoch=1), digits, progress=False)
    path = found.folder / "prefix.pt"
    assert runs.find_prefix(own_runs, QUICK, digits) == path
    files.write_tensors(path, files.read_tensors(path) | {"device": "cuda"})
    assert len(run_experiment(QUICK, digits, progress=False).history) == 8


def test_a_prefix_of_another_run_is_refused(digits, own_runs):
    found = run_experiment(replace(QUICK, stop_at_epoch=2), digits, progress=False)
    path = found.folder / "prefix.pt"
    for changes, message in (
        (dict(seed=1), "seed 0 -> 1"),
        (dict(stop_at_epoch=1), "is at epoch 2: this run stops at 1"),
    ):
        with pytest.raises(InputError, match=message):
            train(replace(QUICK, **changes), digits, prefix=path, progress=False)
    saved = files.read_tensors(path)
    saved["identity"]["config"] = ["seed"]
    files.write_tensors(own_runs / "odd.pt", saved)
    with pytest.raises(InputError, match="belongs to another run"):
        train(QUICK, digits, prefix=own_runs / "odd.pt", progress=False)
    with pytest.raises(InputError, match="not within the first task"):
        train(QUICK, digits, prefix=found.folder / "checkpoint.pt", progress=False)


def test_a_prefix_never_shares_a_row_or_a_table_with_a_whole_run(digits, own_runs):
    configs = [replace(QUICK, stop_at_epoch=2), QUICK]
    records = [
        Record.read(run_experiment(config, digits, progress=False).folder / "results.json")
        for config in configs
    ]
    assert len(report.variants(records)) == 2
    text = report.render(records)
    assert "of which only the first 2 were run: a prefix" in text
    assert identity.key(replace(QUICK, stop_at_epoch=4)) == identity.key(QUICK), (
        "it does not stop early"
    )


def test_the_rate_of_a_prefix_is_that_of_the_whole_schedule():
    config = TrainConfig(dataset="cifar100", stop_at_epoch=250, preset="reference")
    assert config.epochs_to_run(0) == 250 and config.schedule_length(0) == 800
    rates = [learning_rate(config, 0, epoch) for epoch in (199, 200, 249)]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4])
