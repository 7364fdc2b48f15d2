"""Records of the paper's experiments: made, found again, checked, and set beside the paper."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_report import record as any_record

from csd_lib import InputError, losses
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.paper import comparison, figures, ledger
from csd_lib.paper import published as paper
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix, embed, retrieval_matrix

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
            keys = {str(config.key()) for config in configs}
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
    from csd_lib.train import TaskTraining

    original = TaskTraining.run_epoch

    def spy(self, *rest):
        classes = len(self.labels.unique())
        trained.append((classes, self.teacher is not None, len(self.images) > 100))
        return original(self, *rest)

    monkeypatch.setattr(TaskTraining, "run_epoch", spy)
    places = reproduce(table1())
    # initial: one first task for four methods; joint: all ten classes. The rest are fingerprints'.
    assert [t[:2] for t in trained if t[2]] == [(5, False), *[(5, True)] * 4, (10, False)]
    records = ledger.load_records()
    assert {r.folder for r in records} == {*places} and len(places) == 6
    for record in records:
        assert record.fingerprint and len(record.data) == 64 and record.image_shape == (1, 8, 8)
        assert record.config.precision == "fp32" and record.training_seconds > 0
        assert len(record.history) == (1 if record.config.method in ("initial", "joint") else 2)

    trained.clear()
    assert reproduce(table1()) == places, "what is recorded is not run again"
    assert not any(is_real for *_, is_real in trained)


def test_initial_model_is_searched_among_all_classes_at_the_end(own_folders):
    (place,) = reproduce([TrainConfig(method="initial", **QUICK)])
    matrix = Record.read(place / "results.json").matrix
    assert list(matrix.own[0]) == list(matrix.own[1]), "the model does not change"
    assert matrix.seen[1, 0] < matrix.own[1, 0], "but its gallery has grown"
    assert matrix.seen[0, 0] == matrix.own[0, 0]


def test_what_other_code_recorded_is_kept_and_said_and_run_anew_on_demand(
    own_folders, monkeypatch, capsys
):
    config = TrainConfig(**QUICK)
    original = losses.csd_loss
    with monkeypatch.context() as patch:
        patch.setattr(losses, "csd_loss", lambda *a: 0.5 * original(*a))
        (old,) = reproduce([config])
    before = (old / "results.json").read_bytes()
    assert reproduce([config]) == [old]
    assert "by other code" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="code that computes other numbers"):
        (new,) = reproduce([config], again=True)
    assert reproduce([config], again=True) == [new], "the second time it is there"
    assert new != old and (old / "results.json").read_bytes() == before
    records = {r.folder: r.fingerprint for r in ledger.load_records()}
    assert len(records) == 2 and records[new] != records[old]


def test_a_dry_run_says_how_far_each_cell_is_and_runs_nothing(own_folders, digits):
    configs = table1(epochs=2)
    cells = ledger.plan(configs, digits)
    assert {cell.state() for cell in cells} == {"missing"} and ledger.hours_left(cells) is None
    assert list(own_folders.iterdir()) == []
    reproduce(configs[:1])
    half = cells[1].run
    half.mkdir()
    (half / "history.jsonl").write_text('{"task": 0, "epoch": 0, "seconds": 7200}\n')
    text = ledger.render_plan(ledger.plan(configs, digits))
    assert "Initial model" in text.splitlines()[0] and text.count("recorded on") == 1
    assert "half done at epoch 1 of 4" in text and text.count(": missing") == 4
    assert "5 cells to run" in text and "unknown" not in text


def test_time_left_counts_what_cells_share_once(own_folders, digits):
    cells = ledger.plan(table1(epochs=4), digits)
    # initial and the first task that it shares: 4 epochs of half the images; four methods' second
    # tasks; joint training: 4 epochs of all.
    assert ledger.passes_left(cells) == 4 * (0.5 + 4 * 0.5 + 1)


def test_kept_models_and_features_are_those_of_the_run(own_folders, digits):
    reproduce([TrainConfig(**QUICK)], keep_models=True)
    (record,) = ledger.load_records()
    model, (features, labels) = ledger.load_model(record), ledger.load_features(record)
    tasks = class_incremental_split(digits, 2)
    images = torch.cat([task.test_images for task in tasks])
    assert torch.equal(labels, torch.cat([task.test_labels for task in tasks]))
    torch.testing.assert_close(embed(model, images), features, rtol=1e-3, atol=1e-3)
    last = retrieval_matrix([model], tasks).seen[-1]
    np.testing.assert_allclose(last, record.matrix.seen[-1])


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


def test_a_record_without_models_says_how_to_get_them(tmp_path):
    record = replace(any_record(), folder=tmp_path)
    with pytest.raises(InputError, match=r"kept no model\.pt.*--keep-models"):
        ledger.load_model(record)


def test_what_is_not_a_record_is_named_and_does_not_stop_the_others(own_folders):
    for name in "xy":
        (own_folders / "results" / name).mkdir(parents=True)
    any_record().write(own_folders / "results" / "x" / "results.json")
    (own_folders / "results" / "y" / "results.json").write_text('{"config": {}}')
    with pytest.warns(UserWarning, match=r"left out: .*results\.json is not a record"):
        assert len(ledger.load_records()) == 1


# --- paper against ours ------------------------------------------------------------------------


def record(method="csd", seed=0, last=(0.6, 0.5), preset="clean", **changes):
    changes = {"dataset": "cifar100", **changes}
    made = any_record(method, seed, ((0.7, 0.2), last), preset=preset, **changes)
    return replace(made, image_shape=(3, 32, 32))


def all_experiments():
    """A record for every cell of every experiment, each with a number of its own."""
    made = {}
    for experiment in paper.EXPERIMENTS.values():
        for config in experiment.configs((0,), dataset="cifar100", preset="class"):
            number = (len(made) + 1) / 1000
            values = np.full((config.tasks, config.tasks), number)
            matrix = RetrievalMatrix(values, values, values)
            new = replace(record(), config=config, matrix=matrix)
            made.setdefault(new.key(), new)
    return list(made.values())


def only_table(records, name="table1"):
    (group,) = comparison.paper_groups(records)
    (table,) = (table for table in comparison.tables(group) if table.name == name)
    return table


def rows_of(records, gallery="own"):
    header, rows = comparison.paper_rows(only_table(records), gallery)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def render(records, markdown=False):
    return comparison.render_paper(comparison.paper_groups(records), markdown)


def test_each_cell_shows_paper_ours_gap_and_a_verdict():
    records = [record("csd", s, (0.651 + 0.01 * s, 0.616)) for s in (0, 1)]
    records.append(record("csd", 2, (0.641, 0.616)))
    records += [record("lwf", 0, (0.64, 0.564)), record("mmd", 0, (0.5, 0.609))]
    rows = rows_of(records)
    csd = rows["CSD"]
    assert csd["1-50: paper"] == "65.1" and csd["n"] == "3" and csd["verdict"] == "agrees"
    assert rows["LwF"]["verdict"] == "near" and rows["MMD"]["verdict"] == "differs"
    assert rows["LwF"]["gap"] == "-1.5", "60.2 on average, where the paper has 61.7"
    text = render(records, markdown=True)
    assert "65.1 ± 1.0" in text and "+0.0" in text
    assert text.count("Joint training") == 1 and "not run: Initial model" in text


@pytest.mark.parametrize(
    "changes",
    [dict(preset="reference"), dict(precision="amp"), dict(epochs=10), dict(data="e" * 64)],
)
def test_presets_and_settings_never_share_a_table(changes):
    groups = comparison.paper_groups([record("csd"), record("lwf", **changes)])
    assert [len(group.records) for group in groups] == [1, 1]


def test_a_changed_weight_is_not_taken_for_the_papers_method():
    assert rows_of([record(), record(seed=1, lambda_csd=10)])["CSD"]["n"] == "1"


def test_every_experiment_is_one_table_beside_its_baselines_and_no_record_is_dropped():
    records = all_experiments()
    text = render(records)
    for experiment in paper.EXPERIMENTS.values():
        # Figure 3 has two numbers of tasks
        assert text.count(f"\n{experiment.title}\n") == len(experiment.tasks), experiment.title
    assert "not run:" not in text and "Other runs" not in text
    for made in records:
        assert f" {100 * made.matrix.own[0, 0]:.1f}" in text, made.config
    (group,) = (g for g in comparison.paper_groups(records) if g.config.tasks == 2)
    by_name = {table.name: table for table in comparison.tables(group)}
    assert len(by_name["table3"].rows) == 9 + 2  # fine-tuning and joint; CSD is in the grid
    assert len(by_name["traps"].rows) == 4 + 2 and len(by_name["eq8"].rows) == 2 + 2
    assert "lambda_kd" in text and "selection" in text


def test_ones_own_variants_are_shown_too():
    text = render([record(), record(lambda_csd=3.0), record("ce+kd")])
    assert "Other runs" in text and "CSD, lambda_csd=3.0" in text and "ce + kd" in text


def test_claims_are_compared_seed_by_seed():
    records = [record("csd", s, (0.6 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [record("lwf", s, (0.58 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [record("fine-tuning", 0, (0.3, 0.7))]
    rows = comparison.claim_rows(only_table(records), "own")[1]
    by_claim = {row[0]: row[1:] for row in rows}
    assert by_claim["CSD is above LwF on average"] == ["+1.7", "+1.0 ± 0.0", "yes"]
    assert by_claim["CSD keeps the old classes better than fine-tuning"][2] == "yes, one seed"
    assert "Joint training stays above CSD on average" not in by_claim
    noisy = [record("csd", s, (0.6 + (0.1 if s else -0.1), 0.6)) for s in (0, 1)]
    noisy += [record("lwf", s) for s in (0, 1)]
    holds = {row[0]: row[3] for row in comparison.claim_rows(only_table(noisy), "own")[1]}
    assert holds["CSD is above LwF on average"] == "not decided"


def test_a_shared_first_task_is_not_counted_twice_in_the_hours():
    own = {"task": 1, "epoch": 0, "seconds": 5400.0}
    initial, csd = record("initial"), record("csd")
    assert ", 2.0 hours," in render([initial, replace(csd, history=(*csd.history, own))])


def test_what_was_not_reproduced_is_said_once():
    text = render([])
    for words in ("with preset reference", "preset clean", "Figure 3", "Table 2", "CUB"):
        assert words in text
    some = render([record("csd", preset="reference")])
    assert "with preset reference" not in some and "with preset clean" in some
    assert all(some.count(e.title) == 1 for e in paper.EXPERIMENTS.values())


def test_figure5_alone_is_shown_and_drawn(tmp_path):
    records = [r for r in all_experiments() if r.config.tasks == 10 and "+" in r.config.method]
    assert "ce + triplet + kd" in render(records)
    paths = figures.paper_figures(comparison.paper_groups(records), tmp_path)
    assert [path.name.split("-")[0] for path in paths] == ["figure5", "figure5"]


def test_no_two_figures_share_a_name_and_no_other_figure_is_overwritten(tmp_path):
    groups = comparison.paper_groups(all_experiments())
    paths = figures.paper_figures(groups, tmp_path)
    assert len({*paths}) == len(paths) == len([*tmp_path.iterdir()]) == 1 + 2 * (2 + 1 + 3)
    assert figures.paper_figures(groups, tmp_path) == paths, "the same group's may be drawn again"

    mine = tmp_path / "mine"
    mine.mkdir()
    one = comparison.paper_groups([record()])
    (first,) = figures.paper_figures(one, mine)
    before = first.read_bytes()
    (other,) = figures.paper_figures(comparison.paper_groups([record(data="e" * 64)]), mine)
    assert other != first and first.read_bytes() == before
    first.write_text("a user's own")
    assert figures.paper_figures(one, mine) != [first] and first.read_text() == "a user's own"


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
            r.config.method: (vars(r.matrix), [h["loss"] for h in r.history])
            for r in ledger.load_records(tmp_path / name / "results")
        }
        for name in ("whole", "killed")
    ]
    assert len(results[0]) == 2
    np.testing.assert_equal(results[0], results[1])


def test_two_processes_share_the_cells_and_do_none_twice(tmp_path):
    command = ["reproduce", "table1", "--dataset", "digits", "--preset", "clean", "--epochs", "2"]
    both = [cli(*command, "--quiet", folder=tmp_path) for _ in range(2)]
    texts = []
    for process in both:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
        texts.append(text)
    assert all(text.count("Joint training") == 3 for text in texts), "two tables, one line"
    lines = [line for text in texts for line in text.splitlines() if line.startswith("[")]
    done = [line for line in lines if "recorded" not in line and "first task" not in line]
    # Whoever finds the initial model trained as the others' first task only measures it.
    assert sorted(line[1] for line in done) == list("123456"), lines
    records, problems = ledger.read_ledger(tmp_path / "results")
    assert len(records) == 6 and problems == []


# --- the records in this repository ------------------------------------------------------------


def recorded():
    return ledger.load_records()


def test_recorded_features_give_the_recorded_recall():
    """Half precision costs a little; a mixed-up file would cost everything."""
    from csd_lib.retrieval import recall_at_k

    kept = [r for r in recorded() if r.files]
    assert kept
    for r in kept:
        features, labels = ledger.load_features(r)
        first = labels < (labels.max() + 1) // 2
        for j, part in enumerate((first, ~first)):
            recall = recall_at_k(features[part], labels[part])[1]
            assert recall == pytest.approx(r.matrix.own[-1, j], abs=0.003), r.folder


def test_recorded_models_are_small_and_load():
    kept = [r for r in recorded() if r.files]
    size = sum((r.folder / name).stat().st_size for r in kept for name in r.files)
    assert size < 25e6
    for r in kept:
        model = ledger.load_model(r)
        features, logits = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        assert features.shape == (2, 64) and torch.isfinite(logits).all()
