"""Tables of records: what stands together, what is said above it, and what programs read."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from csd_lib import InputError, losses, methods
from csd_lib.config import TrainConfig
from csd_lib.fingerprint import fingerprint
from csd_lib.paper import report
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix


def record(method="csd", seed=0, own=((0.9, 0.2), (0.8, 0.7)), device="cpu, 2 cores", **changes):
    """A record as ``run_experiment`` makes it, with chosen numbers."""
    more = {n: changes.pop(n) for n in list(changes) if n in Record.__dataclass_fields__}
    config = TrainConfig(method=method, seed=seed, **changes)
    values = np.array(own, dtype=float)
    if values.shape[1] != config.tasks:
        values = np.full((config.tasks, config.tasks), 0.5)
    found = dict(data="d" * 64, image_shape=(1, 8, 8), date="2026-01-01", versions={"torch": "2"})
    history = ({"task": 0, "epoch": 0, "seconds": 1800.0 + seed},)
    found |= dict(history=history, peak_memory_mb=100)
    matrix = RetrievalMatrix(values, values, values)
    return Record(config=config, matrix=matrix, device=device, **{**found, **more})


def of_today(**changes):
    made = record(**changes)
    return replace(made, fingerprint=fingerprint(made.config, 1, 8))


def test_mean_and_sample_sd_over_seeds():
    assert report.mean_and_sd([0.9, 0.8, 0.7]) == "80.0 ± 10.0"
    assert report.mean_and_sd([0.9]) == "90.0"
    assert report.mean_and_sd([0.9, float("nan")]) == "–"


def test_table_shows_each_method_with_its_own_numbers():
    found = [record("fine-tuning", s, [[0.98, 0], [0.8 + 0.02 * s, 1]]) for s in (0, 1, 2)]
    found += [record("csd", 0, [[0.98, 0], [0.97, 1]]), record("joint", 0, [[0.99, 0.5]])]
    _, rows = report.table_rows(report.variants(found), "own")
    assert rows[0][:4] == ["Fine-tuning", "3", "98.0 ± 0.0", "82.0 ± 2.0"]
    assert rows[1][:4] == ["CSD", "1", "98.0", "97.0"]
    assert rows[2][:4] == ["Joint training", "1", "–", "99.0"]


@pytest.mark.parametrize("other", [dict(epochs=3), dict(tasks=5), dict(data="e" * 64)])
def test_runs_of_other_lengths_or_images_never_share_a_table(other):
    text = report.render([record(), record(seed=1, **other)])
    assert text.count("Recall@1") == 4


@pytest.mark.parametrize("other", [dict(csd_temperature=0.1), dict(fingerprint="0123abcd")])
def test_other_settings_or_other_code_are_other_rows(other):
    rows = report.variants([record(), record(seed=1, **other)])
    assert [len(row) for row in rows] == [1, 1]


def test_machines_never_split_a_table():
    made = [record(seed=s, device=d) for s, d in enumerate(("cpu", "cuda", "cuda:1"))]
    made = [replace(r, config=replace(r.config, device=r.device)) for r in made]
    ((_, n, *_),) = report.table_rows(report.variants(made), "own")[1]
    assert n == "3" and "cpu, cuda, cuda:1" in report.render(made)


def test_settings_are_named_above_the_table_if_all_have_them_and_else_in_the_row():
    changed = record(csd_temperature=0.1)
    assert "changed from the preset: csd_temperature=0.1" in report.render([changed])
    both = report.render([changed, record()])
    assert "changed from the preset" not in both and "CSD, csd_temperature=0.1" in both


def test_of_two_records_of_one_run_the_newest_counts_and_it_is_said():
    made = [record(date="2026-02-02"), record(own=[[0.4, 0.4], [0.4, 0.4]])]
    text = report.render(made)
    assert "80.0" in text and "40.0" not in text and "left out: 1 older" in text


def test_only_what_todays_code_computes_is_believed(monkeypatch):
    current, no_images, older = of_today(), record(data=""), of_today(seed=1, date="2026-01-02")
    older = replace(older, fingerprint="01234567")
    assert report.are_current([current, no_images, older]) == [True, False, False]
    above, below = report.render([older, current]).split(report.OLDER)
    assert current.fingerprint in above and "01234567" in below

    original = losses.csd_loss
    monkeypatch.setattr(losses, "csd_loss", lambda *a: -original(*a))
    assert report.are_current([current]) == [False]


def test_each_recipe_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(report, "fingerprint", lambda config, *_: tried.append(config) or "f" * 8)
    report.are_current(
        [record(method=m, seed=s, fingerprint="x") for m in ("csd", "lwf") for s in (0, 1, 2)]
    )
    assert [config.method for config in tried] == ["csd", "lwf"]


@pytest.mark.parametrize("shape", [(1,), ("1", 8, 8), (10**9, 8, 8), (0, 8, 8)])
def test_impossible_image_shapes_are_of_other_code(shape):
    assert report.are_current([record(fingerprint="x", image_shape=shape)]) == [False]


def test_a_registered_method_and_term_appear_by_themselves(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "mine", methods.Method("My method", "ce+csd"))
    text = report.render([record("mine"), record("ce+kd"), record("csd")])
    assert text.index("CSD") < text.index("My method") < text.index("ce + kd")


def test_programs_read_every_setting_and_number():
    made = [record("joint", own=[[0.9, 0.7]]), of_today(csd_temperature=0.5)]
    objects = json.loads(report.render_json(made))
    lines = list(csv.DictReader(io.StringIO(report.render_csv(made))))
    assert len(objects) == len(lines) == 2 and objects[0]["forgetting_own"] is None
    for found in (objects[1], lines[1]):
        assert (
            float(found["csd_temperature"]) == 0.5 and found["fingerprint"] == made[1].fingerprint
        )
        assert str(found["is_current"]) == "True" and found["data"] == "d" * 64
        assert float(found["average_seen"]) == 0.75
        own = found["own"] if isinstance(found["own"], list) else json.loads(found["own"])
        assert own == [[0.9, 0.2], [0.8, 0.7]]
    assert report.render_json([]) == "[]"


def test_a_record_cannot_steer_the_terminal():
    hostile = record(device="\x1b[2Jgpu\x07\x9b", date="2026\x1b]0;x")
    for text in (
        report.render([hostile]),
        report.render_csv([hostile]),
        report.render_json([hostile]),
    ):
        assert all(c.isprintable() or c == "\n" for c in text)


def test_matrix_of_one_run_is_shown_with_its_summary():
    own = np.array([[0.9, 0.2], [0.7, 0.8]])
    text = report.render_matrix(RetrievalMatrix(own, own, np.array([[0.9, np.nan], [0.1, 0.8]])))
    assert "average 75.0, forgetting 20.0, backward transfer -20.0" in text
    assert "after task 1    90.0       –" in text


def test_what_cannot_be_read_is_named_and_does_not_stop_the_rest(tmp_path):
    for name in ("good", "gone", "broken"):
        (tmp_path / name).mkdir()
        record(seed=3).write(tmp_path / name / "results.json")
    gone = tmp_path / "gone" / "results.json"
    gone.write_text(gone.read_text().replace('"csd"', '"removed"'))
    (tmp_path / "broken" / "results.json").write_text('{"config": ')
    (found,), problems = report.load_runs(tmp_path)
    assert found.config.seed == 3 and len(problems) == 2
    assert "removed" in " ".join(problems) and "broken" in " ".join(problems)


def test_no_results_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        report.load_runs(tmp_path)
    assert report.load_runs(tmp_path, may_be_none=True) == ([], [])
