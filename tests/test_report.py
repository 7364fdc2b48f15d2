import json

import numpy as np
import pytest

from csd_lib import InputError
from csd_lib.experiment import run_experiment, run_name
from csd_lib.paper import report
from csd_lib.retrieval import RetrievalMatrix
from csd_lib.train import TrainConfig

QUICK = dict(epochs=1, device="cpu")


def result(method, seed, first_column, code="abc", **changes):
    """A result as experiment.py writes it, with chosen numbers."""
    stages = [[value, 0.5] for value in first_column]
    shared = {"config": {**vars(TrainConfig(method=method, seed=seed, **changes))}, "code": code}
    matrix = {"own": stages, "seen": stages, "accuracy": stages}
    averages = dict.fromkeys(matrix, float(np.mean(stages[-1])))
    lost = dict.fromkeys(matrix, first_column[0] - first_column[-1])
    return json.loads(
        json.dumps(
            {
                **shared,
                "device": "cpu",
                "date": "2026-01-01",
                "versions": {"torch": "2"},
                "matrix": matrix,
                "average": averages,
                "forgetting": lost,
            }
        )
    )


def test_mean_and_sample_sd_over_seeds():
    assert report.mean_and_sd([0.9, 0.8, 0.7]) == "80.0 ± 10.0"
    assert report.mean_and_sd([0.9]) == "90.0"
    assert report.mean_and_sd([0.9, float("nan")]) == "–"


def test_table_shows_each_method_with_its_own_numbers():
    results = [result("fine-tuning", s, [0.98, 0.8 + 0.02 * s]) for s in (0, 1, 2)]
    results += [result("csd", s, [0.98, 0.97]) for s in (0, 1, 2)]
    results += [result("joint", 0, [0.99])]
    _, rows = report.table_rows(results, "own")
    assert rows[0][:3] == ["Fine-tuning", "98.0 ± 0.0", "82.0 ± 2.0"]
    assert rows[1][:3] == ["CSD", "98.0 ± 0.0", "97.0 ± 0.0"]
    assert rows[2][:3] == ["Joint training", "–", "99.0"]


@pytest.mark.parametrize(
    "other",
    [dict(epochs=3), dict(csd_temperature=0.1), dict(tasks=5), dict(code="changed")],
)
def test_runs_with_other_settings_or_other_code_never_share_a_table(other):
    results = [result("csd", 0, [0.98, 0.97]), result("csd", 1, [0.98, 0.1], **other)]
    assert [len(group) for group in report.comparable_groups(results)] == [1, 1]


def test_changed_settings_are_named_above_the_table():
    text = report.render([result("csd", 0, [0.9, 0.8], csd_temperature=0.1)])
    assert "csd_temperature=0.1" in text
    assert "changed" not in report.render([result("csd", 0, [0.9, 0.8])])


def test_matrix_of_one_run_is_shown_with_its_summary():
    own = np.array([[0.9, 0.2], [0.7, 0.8]])
    text = report.render_matrix(RetrievalMatrix(own, own, np.array([[0.9, np.nan], [0.1, 0.8]])))
    assert "average 75.0, forgetting 20.0, backward transfer -20.0" in text
    assert "after task 1    90.0       –" in text


def test_a_finished_run_is_loaded_and_not_measured_again(digits, tmp_path):
    first = run_experiment(TrainConfig(**QUICK), digits, folder=tmp_path, progress=False)
    results = json.loads((tmp_path / "results.json").read_text())
    results["matrix"]["own"][0][0] = 0.123
    (tmp_path / "results.json").write_text(json.dumps(results))
    again = run_experiment(TrainConfig(**QUICK), digits, folder=tmp_path, progress=False)
    assert again.matrix.own[0, 0] == 0.123
    np.testing.assert_array_equal(again.matrix.seen, first.matrix.seen)


def test_a_run_made_by_other_code_is_not_loaded(digits, tmp_path, monkeypatch):
    """A student who flips a sign in a loss must not be shown yesterday's result."""
    monkeypatch.setattr("csd_lib.runs.code_hash", lambda: "yesterday")
    old_name = run_name(TrainConfig(**QUICK))
    run_experiment(TrainConfig(**QUICK), digits, folder=tmp_path, progress=False)
    monkeypatch.undo()
    assert run_name(TrainConfig(**QUICK)) != old_name
    with pytest.raises(InputError, match="code 'yesterday' -> "):
        run_experiment(TrainConfig(**QUICK), digits, folder=tmp_path, progress=False)


def test_records_are_found_where_reproduce_puts_them(tmp_path):
    place = tmp_path / "digits" / "some-run"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(result("csd", 3, [0.9, 0.8])))
    (found,) = report.load_results(tmp_path)
    assert found["config"]["seed"] == 3


def test_no_results_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        report.load_results(tmp_path)
