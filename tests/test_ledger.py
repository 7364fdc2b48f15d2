"""Records of the paper's experiments: made, found again, checked, and set beside the paper."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from csd_lib import InputError, files, runs
from csd_lib.config import TrainConfig
from csd_lib.paper import comparison, ledger
from csd_lib.paper import published as paper
from csd_lib.retrieval import embed, retrieval_matrix

QUICK = dict(dataset="digits", preset="clean", epochs=1, device="cpu")


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CSD_RESULTS", str(tmp_path / "results"))
    return tmp_path


def table1(**changes):
    return paper.get_experiment("table1").configs((0,), **{**QUICK, **changes})


def reproduce(configs, **options):
    return ledger.reproduce(configs, progress=False, **options)


def test_every_experiment_is_a_set_of_different_possible_configs():
    for name in paper.EXPERIMENTS:
        for preset in ("reference", "clean", "class"):
            configs = paper.get_experiment(name).configs((0, 1), dataset="cifar100", preset=preset)
            keys = {ledger.what_it_is(config) for config in configs}
            assert len(keys) == len(configs) > 1, name
    assert {c.tasks for c in paper.get_experiment("figure3").configs((0,))} == {5, 10}
    grid = paper.get_experiment("table3").configs((0,), dataset="cifar100")
    assert {(c.lambda_kd, c.lambda_csd) for c in grid} == {
        (a, b) for a in (0.1, 1.0, 10.0) for b in (0.1, 1.0, 10.0)
    }


def test_the_papers_table_adds_up():
    """Its third column is the mean of the other two, to the rounding of a decimal."""
    for old, new, average in paper.TABLE_1.values():
        assert average == pytest.approx((old + new) / 2, abs=0.051)


def test_reproduce_trains_each_first_task_once_and_records_every_run(own_folders, monkeypatch):
    trained = []
    from csd_lib import train as training

    original = training.train_task

    def spy(student, teacher, task, *rest, **more):
        trained.append((len(task.classes), teacher is not None))
        return original(student, teacher, task, *rest, **more)

    monkeypatch.setattr(training, "train_task", spy)
    places = reproduce(table1())
    # initial: one first task for four methods; joint: all ten classes.
    assert trained == [(5, False), *[(5, True)] * 4, (10, False)]
    records = ledger.load_records()
    assert len(records) == len(places) == 6
    for record in records:
        assert {"code", "date", "device", "versions", "peak_memory_mb", "threads"} <= set(record)
        assert record["config"]["precision"] == "fp32" and record["training_seconds"] > 0
        stages = 1 if record["config"]["method"] in ("initial", "joint") else 2
        assert len(record["history"]) == stages
        assert np.array(record["matrix"]["own"]).shape[1] == 2

    trained.clear()
    assert reproduce(table1()) == places and trained == [], "what is recorded is not run again"


def test_initial_model_is_searched_among_all_classes_at_the_end(own_folders):
    (place,) = reproduce([TrainConfig(method="initial", **QUICK)])
    matrix = files.read_json(place / "results.json")["matrix"]
    assert matrix["own"][0] == matrix["own"][1], "the model does not change"
    assert matrix["seen"][1][0] < matrix["own"][1][0], "but its gallery has grown"
    assert matrix["seen"][0][0] == matrix["own"][0][0]


def test_a_run_on_another_device_is_the_same_thing_but_other_settings_are_not():
    config = TrainConfig(**QUICK)
    on_gpu = {**json.loads(json.dumps(runs.asdict(config))), "device": "cuda", "cuda_graph": True}
    assert ledger.what_it_is(config) == ledger.what_it_is(on_gpu)
    for change in (
        {"precision": "amp"},
        {"preset": "reference"},
        {"seed": 1},
        {"csd_temperature": 1},
    ):
        assert ledger.what_it_is(config) != ledger.what_it_is({**on_gpu, **change})


def test_what_older_code_recorded_is_kept_and_said_and_run_anew_on_demand(
    own_folders, monkeypatch, capsys
):
    config = TrainConfig(**QUICK)
    monkeypatch.setattr(runs, "code_hash", lambda: "older000")
    (old,) = reproduce([config])
    monkeypatch.undo()
    monkeypatch.setenv("CSD_RUNS", str(own_folders / "runs"))
    monkeypatch.setenv("CSD_RESULTS", str(own_folders / "results"))
    before = (old / "results.json").read_bytes()
    assert reproduce([config]) == [old]
    assert "older version of the code (older000)" in capsys.readouterr().out
    (new,) = reproduce([config], again=True)
    assert new != old and (old / "results.json").read_bytes() == before
    assert ledger.find_record(ledger.load_records(), method="csd")["code"] == runs.code_hash()


def test_kept_models_and_features_are_those_of_the_run(own_folders, digits):
    reproduce([TrainConfig(**QUICK)], keep_models=True)
    (record,) = ledger.load_records()
    model, (features, labels) = ledger.load_model(record), ledger.load_features(record)
    from csd_lib.data import class_incremental_split

    tasks = class_incremental_split(digits, 2)
    images = torch.cat([task.test_images for task in tasks])
    assert torch.equal(labels, torch.cat([task.test_labels for task in tasks]))
    torch.testing.assert_close(embed(model, images), features, rtol=1e-3, atol=1e-3)
    last = retrieval_matrix([model], tasks).seen[-1]
    np.testing.assert_allclose(last, record["matrix"]["seen"][-1])


@pytest.mark.parametrize("name", ["model.pt", "features.npz"])
def test_a_file_that_is_not_the_recorded_one_is_refused(own_folders, name):
    (place,) = reproduce([TrainConfig(**QUICK)], keep_models=True)
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    (record,) = ledger.load_records()
    load = ledger.load_model if name == "model.pt" else ledger.load_features
    with pytest.raises(InputError, match=f"{re.escape(name)} is not the file that was recorded"):
        load(record)
    (place / name).unlink()
    with pytest.raises(InputError, match="not the file that was recorded"):
        load(record)


def test_a_record_without_models_says_how_to_get_them(own_folders):
    reproduce([TrainConfig(**QUICK)])
    (record,) = ledger.load_records()
    with pytest.raises(InputError, match=r"kept no model\.pt.*--keep-models"):
        ledger.load_model(record)


def test_what_is_not_a_record_is_named(own_folders):
    (own_folders / "results" / "x").mkdir(parents=True)
    (own_folders / "results" / "x" / "results.json").write_text('{"config": {}}')
    with pytest.raises(InputError, match=r"results\.json is not a record: it lacks code"):
        ledger.load_records()


# --- paper against ours ------------------------------------------------------------------------


def record(method, seed=0, last=(0.6, 0.5), preset="clean", **changes):
    config = runs.asdict(
        TrainConfig(dataset="cifar100", method=method, seed=seed, preset=preset, **changes)
    )
    matrix = [[0.7, 0.2], list(last)]
    return {
        "config": json.loads(json.dumps(config)),
        "code": "abc",
        "device": "a GPU",
        "date": "2026-01-01",
        "versions": {"torch": "2"},
        "training_seconds": 3600.0,
        "history": [{"task": 0, "epoch": 0, "seconds": 1800.0 + seed}],
        "peak_memory_mb": 100,
        "matrix": {"own": matrix, "seen": matrix},
    }


def rows_of(records, gallery="own"):
    (group,) = comparison.paper_groups(records)
    header, rows = comparison.paper_rows(group, gallery)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_each_cell_shows_paper_ours_gap_and_a_verdict():
    records = [record("csd", s, (0.651 + 0.01 * s, 0.616)) for s in (0, 1)]
    records.append(record("csd", 2, (0.641, 0.616)))
    rows = rows_of([*records, record("lwf", 0, (0.64, 0.564)), record("mmd", 0, (0.5, 0.609))])
    csd = rows["CSD"]
    assert csd["1-50: paper"] == "65.1" and csd["n"] == "3" and csd["verdict"] == "agrees"
    assert rows["LwF"]["verdict"] == "near" and rows["MMD"]["verdict"] == "differs"
    assert rows["LwF"]["gap"] == "-1.5", "60.2 on average, where the paper has 61.7"
    assert rows["Joint training"]["verdict"] == "not run"
    table = comparison.render_paper(records, markdown=True)
    assert "65.1 ± 1.0" in table and "+0.0" in table


@pytest.mark.parametrize(
    "changes",
    [dict(preset="reference"), dict(precision="amp"), dict(epochs=10), dict(csd_temperature=0.1)],
)
def test_presets_and_settings_never_share_a_table(changes):
    groups = comparison.paper_groups([record("csd"), record("lwf", **changes)])
    assert [len(group) for group in groups] == [1, 1]


def test_the_newest_of_two_records_of_one_thing_counts():
    (group,) = comparison.paper_groups([record("csd", last=(0.1, 0.1)), record("csd")])
    assert len(group) == 1 and group[0]["matrix"]["own"][-1] == [0.6, 0.5]


def test_claims_are_compared_seed_by_seed():
    records = [record("csd", s, (0.6 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [record("lwf", s, (0.58 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [record("fine-tuning", 0, (0.3, 0.7))]
    (group,) = comparison.paper_groups(records)
    _, rows = comparison.claim_rows(group, "own")
    by_claim = {row[0]: row[1:] for row in rows}
    assert by_claim["CSD is above LwF on average"] == ["+1.7", "+1.0 ± 0.0", "yes"]
    assert by_claim["CSD keeps the old classes better than fine-tuning"][2] == "yes, one seed"
    assert by_claim["Joint training stays above CSD on average"][2] == "not run"
    noisy = [record("csd", s, (0.6 + (0.1 if s else -0.1), 0.6)) for s in (0, 1)]
    noisy += [record("lwf", s) for s in (0, 1)]
    (group,) = comparison.paper_groups(noisy)
    holds = {row[0]: row[3] for row in comparison.claim_rows(group, "own")[1]}
    assert holds["CSD is above LwF on average"] == "not decided"


def test_a_shared_first_task_is_not_counted_twice_in_the_hours():
    shared = [record("initial"), record("csd")]
    own = {"task": 1, "epoch": 0, "seconds": 5400.0}
    shared[1]["history"] = [*shared[1]["history"], own]
    assert ", 2.0 hours," in comparison.render_paper(shared)


def test_what_was_not_reproduced_is_said():
    text = comparison.render_paper([])
    for words in ("with preset reference", "preset clean", "Figure 3", "Table 2", "CUB"):
        assert words in text
    some = comparison.render_paper([record("csd", preset="reference")])
    assert "with preset reference" not in some and "with preset clean" in some


def test_class_preset_is_never_taken_for_the_papers_protocol():
    assert "short schedule" in comparison.render_paper([record("csd", preset="class")])


def test_figures_are_drawn_from_records(tmp_path):
    from csd_lib.paper import figures

    records = [record(method) for method in paper.TABLE_1]
    curves = [record(m, tasks=5) for m in ("csd", "lwf", "mmd", "fecd", "fine-tuning")]
    for r in curves:
        r["matrix"] = {g: [[0.5] * 5] * 5 for g in ("own", "seen")}
    paths = figures.paper_figures(records + curves, tmp_path)
    assert len(paths) == 3 and all(path.stat().st_size > 10_000 for path in paths)


# --- the command line, and a kill --------------------------------------------------------------


def cli(*arguments, folder, **popen):
    env = {**os.environ, "CSD_RUNS": f"{folder}/runs", "CSD_RESULTS": f"{folder}/results"}
    return subprocess.Popen(
        [sys.executable, "-m", "csd_lib", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_reproduce_killed_and_repeated_records_the_same_as_in_one_go(tmp_path):
    command = ["reproduce", "eq8", "--dataset", "digits", "--preset", "clean", "--epochs", "3"]
    whole = cli(*command, folder=tmp_path / "whole")
    text, _ = whole.communicate()
    assert whole.returncode == 0, text
    assert "[1/2] CSD, digits, preset clean, 2 tasks, seed 0" in text and "gallery:" in text

    def epochs():
        files = (tmp_path / "killed" / "runs").glob("*/history.jsonl")
        return sum(len(path.read_text().splitlines()) for path in files)

    process = cli(*command, folder=tmp_path / "killed")
    while process.poll() is None and epochs() < 11:  # in the second run, after its shared task
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 11 <= epochs() < 15, "the kill came too late: nothing was tested"
    process = cli(*command, folder=tmp_path / "killed")
    process.communicate()
    assert process.returncode == 0
    results = [
        {
            r["config"]["method"]: (r["matrix"], [h["loss"] for h in r["history"]])
            for r in ledger.load_records(tmp_path / name / "results")
        }
        for name in ("whole", "killed")
    ]
    assert len(results[0]) == 2
    np.testing.assert_equal(results[0], results[1])


# --- the records in this repository ------------------------------------------------------------


def recorded():
    return [r for r in ledger.load_records() if "preset" in r["config"]]


def test_recorded_configs_are_of_this_kit():
    known = {field.name for field in fields(TrainConfig)}
    assert recorded() and all(set(r["config"]) == known for r in recorded())


def test_recorded_features_give_the_recorded_recall():
    """Half precision costs a little; a mixed-up file would cost everything."""
    from csd_lib.retrieval import recall_at_k

    kept = [r for r in recorded() if "files" in r]
    assert kept
    for r in kept:
        features, labels = ledger.load_features(r)
        first = labels < (labels.max() + 1) // 2
        for j, part in enumerate((first, ~first)):
            recall = recall_at_k(features[part], labels[part])[1]
            assert recall == pytest.approx(r["matrix"]["own"][-1][j], abs=0.003), r["folder"]


def test_recorded_models_are_small_and_load():
    kept = [r for r in recorded() if "files" in r]
    size = sum((r["folder"] / name).stat().st_size for r in kept for name in r["files"])
    assert size < 25e6
    for r in kept:
        model = ledger.load_model(r)
        features, logits = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        assert features.shape == (2, 64) and torch.isfinite(logits).all()
