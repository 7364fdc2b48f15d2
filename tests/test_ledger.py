"""Records of the paper's experiments: made, found again and checked."""

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from disturbed import hold
from made_up import record
from warm import PROCESSES, Python

from csd_lib import InputError, TrainingError, files, identity, losses
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.experiment import run_folder
from csd_lib.methods import METHODS
from csd_lib.paper import ledger, report
from csd_lib.paper import published as paper
from csd_lib.retrieval import embed, retrieval_matrix

QUICK = dict(dataset="digits", preset="clean", epochs=1, device="cpu")
LIMIT = 300  # seconds that another process may take


def other_code():
    """A context in which the code computes other numbers for method csd."""
    original = losses.csd_loss
    return patch.object(losses, "csd_loss", lambda *batch: 0.5 * original(*batch))


def table1(**changes):
    """The paper's six rows."""
    configs = paper.get_experiment("table1").configs((0,), **{**QUICK, **changes})
    return [config for config in configs if config.method in paper.TABLE_1]


def reproduce(configs, **options):
    return ledger.reproduce(configs, progress=False, **options)


def test_reproduce_trains_each_first_task_once_and_records_every_run(own_folders, trained):
    places = reproduce(table1())
    # initial: one first task for four methods; joint: all ten classes.
    assert trained == [(5, False), *[(5, True)] * 4, (10, False)]
    records = ledger.load_records()
    assert len(records) == len(places) == 6
    for found in records:
        assert found.date and found.device and found.versions and found.threads
        assert found.config.precision == "fp32" and found.training_seconds > 0
        stages = 1 if found.config.method in ("initial", "joint") else 2
        assert len(found.history) == stages and found.matrix.own.shape[1] == 2
    assert not any(report.notes_on_code(records))

    trained.clear()
    assert reproduce(table1()) == places and trained == [], "what is recorded is not run again"


def test_initial_model_is_searched_among_all_classes_at_the_end(own_folders):
    reproduce([TrainConfig(method="initial", **QUICK)])
    (matrix,) = (found.matrix for found in ledger.load_records())
    assert matrix.own[0].tolist() == matrix.own[1].tolist(), "the model does not change"
    assert matrix.seen[1, 0] < matrix.own[1, 0], "but its gallery has grown"
    assert matrix.seen[0, 0] == matrix.own[0, 0]


def test_a_run_on_another_device_is_the_same_thing_but_other_settings_are_not(digits):
    on_gpu = {**QUICK, "device": "cuda", "cuda_graph": True}
    data = digits.sha256()
    cell = ledger.Cell(TrainConfig(**QUICK), data, lambda _: "abc", ledger.results_folder())
    assert cell.is_of(record(TrainConfig(**on_gpu), data=data))
    assert not cell.is_of(record(TrainConfig(**on_gpu), data="1" * 64))
    for change in ({"precision": "amp"}, {"seed": 1}, {"csd_temperature": 1}):
        assert not cell.is_of(record(TrainConfig(**{**on_gpu, **change}), data=data))


def test_what_older_code_recorded_is_kept_and_said_and_run_anew_on_demand(
    own_folders, trained, capsys
):
    config = TrainConfig(**QUICK)
    with other_code():
        (old,) = reproduce([config])
    before, (older,) = (old / "results.json").read_bytes(), ledger.load_records()
    trained.clear()
    assert reproduce([config]) == [old] and trained == []
    assert f"other code ({older.fingerprint})" in capsys.readouterr().out
    (new,) = reproduce([config], again=True)
    assert new != old and (old / "results.json").read_bytes() == before and trained
    made = {found.folder: found for found in ledger.load_records()}
    assert made.keys() == {old, new} and made[old].fingerprint == older.fingerprint
    assert report.notes_on_code([made[old], made[new]]) == [report.OLDER, ""]
    trained.clear()
    assert reproduce([config], again=True) == [new] and trained == []


def test_a_run_whose_code_changes_meanwhile_is_not_trained_for_ever(own_folders, monkeypatch):
    """The fingerprint of the plan is another one than that of the run."""
    plan = ledger.plan

    def older(*args, **kind):
        cells = plan(*args, **kind)
        for cell in cells:
            cell.fingerprint = "00000000"
        return cells

    monkeypatch.setattr(ledger, "plan", older)
    with pytest.raises(TrainingError, match="its code changed while it ran"):
        reproduce([TrainConfig(**QUICK, method="initial")])


def test_a_damaged_record_is_made_anew_and_kept(own_folders):
    (place,) = reproduce([TrainConfig(**QUICK)])
    (place / "results.json").write_text('{"config": {}}')
    (new,) = reproduce([TrainConfig(**QUICK)])
    assert new != place and (place / "results.json").read_text() == '{"config": {}}'
    with pytest.warns(UserWarning, match=r"results\.json is not a record: it lacks date, device, "):
        (found,) = ledger.load_records()
    assert found.folder == new


def test_what_another_process_recorded_meanwhile_is_not_run_again(
    own_folders, trained, monkeypatch, capsys
):
    configs, original = table1(), ledger.plan

    def plan(*arguments):
        cells = original(*arguments)
        monkeypatch.setattr(ledger, "plan", original)
        places = reproduce(configs)  # as another process would, right now
        assert len(trained) == 6 and len(places) == len({*places}) == 6
        trained.clear()
        shutil.rmtree(own_folders / "runs")
        return cells

    monkeypatch.setattr(ledger, "plan", plan)
    places = reproduce(configs)
    assert [found for found in trained if found[1]] == [] and (10, False) not in trained
    assert {found.folder for found in ledger.load_records()} == {*places}
    assert capsys.readouterr().out.count("recorded by another process") == 6


@pytest.mark.parametrize("with_a_first_task", [True, False])
def test_a_cell_that_another_process_holds_is_left_for_later(
    own_folders, digits, with_a_first_task, monkeypatch
):
    monkeypatch.setattr(ledger, "PAUSE", 0.05)
    one, other = (TrainConfig(method=m, **QUICK) for m in ("csd", "joint"))
    cell = ledger.plan([one], digits)[0]
    held = files.make_folder(cell.first_run if with_a_first_task else cell.run)
    inside, leave = PROCESSES.Event(), PROCESSES.Event()
    holder = PROCESSES.Process(target=hold, args=(held, inside, leave, LIMIT))
    holder.start()
    pool = ThreadPoolExecutor()
    try:
        assert inside.wait(LIMIT)
        result, end = pool.submit(reproduce, [one, other]), time.monotonic() + LIMIT
        while not ledger.load_records() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        (found,) = ledger.load_records()
        assert found.config.method == "joint" and not result.done()
        leave.set()
        assert len(result.result(LIMIT)) == len(ledger.load_records()) == 2
    finally:
        holder.kill()
        pool.shutdown(wait=False)


def test_a_plan_says_of_each_cell_how_far_it_is_and_trains_nothing(own_folders, digits, trained):
    recorded, half, missing, older = (
        TrainConfig(**{**QUICK, "method": method, "epochs": 3})
        for method in ("joint", "initial", "fine-tuning", "csd")
    )
    with other_code():
        reproduce([older])  # and with it the first task, which is all of initial's
    for path in (own_folders / "runs").glob("*initial*/*"):
        if path.name == "history.jsonl":
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    reproduce([recorded])
    trained.clear()
    before = sorted(own_folders.rglob("*"))
    cells = ledger.plan([recorded, half, missing, older], digits)
    *lines, last = ledger.render_plan(cells).splitlines()
    words = ("recorded on", "half done at epoch 2 of 3", "missing", "by other code")
    for number, (line, word) in enumerate(zip(lines, words, strict=True), start=1):
        assert line.startswith(f"[{number}/4]") and word in line
    assert last.startswith("2 cells to run") and "unknown" not in last
    assert ledger.render_plan(cells, again=True).splitlines()[-1].startswith("3 cells to run")
    assert trained == [] and sorted(own_folders.rglob("*")) == before
    nothing = ledger.plan([TrainConfig(**{**QUICK, "seed": 9})], digits)
    assert "unknown" in ledger.render_plan(nothing)


def test_a_plan_counts_a_shared_first_task_once(own_folders, digits):
    cells = ledger.plan(table1(epochs=4), digits)
    # Halves of the images: the first task once, and a later one for four methods; joint has all.
    assert ledger.passes_left(cells) == 4 * (0.5 + 4 * 0.5 + 1)


def test_kept_models_and_features_are_those_of_the_run(own_folders, digits):
    reproduce([TrainConfig(**QUICK)], keep_models=True)
    (found,) = ledger.load_records()
    model, (features, labels) = ledger.load_model(found), ledger.load_features(found)
    tasks = class_incremental_split(digits, 2)
    images = torch.cat([task.test_images for task in tasks])
    assert torch.equal(labels, torch.cat([task.test_labels for task in tasks]))
    torch.testing.assert_close(embed(model, images), features, rtol=1e-3, atol=1e-3)
    last = retrieval_matrix([model], tasks).seen[-1]
    np.testing.assert_allclose(last, found.matrix.seen[-1])


@pytest.mark.parametrize("name", ["model.pt", "features.npz"])
def test_a_file_that_is_not_the_recorded_one_is_refused(own_folders, name):
    (place,) = reproduce([TrainConfig(**QUICK)], keep_models=True)
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    (found,) = ledger.load_records()
    load = ledger.load_model if name == "model.pt" else ledger.load_features
    with pytest.raises(InputError, match=f"{re.escape(name)} is not the file that was recorded"):
        load(found)
    (place / name).unlink()
    with pytest.raises(InputError, match="not the file that was recorded"):
        load(found)


def test_a_record_without_models_says_how_to_get_them(own_folders):
    reproduce([TrainConfig(**QUICK)])
    (found,) = ledger.load_records()
    with pytest.raises(InputError, match=r"kept no model\.pt.*--keep-models"):
        ledger.load_model(found)


# --- the command line, and a kill --------------------------------------------------------------


def cli(*arguments, folder):
    env = {**os.environ, "CSD_RUNS": f"{folder}/runs", "CSD_RESULTS": f"{folder}/results"}
    return Python("-m", "csd_lib", *arguments, env=env)


def ended(process):
    """Wait for a process, and return what it said."""
    try:
        text = "".join(process.communicate(timeout=LIMIT))
    finally:
        process.kill()
    assert process.returncode == 0, text
    return text


def test_reproduce_killed_and_repeated_records_the_same_as_in_one_go(tmp_path):
    command = ["reproduce", "eq8", "--dataset", "digits", "--preset", "clean", "--epochs", "3"]
    text = ended(cli(*command, folder=tmp_path / "whole"))
    assert "[1/2] CSD, digits, preset clean, 2 tasks, seed 0" in text and "gallery:" in text

    def epochs():
        files = (tmp_path / "killed" / "runs").glob("*/history.jsonl")
        return sum(len(path.read_text().splitlines()) for path in files)

    process, end = cli(*command, folder=tmp_path / "killed"), time.monotonic() + LIMIT
    try:  # in the second run, after its shared task
        while process.poll() is None and epochs() < 11 and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        process.kill()
    process.communicate(timeout=LIMIT)
    assert 11 <= epochs() < 15, "the kill came too late: nothing was tested"
    ended(cli(*command, folder=tmp_path / "killed"))
    whole, killed = (
        {
            found.config.method: (vars(found.matrix), [h["loss"] for h in found.history])
            for found in ledger.load_records(tmp_path / name / "results")
        }
        for name in ("whole", "killed")
    )
    assert len(whole) == 2
    np.testing.assert_equal(whole, killed)


def test_reproduce_in_two_processes_shares_the_cells(own_folders, digits):
    command = ["reproduce", "table1", "--dataset", "digits", "--preset", "clean", "--epochs", "1"]
    command += ["--quiet", "--device", "cpu"]
    configs = paper.get_experiment("table1").configs((0,), **QUICK)
    methods = sorted(config.method for config in configs)
    processes = [cli(*command, folder=own_folders) for _ in range(2)]
    try:
        texts = [ended(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    records, problems = ledger.read_ledger()
    assert not problems and sorted(r.config.method for r in records) == methods
    assert not any(report.notes_on_code(records))
    for found in records:  # an epoch that was trained twice has two lines
        history = own_folders / "runs" / found.folder.name / "history.jsonl"
        assert len(history.read_text().splitlines()) == len(found.history)
    wanted = [c for config in configs for c in (config, identity.first_task(config)) if c]
    expected = {run_folder(c, digits) for c in wanted}
    assert {*(own_folders / "runs").iterdir()} == expected, "first tasks are shared"
    begun = [line for text in texts for line in text.splitlines()]
    for number in range(1, len(methods) + 1):
        title = rf"\[{number}/{len(methods)}\] .* seed 0"
        runs = [line for line in begun if re.fullmatch(title, line)]
        assert len(runs) == 1, "every cell is run by one of them"
    for text in texts:
        assert all(METHODS[name].title in text for name in paper.TABLE_1), "both show the table"
    again = ended(cli(*command, "--dry-run", folder=own_folders))
    assert again.count("recorded on") == len(methods) and "0 cells to run" in again


# --- the records in this repository ------------------------------------------------------------


def test_recorded_configs_are_of_this_kit():
    records, problems = ledger.read_ledger()  # a setting that does not exist is a problem
    assert records and not problems


def kept():
    found = [r for r in ledger.load_records() if r.files]
    assert found
    return found


def test_recorded_features_give_the_recorded_recall():
    """Half precision costs a little; a mixed-up file would cost everything."""
    for found in kept():
        features, labels = ledger.load_features(found)
        first = labels < (labels.max() + 1) // 2
        for j, part in enumerate((first, ~first)):
            unit = torch.nn.functional.normalize(features[part].float())
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1)
            recall = (labels[part] == labels[part][nearest]).float().mean().item()
            assert recall == pytest.approx(found.matrix.own[-1, j], abs=0.003), found.folder


def test_recorded_models_are_small_and_load():
    assert sum((r.folder / name).stat().st_size for r in kept() for name in r.files) < 25e6
    for found in kept():
        model = ledger.load_model(found)
        features, logits = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        assert features.shape == (2, 64) and torch.isfinite(logits).all()
