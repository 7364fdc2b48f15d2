"""Records of the paper's experiments: made, found again, checked, and set beside the paper."""

import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from disturbed import hold
from made_up import record
from warm import PROCESSES, Python

from csd_lib import InputError, files, identity, losses
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.experiment import run_name
from csd_lib.methods import METHODS, Method
from csd_lib.paper import comparison, figures, ledger, report
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


def test_every_experiment_is_a_set_of_different_possible_configs():
    for name in paper.EXPERIMENTS:
        for preset in ("reference", "clean", "class"):
            if preset == "class" and data_of(name) != "cifar100":
                continue  # it is a preset of CIFAR-100's
            settings = dict(dataset=data_of(name), preset=preset)
            configs = paper.get_experiment(name).configs((0, 1), **settings)
            assert len({run_name(config, "") for config in configs}) == len(configs) > 1, name
    assert {c.tasks for c in paper.get_experiment("figure3").configs((0,))} == {5, 10}
    halves = paper.get_experiment("figure4").configs((0,), dataset="cub200")
    assert {(c.tasks, c.first_classes) for c in halves} == {(5, 100), (11, 100)}
    with pytest.raises(InputError, match=r"dataset='digits' has no 'Table 2.*run another"):
        paper.get_experiment("table2").configs((0,), dataset="digits")
    with pytest.raises(InputError, match=r"dataset='dogs' has no 'Table 1.*run table2"):
        paper.get_experiment("table1").configs((0,), dataset="dogs")
    grid = paper.get_experiment("table3").configs((0,), dataset="cifar100")
    assert {(c.lambda_kd, c.lambda_csd) for c in grid} == {
        (a, b) for a in (0.1, 1.0, 10.0) for b in (0.1, 1.0, 10.0)
    }


def test_the_papers_table_adds_up():
    """Its third column is the mean of the other two, to the rounding of a decimal."""
    rows = [*paper.TABLE_1.values(), *paper.TABLE_2["dogs"].values()]
    for old, new, average in [*rows, *paper.TABLE_2["cub200"].values()]:
        assert average == pytest.approx((old + new) / 2, abs=0.051)


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
    assert all(report.are_current(records))

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
    cell = ledger.Cell(TrainConfig(**QUICK), data, "abc", ledger.results_folder())
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
    with pytest.warns(UserWarning, match="is kept as .*, and this one starts anew"):
        (new,) = reproduce([config], again=True)
    assert new != old and (old / "results.json").read_bytes() == before and trained
    made = {found.folder: found for found in ledger.load_records()}
    assert made.keys() == {old, new} and made[old].fingerprint == older.fingerprint
    assert report.are_current([made[old], made[new]]) == [False, True]
    trained.clear()
    assert reproduce([config], again=True) == [new] and trained == []


def test_a_damaged_record_is_made_anew_and_kept(own_folders):
    (place,) = reproduce([TrainConfig(**QUICK)])
    (place / "results.json").write_text('{"config": {}}')
    (new,) = reproduce([TrainConfig(**QUICK)])
    assert new != place and (place / "results.json").read_text() == '{"config": {}}'
    with pytest.warns(UserWarning, match=r"results\.json is not a record: it lacks matrix"):
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


# --- paper against ours ------------------------------------------------------------------------


def made(method, seed=0, last=(0.6, 0.5), **changes):
    history = ({"task": 0, "epoch": 0, "seconds": 1800.0 + seed},)
    return record(**{"method": method, "seed": seed, "last": last, "history": history, **changes})


def table_of(records):
    (group,) = comparison.paper_groups(records)
    (table,) = comparison.tables(group)
    return table


def rows_of(records, gallery="own"):
    header, rows = comparison.paper_rows(table_of(records), gallery)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def data_of(name):
    return "kinds" if paper.EXPERIMENTS[name].fine_grained else "cifar100"


def experiment_records(name, keep=lambda config: True, baselines=(), **changes):
    data = data_of(name)
    configs = paper.EXPERIMENTS[name].configs((0, 1), dataset=data, depth=8, **changes)
    shared = [dict(dataset=data, depth=8, tasks=t) for t in {c.tasks for c in configs}]
    others = [TrainConfig(method=method, **each) for method in baselines for each in shared]
    return [record(config) for config in [*filter(keep, configs), *others]]


@pytest.mark.usefixtures("one_number")
def test_each_cell_shows_paper_ours_gap_and_a_verdict():
    records = [made("csd", s, (0.651 + 0.01 * s, 0.616)) for s in (0, 1)]
    records.append(made("csd", 2, (0.641, 0.616)))
    records += [made("lwf", 0, (0.64, 0.564)), made("mmd", 0, (0.5, 0.609))]
    rows = rows_of(records)
    csd = rows["CSD"]
    assert csd["1-50: paper"] == "65.1" and csd["n"] == "3" and csd["verdict"] == "agrees"
    assert rows["LwF"]["verdict"] == "near" and rows["MMD"]["verdict"] == "differs"
    assert rows["LwF"]["gap"] == "-1.5", "60.2 on average, where the paper has 61.7"
    text = comparison.render_paper(comparison.paper_groups(records), markdown=True)
    assert "65.1 ± 1.0" in text and "+0.0" in text
    (line,) = [line for line in text.splitlines() if "not run: " in line]
    named = line.removeprefix("not run: ").split("; ")
    assert "Joint training" in named and "MMD + KD" in named and "CSD" not in named


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize(
    "changes",
    [dict(preset="reference"), dict(precision="amp"), dict(epochs=10), dict(weight_decay=0.1)],
)
def test_presets_and_settings_never_share_a_table(changes):
    groups = comparison.paper_groups([made("csd"), made("lwf", **changes)])
    assert [len(group.records) for group in groups] == [1, 1]


@pytest.mark.usefixtures("one_number")
def test_a_changed_weight_never_stands_in_the_papers_table():
    (group,) = comparison.paper_groups([made("csd"), made("csd", 1, csd_temperature=0.3)])
    table, other = comparison.tables(group)
    assert table.published and [len(row) for row in table.rows] == [1]
    assert not other.published and other.rows[0][0].config.csd_temperature == 0.3


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize("machine", [dict(device="cuda:1"), dict(cuda_graph=True)])
def test_the_machine_never_splits_a_table(machine):
    config = TrainConfig(dataset="cifar100", depth=8, seed=1, **machine)
    assert [len(row) for row in table_of([made("csd"), record(config)]).rows] == [2]


@pytest.mark.usefixtures("one_number")
def test_claims_are_compared_seed_by_seed():
    records = [made("csd", s, (0.6 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [made("lwf", s, (0.58 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [made("fine-tuning", 0, (0.3, 0.7))]
    _, rows = comparison.claim_rows(table_of(records), "own")
    by_claim = {row[0]: row[1:] for row in rows}
    above = by_claim["CSD is above LwF on average"]
    assert above == ["+1.7", "3", "+1.0 ± 0.0", "+1.0 to +1.0", "holds"]
    one = by_claim["CSD keeps the old classes better than fine-tuning"]
    assert one[1:] == ["1", "+30.0", "–", "undecided (one seed)"]
    assert not any("Joint" in claim for claim in by_claim), "it was not run"
    noisy = [made("csd", s, (0.6 + (0.1 if s else -0.1), 0.6)) for s in (0, 1)]
    noisy += [made("lwf", s) for s in (0, 1)]
    verdicts = {row[0]: row[-1] for row in comparison.claim_rows(table_of(noisy), "own")[1]}
    assert verdicts["CSD is above LwF on average"] == "undecided"


@pytest.mark.usefixtures("one_number")
def test_an_interval_is_students_and_decides_in_both_directions():
    mean_and_sd, interval, verdict = comparison.paired([0.01, 0.02, 0.03])
    assert mean_and_sd == "+2.0 ± 1.0" and verdict == "undecided"
    assert interval == "-0.5 to +4.5", "t(0.975, 2 degrees of freedom) = 4.303, times 1 / sqrt(3)"
    assert comparison.paired([0.02, 0.02, 0.03])[2] == "holds"
    assert comparison.paired([-0.02, -0.02, -0.03])[2] == "does not"


@pytest.mark.usefixtures("one_number")
def test_what_a_term_changes_is_the_mean_over_recipes_and_then_over_seeds():
    """By hand: KD adds 10 points without CSD and 2 with it, on task 1; a seed more adds to both."""
    first = {"ce": 0.50, "ce+kd": 0.60, "ce+csd": 0.70, "ce+kd+csd": 0.72}
    records = [
        made(name, seed, (value + (0.01 * seed if "kd" in name else 0), 0.5), depth=8)
        for name, value in first.items()
        for seed in (0, 1)
    ]
    # What learns all at once has the recipe of fine-tuning, and says nothing of a term.
    records += [made("fine-tuning", s, (0.45, 0.5), depth=8) for s in (0, 1)]
    records += [made("joint", s, (0.99, 0.99), depth=8) for s in (0, 1)]
    found = {t.name: t for t in comparison.tables(comparison.paper_groups(records)[0])}
    header, rows = comparison.term_rows(found["figure5"], "own")
    of = {
        (r["term added"], r["to"]): r for r in (dict(zip(header, row, strict=True)) for row in rows)
    }
    changes = {where: row["task 1 at the end"].partition(" [")[0] for where, row in of.items()}
    assert changes == {
        ("+ triplet", "ce"): "-5.0 ± 0.0",
        ("+ KD", "ce"): "+10.5 ± 0.7",
        ("+ KD", "ce+csd"): "+2.5 ± 0.7",
        ("+ KD", "mean of 2"): "+6.5 ± 0.7",
        ("+ CSD", "ce"): "+20.0 ± 0.0",
        ("+ CSD", "ce+kd"): "+12.0 ± 0.0",
        ("+ CSD", "mean of 2"): "+16.0 ± 0.0",
    }
    assert {row["n"] for row in of.values()} == {"2"}


@pytest.mark.usefixtures("one_number")
def test_the_mean_of_recipes_is_of_the_seeds_that_all_of_them_have():
    """Seed 1 was run without CSD alone: there KD adds 30 points, which is no reason to say so."""
    first = {"ce": 0.50, "ce+kd": 0.60, "ce+csd": 0.70, "ce+kd+csd": 0.72}
    records = [made(name, 0, (value, 0.5), depth=8) for name, value in first.items()]
    records += [made(name, 1, (v, 0.5), depth=8) for name, v in (("ce", 0.5), ("ce+kd", 0.8))]
    (table,) = [
        t for t in comparison.tables(comparison.paper_groups(records)[0]) if t.name == "figure5"
    ]
    kd = [row[1:4] for row in comparison.term_rows(table, "own")[1] if row[0] == "+ KD"]
    assert [row[:2] for row in kd] == [["ce", "2"], ["ce+csd", "1"], ["mean of 2", "1"]]
    assert kd[0][2].startswith("+20.0") and kd[2][2] == "+6.0"


@pytest.mark.usefixtures("one_number")
def test_variants_are_compared_with_csd_seed_by_seed():
    records = [made("csd", s, (0.6 + 0.1 * s, 0.5)) for s in (0, 1)]
    records += [made("csd", s, (0.63 + 0.1 * s, 0.5), csd_temperature=0.2) for s in (0, 1, 2)]
    found = {t.name: t for t in comparison.tables(comparison.paper_groups(records)[0])}
    header, (row,) = comparison.difference_rows(found["temperature"], "own")
    row = dict(zip(header, row, strict=True))
    assert row["csd_temperature"] == "0.2" and row["n"] == "2", "seed 2 has no partner"
    assert row["task 1 at the end"] == "+3.0 ± 0.0 [+3.0 to +3.0]"
    assert row["average"] == "+1.5 ± 0.0 [+1.5 to +1.5]"
    without = [r for r in records if r.config.csd_temperature == 0.2]
    found = {t.name: t for t in comparison.tables(comparison.paper_groups(without)[0])}
    assert comparison.difference_rows(found["temperature"], "own")[1] == []


@pytest.mark.usefixtures("one_number")
def test_what_has_no_old_gallery_is_still_compared_in_the_other_columns():
    records = [made("csd", s) for s in (0, 1)] + [made("joint", s, (0.7, 0.7)) for s in (0, 1)]
    header, (row,) = comparison.difference_rows(table_of(records), "own")
    row = dict(zip(header, row, strict=True))
    assert row["n"] == "2" and row["average"].startswith("+") and row["old gallery"] == "–"


@pytest.mark.usefixtures("one_number")
def test_the_old_gallery_stands_beside_the_others_and_has_claims():
    def in_old(value, method, seed):
        old = np.array([[0.6, np.nan], [value, 0.5]])
        matrix = made(method).matrix
        return made(method, seed, matrix=replace(matrix, old_gallery=old))

    records = [in_old(0.4 + 0.01 * s, "csd", s) for s in (0, 1, 2)]
    records += [in_old(0.3 + 0.01 * s, "lwf", s) for s in (0, 1, 2)]
    assert rows_of(records)["CSD"]["old gallery"] == "41.0 ± 1.0"
    rows = {row[0]: row[1:] for row in comparison.claim_rows(table_of(records), "own")[1]}
    claim = rows["CSD finds more in the old gallery than LwF"]
    assert claim == ["–", "3", "+10.0 ± 0.0", "+10.0 to +10.0", "holds"]
    older = [replace(r, matrix=replace(r.matrix, old_gallery=None)) for r in records]
    assert rows_of(older)["CSD"]["old gallery"] == "–"


@pytest.mark.usefixtures("one_number")
def test_a_shared_first_task_is_not_counted_twice_in_the_hours():
    shared, own = made("initial"), {"task": 1, "epoch": 0, "seconds": 5400.0}
    both = [shared, made("csd", history=(*shared.history, own))]
    assert ", 2.0 hours," in comparison.render_paper(comparison.paper_groups(both))


@pytest.mark.usefixtures("one_number")
def test_what_was_not_reproduced_is_said():
    text = comparison.render_paper([])
    for words in ("with preset reference", "preset clean", "Figure 3", "Table 2", "CUB"):
        assert words in text
    render = lambda r: comparison.render_paper(comparison.paper_groups([r]))  # noqa: E731
    some = render(made("csd", preset="reference"))
    assert "with preset reference" not in some and "with preset clean" in some
    assert "with preset clean" in render(made("csd", fingerprint="other000"))


@pytest.mark.usefixtures("one_number")
def test_class_preset_is_never_taken_for_the_papers_protocol():
    groups = comparison.paper_groups([made("csd", preset="class")])
    assert "short schedule" in comparison.render_paper(groups)


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_every_experiment_has_a_table_of_its_variants_beside_what_they_are_compared_with(name):
    records = experiment_records(name, baselines=comparison.BASELINES)
    wanted = {json.dumps(identity.key(found.config, "seed"), sort_keys=True) for found in records}
    for tasks in paper.EXPERIMENTS[name].tasks:
        (group,) = comparison.paper_groups([r for r in records if r.config.tasks == tasks])
        tables = {table.name: table for table in comparison.tables(group)}
        table = tables.pop(name)
        others = {*paper.EXPERIMENTS, ""} - {name}  # of the baselines, and of variants shared
        assert tables.keys() <= others and not table.missing
        shown = [
            json.dumps(identity.key(row[0].config, "seed"), sort_keys=True) for row in table.rows
        ]
        assert len(shown) == len(set(shown))
        configs = paper.EXPERIMENTS[name].configs(
            (0,), only_tasks=tasks, dataset=data_of(name), depth=8
        )
        variants = {json.dumps(identity.key(config, "seed"), sort_keys=True) for config in configs}
        assert variants <= {*shown} <= wanted
        if paper.EXPERIMENTS[name].fine_grained is None:
            methods = {row[0].config.method for row in table.rows}
            assert methods >= {*comparison.BASELINES}
        labels = [table.label(row[0].config) for row in table.rows]
        assert len(set(labels)) == len(labels)
        covered = {id(r) for t in comparison.tables(group) for row in t.rows for r in row}
        assert covered == {id(r) for r in group.records}, "every record is in some table"


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_a_variant_that_was_not_run_is_named_once(name):
    missing = paper.EXPERIMENTS[name].configs((0,), dataset=data_of(name), depth=8)[1]
    records = experiment_records(
        name,
        lambda c: (
            c.tasks == missing.tasks and identity.key(c, "seed") != identity.key(missing, "seed")
        ),
    )
    (group,) = groups = comparison.paper_groups(records)
    tables = {table.name: table for table in comparison.tables(group)}
    text = comparison.render_paper(groups)
    if name == "eq8":  # what is left is CSD, which Table 1 has
        assert tables.keys() == {"table1"} and f"{paper.EXPERIMENTS[name].title}: no run" in text
        return
    assert [identity.key(config) for config in tables[name].missing] == [identity.key(missing)]
    assert text.count(f"not run: {tables[name].label(missing)}\n") == 1
    assert text.count("not run: ") == sum(1 for table in tables.values() if table.missing)


@pytest.mark.usefixtures("one_number")
def test_what_was_recorded_of_one_experiment_makes_no_table_of_another():
    for group in comparison.paper_groups(experiment_records("figure5")):
        found = {table.name: table for table in comparison.tables(group)}
        assert len(found["figure5"].rows) == 8 and not found.pop("figure5").missing
        assert found.keys() <= {"table1", "figure3"}, "which have fine-tuning, LwF and CSD too"
    assert comparison.tables(comparison.paper_groups([made("csd")])[0])[0].name == "table1"


@pytest.mark.usefixtures("one_number")
def test_older_codes_rows_never_stand_beside_current_ones_and_make_no_claims(tmp_path):
    older = [made("csd", 0, (0.9, 0.123), fingerprint=text) for text in ("other000", "other111")]
    older += [made("lwf", 0, (0.9, 0.124), fingerprint="")]
    groups = comparison.paper_groups([*older, made("csd"), made("lwf")])
    assert [(g.is_current, len(g.records)) for g in groups] == [(True, 2), (False, 3)]
    current, rest = comparison.render_paper(groups).split(report.OLDER)
    assert "12.3" not in current and "12.3" in rest and "CSD is above LwF" in current
    assert "CSD is above LwF" not in rest
    (table,) = comparison.tables(groups[1])
    figure = figures.paper_against_ours(table)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(labels)) == 3 and sum("CSD" in label for label in labels) == 2


@pytest.mark.usefixtures("one_number")
def test_a_method_registered_at_run_time_has_a_row_and_a_curve_of_its_own():
    mine = {name: Method(f"My {name}", "ce+triplet+fecd") for name in ("one", "two")}
    with patch.dict(METHODS, mine):
        (group,) = comparison.paper_groups([made(name) for name in ("csd", *mine)])
        table, other = comparison.tables(group)
        assert len(table.rows) == 1 and len(other.rows) == 2
        text = comparison.render_paper([group])
        assert "My one" in text and "My two" in text
        figure = figures.first_task_curves(other)
        assert [len(axis.containers) for axis in figure.axes] == [2, 2]


# --- figures -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_curves_have_a_panel_for_each_gallery_and_bars_only_of_several_seeds(seeds):
    found = [made("csd", seed, tasks=3, last=None) for seed in seeds]
    growing = [replace(r.matrix, seen=r.matrix.own / 2) for r in found]
    found = [replace(r, matrix=matrix) for r, matrix in zip(found, growing, strict=True)]
    axes = figures.first_task_curves(table_of(found)).axes
    assert [axis.get_title() for axis in axes] == [*report.GALLERIES.values()]
    mean = 100 * np.mean([r.matrix.own[:, 0] for r in found], axis=0)
    for axis, expected in zip(axes, (mean, mean / 2), strict=True):
        ((curve, *bars),) = axis.containers
        assert np.allclose(curve.get_ydata(), expected)
        assert any(bars) == (len(seeds) > 1)


@pytest.mark.usefixtures("one_number")
@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_every_experiment_is_drawn_into_files_of_their_own(tmp_path, name):
    groups = comparison.paper_groups(experiment_records(name))
    paths = figures.paper_figures(groups, tmp_path)
    tables = [table for group in groups for table in comparison.tables(group)]
    assert len(paths) == len(tables)
    assert len(set(paths)) == len(paths) and {*tmp_path.iterdir()} == {*paths}
    assert all(path.stat().st_size > 10_000 for path in paths)


@pytest.mark.usefixtures("one_number")
def test_no_figure_overwrites_one_of_other_records(tmp_path, monkeypatch):
    for drawn in ("paper_against_ours", "first_task_curves"):
        monkeypatch.setattr(figures, drawn, lambda _: plt.figure(figsize=(1, 1)))
    changes = [{}, {"preset": "class", "epochs": 800}, {"weight_decay": 0.1}, {"data": "1" * 64}]
    changes += [{"precision": "amp"}, {"fingerprint": "other000"}, {"class_order_seed": 1}]
    changes += [{"batch_size": 64}, {"tasks": 5, "last": None}, {"epochs": 3}]
    records = [made("csd", **change) for change in changes]
    groups = comparison.paper_groups(records)
    assert len(groups) == len(changes)
    together = figures.paper_figures(groups, tmp_path / "together")
    assert len(set(together)) == len(together) == len(changes)
    assert len(list((tmp_path / "together").iterdir())) == len(changes)
    drawn = {}
    for group in [*groups, *reversed(groups)]:
        for path in figures.paper_figures([group], tmp_path / "apart"):
            assert drawn.setdefault(path, group.key) == group.key, "overwritten"
    assert len(drawn) == len(list((tmp_path / "apart").iterdir())) == len(changes)


@pytest.mark.usefixtures("one_number")
def test_a_figure_of_the_same_records_with_a_seed_more_takes_the_place_of_the_old(tmp_path):
    draw = lambda *r: figures.paper_figures(comparison.paper_groups(r), tmp_path)  # noqa: E731
    assert draw(made("csd")) == draw(made("csd"), made("csd", 1))
    (tmp_path / "somebody.png").write_bytes(b"")
    (path,) = draw(made("csd"))
    path.write_bytes(b"a picture of somebody")
    (other,) = draw(made("csd"))
    assert other != path and path.read_bytes() == b"a picture of somebody"


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
    assert all(report.are_current(records))
    for found in records:  # an epoch that was trained twice has two lines
        history = own_folders / "runs" / found.folder.name / "history.jsonl"
        assert len(history.read_text().splitlines()) == len(found.history)
    wanted = [c for config in configs for c in (config, identity.first_task(config)) if c]
    expected = {run_name(config, digits.sha256()) for config in wanted}
    found = {folder.name for folder in (own_folders / "runs").iterdir()}
    assert found == expected, "nothing was moved aside, and first tasks are shared"
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
    records, problems = ledger.read_ledger()
    known = {field.name for field in fields(TrainConfig)}
    assert records and not problems
    for found in records:
        assert set(files.read_json(found.folder / "results.json")["config"]) <= known


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
