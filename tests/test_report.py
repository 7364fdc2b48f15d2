"""One's own runs as a table, and records for programs."""

import csv
import io
import json
import re
from dataclasses import asdict, replace
from unittest.mock import patch

import numpy as np
import pytest
from made_up import record, write

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.datasets import get_spec, load_dataset
from csd_lib.experiment import run_experiment
from csd_lib.fingerprint import fingerprint
from csd_lib.methods import METHODS, Method
from csd_lib.paper import comparison, report
from csd_lib.paper.ledger import read_ledger
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix

QUICK = dict(epochs=1, device="cpu")


def made(method="csd", seed=0, first_column=(0.9, 0.8), **changes):
    changes = {"dataset": "digits", "depth": 8, **changes}
    return record(method=method, seed=seed, first_column=first_column, **changes)


def test_mean_and_sample_sd_over_seeds():
    assert report.mean_and_sd([0.9, 0.8, 0.7]) == "80.0 ± 10.0"
    assert report.mean_and_sd([0.9]) == "90.0"
    assert report.mean_and_sd([0.9, float("nan")]) == "–"


def test_table_shows_each_method_with_its_own_numbers():
    records = [made("joint", 0, (0.99,))]
    records += [made("csd", s, (0.98, 0.97)) for s in (0, 1, 2)]
    records += [made("fine-tuning", s, (0.98, 0.8 + 0.02 * s)) for s in (0, 1, 2)]
    header, rows = report.table_rows(report.variants(records), "own")
    assert [row[:4] for row in rows] == [
        ["Fine-tuning", "3", "98.0 ± 0.0", "82.0 ± 2.0"],
        ["CSD", "3", "98.0 ± 0.0", "97.0 ± 0.0"],
        ["Joint training", "1", "–", "99.0"],
    ]
    last = {m: [r.matrix.own[-1, -1] for r in records if r.config.method == m] for m in METHODS}
    new = [report.mean_and_sd(last[method]) for method in ("fine-tuning", "csd", "joint")]
    assert [row[header.index("last task")] for row in rows] == new and len({*new}) == 3
    prints = [row[header.index("fingerprint")] for row in rows]
    assert prints[1] == records[1].fingerprint and len(set(prints)) == 3


def test_average_and_forgetting_are_of_all_tasks_and_of_every_run():
    own = np.array([[0.8, 0.2, 0.1], [0.9, 0.7, 0.3], [0.6, 0.75, 0.8]])
    lower = own - [0.1, 0.1, 0.4]  # after each task, on the third one's images by 0.4
    csd, lwf = (
        [made(name, s, None, tasks=3, matrix=RetrievalMatrix(*[m] * 3)) for s, m in enumerate(two)]
        for name, two in (("csd", (own, own - 0.1)), ("lwf", (lower, lower - 0.1)))
    )
    header, rows = report.table_rows(report.variants([*csd, *lwf]), "own")
    columns = [header.index(name) for name in ("average", "forgetting")]
    # The best value of task 1 came after task 2.
    assert [[row[c] for c in columns] for row in rows] == [
        ["46.7 ± 7.1", "12.5 ± 0.0"],
        ["66.7 ± 7.1", "12.5 ± 0.0"],
    ]
    found = report.differences([*csd, *lwf], {"method": "lwf"})
    shown = [(d["task1_after"], d["last_task"], d["average"]) for d in found]
    np.testing.assert_allclose(shown, [(0.1, 0.4, 0.2)] * len(found))


def test_plain_runs_are_those_of_the_newest_code_that_change_nothing_of_the_preset():
    kept = [made("ce+csd", seed, precision="amp") for seed in (1, 0)]
    kept += [made("lwf", precision="amp")]
    left_out = [
        made("ce+csd", lambda_csd=0.1),
        made("ce+csd", epochs=80, date="2027-01-01"),
        made("lwf", tasks=5, first_column=None),
        made("lwf", preset="reference", seed=3),
        made("lwf", dataset="cifar100", seed=4),
        made("ce+csd", 7, fingerprint="older", date="2025-01-01", precision="amp"),
    ]
    found = report.plain_runs([*left_out, *kept], "digits", "clean")
    assert {name: {*by_seed} for name, by_seed in found.items()} == {"lwf": {0}, "ce+csd": {0, 1}}
    assert found["ce+csd"][1] is kept[0] and found["lwf"][0] is kept[2]


def test_plain_runs_are_of_one_precision_that_of_the_most_runs_and_then_the_newest():
    methods = ("fine-tuning", "lwf", "csd")
    whole = [made(method, seed) for method in methods for seed in range(3)]
    newer = [made("csd", 0, precision="amp", date="2027-01-01")]
    repeated = [replace(newer[0], date=f"2026-03-{day:02}") for day in range(1, 20)]
    for records in ([*whole, *newer], [*repeated, *newer, *whole]):
        found = report.plain_runs(records, "digits", "clean")
        assert {name: [*by_seed] for name, by_seed in found.items()} == {
            method: [0, 1, 2] for method in methods
        }
        assert {r.config.precision for row in found.values() for r in row.values()} == {"fp32"}
    for records in ([whole[-3], *newer], [*newer, whole[-3]]):
        assert report.plain_runs(records, "digits", "clean") == {"csd": {0: newer[0]}}
    assert report.plain_runs([], "digits", "clean") == {}


@pytest.mark.parametrize(
    "other",
    [
        dict(epochs=3),
        dict(csd_temperature=0.1),
        dict(tasks=5, first_column=None),
        dict(preset="reference"),
        dict(precision="amp"),
        dict(fingerprint="01234567"),
        dict(fingerprint=""),
        dict(data="1" * 64),
    ],
)
def test_runs_with_other_settings_images_or_code_are_never_averaged(other):
    records = [made(seed=0), made(**{"seed": 1, **other})]
    for group in report.grouped(records, *vars(records[0].config)):
        assert [len(row) for row in report.variants(group.records)] in ([1], [1, 1])
    assert all(len(group.records) == 1 for group in report.grouped(records, "seed"))


@pytest.mark.parametrize("other", ["01234567", ""])
def test_older_codes_records_stand_apart_at_the_end_and_are_announced(other):
    records = [made("lwf", fingerprint=other, first_column=(0.9, 0.321)), made("csd")]
    groups = report.grouped(records, "method", "seed")
    assert [(g.is_current, g.records) for g in groups] == [
        (True, records[1:]),
        (False, records[:1]),
    ]
    current, older = report.render(records).split(report.OLDER)
    assert "CSD" in current and "32.1" not in current and "32.1" in older
    assert report.OLDER not in report.render(records[1:])


def test_what_made_a_record_is_older_code_once_the_code_computes_something_else(monkeypatch):
    monkeypatch.setattr(report, "fingerprint", fingerprint)
    records = [made("csd"), made("fine-tuning")]
    assert report.notes_on_code(records) == ["", ""]
    original = METHODS["csd"]
    with patch.dict(METHODS, csd=Method(original.title, "ce+triplet+csd")):
        assert report.notes_on_code(records) == [report.OLDER, ""]
    assert report.notes_on_code([replace(records[0], data="")]) == [report.OLDER]
    for shape in ((), (10**6, 8, 8)):
        assert report.notes_on_code([replace(records[0], image_shape=shape)]) == [report.OLDER]


def test_a_network_whose_module_is_not_imported_is_named_with_the_remedy(monkeypatch):
    """The reader must not think that it was made by older code."""
    monkeypatch.setattr(report, "fingerprint", fingerprint)
    stranger = made(
        "lwf", network="not_imported:Net", fingerprint="1" * 8, first_column=(0.9, 0.321)
    )
    older = made("fine-tuning", fingerprint="01234567")
    text = report.render([stranger, older, made("csd")], against={"method": "csd"})
    before, rest = text.split(report.OLDER)
    (line,) = [line for line in before.splitlines() if "import not_imported first" in line]
    assert "It is not known whether today's code computes" in line and "Fine-tuning" in rest
    current, unknown = before.split(line)
    assert "CSD" in current and "32.1" in unknown and "32.1" not in current + rest
    objects = report.as_objects([stranger, older, made("csd")])
    assert [found["is_current"] for found in objects] == [None, False, True]
    assert "import not_imported first" in comparison.render_paper(
        comparison.paper_groups([stranger, older])
    )


def test_a_term_method_or_network_that_nobody_has_registered_is_named_with_the_remedy(tmp_path):
    for name, changes in (("mine", dict(method="mine")), ("nets", dict(network="nets"))):
        config = {**asdict(TrainConfig()), **changes}
        (tmp_path / name).mkdir()
        content = {"config": config, "matrix": {}, "date": "", "device": ""}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    write(tmp_path, [made()])
    _, problems = report.load_runs(tmp_path)
    assert len(problems) == 2
    for problem, name in zip(sorted(problems), ("mine", "nets"), strict=True):
        assert f"'{name}'" in problem and "import that first" in problem


@pytest.mark.parametrize("machine", [dict(device="cuda:1"), dict(cuda_graph=True)])
def test_the_machine_never_splits_a_table(machine):
    config = TrainConfig(seed=1, **machine)
    records = [made(seed=0), record(config, first_column=(0.9, 0.8))]
    (group,) = report.grouped(records, "seed")
    assert [len(row) for row in report.variants(group.records)] == [2]


def test_the_newest_of_two_records_of_one_run_counts_and_the_other_is_mentioned():
    newer = made(date="2026-02-02", first_column=(0.9, 0.777))
    for records in ([newer, made()], [made(), newer]):
        (group,) = report.grouped(records, "seed")
        assert group.records == [newer] and group.repeated == 1
        assert any("1 older" in line for line in report.headline(group))


def test_changed_settings_are_named():
    alone = report.render([made(csd_temperature=0.1)])
    assert "csd_temperature=0.1" in alone and "changed" not in report.render([made()])
    beside = report.render([made(csd_temperature=0.1), made()])
    assert "CSD, csd_temperature=0.1" in beside and "changed" not in beside


def on_disk(folder, records):
    """The records as they are read; what their method does not read was not written."""
    write(folder, records)
    return report.load_runs(folder)[0]


def differences(records, **against):
    """What is said of differences among own classes, by row, and the whole text."""
    text = report.render(records, against=against)
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if "Differences" in line and "own" in line]
    found = {}
    for start in starts:
        table = lines[start + 4 :]
        cells = [re.split("  +", line) for line in table[: table.index("")]]
        found |= {row[0]: row[1:4] for row in cells}
    return found, text


def test_ones_own_runs_are_compared_seed_by_seed_with_the_row_that_is_otherwise_the_same(tmp_path):
    """Depth 14 is better by 5 points; it must not be compared with depth 8."""
    records = [
        made(method, seed, (0.9, value + 0.1 * seed + deeper), depth=depth)
        for depth, deeper in ((8, 0.0), (14, 0.05))
        for method, value in (("lwf", 0.5), ("csd", 0.53), ("ce+kd", 0.45))
        for seed in (0, 1)
    ]
    records += [made("lwf", 2, (0.9, 0.1)), made("joint", 0, (0.99,))]
    assert differences(on_disk(tmp_path, records), method="lwf")[0] == {
        "CSD": ["LwF", "2", "+3.0 ± 0.0 [+3.0 to +3.0]"],
        "CSD, depth=14": ["LwF, depth=14", "2", "+3.0 ± 0.0 [+3.0 to +3.0]"],
        "Joint training": ["LwF", "1", "+49.0"],
        "ce + kd": ["LwF", "2", "-5.0 ± 0.0 [-5.0 to -5.0]"],
        "ce + kd, depth=14": ["LwF, depth=14", "2", "-5.0 ± 0.0 [-5.0 to -5.0]"],
    }
    deeper, _ = differences(report.load_runs(tmp_path)[0], depth=8)
    five = ["2", "+5.0 ± 0.0 [+5.0 to +5.0]"]
    assert deeper == {f"{name}, depth=14": [name, *five] for name in ("LwF", "CSD", "ce + kd")}


def test_differences_come_for_programs_too_one_for_each_gallery_and_seed():
    lwf, csd = ([made(m, s, (0.9, v)) for s in (0, 1)] for m, v in (("lwf", 0.5), ("csd", 0.53)))
    found = json.loads(report.render_json([*lwf, *csd, made("lwf", 2)], {"method": "lwf"}))
    about = [(d["gallery"], d["seed"], d["run"], d["minus"]) for d in found]
    assert about == [(g, s, "CSD", "LwF") for g in ("own", "seen") for s in (0, 1)]
    new = [b.matrix.own[-1, -1] - a.matrix.own[-1, -1] for a, b in zip(lwf, csd, strict=True)]
    shown = [
        (d["task1_after"], d["last_task"], d["average"]) for d in found if d["gallery"] == "own"
    ]
    np.testing.assert_allclose(shown, [(0.03, n, (0.03 + n) / 2) for n in new], atol=1e-12)
    rows = from_csv(report.render_csv([*lwf, *csd], {"method": "lwf"}))
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    with pytest.raises(InputError, match="'lfw'"):
        differences([made("csd")], method="lfw")
    with pytest.raises(InputError, match="no two runs of one seed"):
        report.render_csv(lwf, {"method": "lwf"})


def test_settings_that_a_run_does_not_read_do_not_keep_it_from_being_compared(tmp_path):
    """They are not written down, so a reader of the file would take their defaults."""
    records = [made("csd", csd_temperature=0.1, lambda_kd=2.0), made("lwf", lambda_kd=2.0)]
    records += [made("csd", selection="held_out", held_out=0.2)]
    found, _ = differences(on_disk(tmp_path, records), method="csd")
    assert {row: cells[0] for row, cells in found.items()} == {
        "LwF, lambda_kd=2": "CSD, csd_temperature=0.1, lambda_kd=2"
    }


def test_runs_of_other_lengths_are_not_otherwise_the_same(tmp_path):
    """A length that is as usual is not written into what tells runs apart, but it is known."""
    short, whole = dict(epochs=2, later_epochs=1), dict(epochs=2)
    found, text = differences([made("csd", **short), made("lwf", **whole)], method="lwf")
    assert not found and "no two runs of one seed" in text
    records = [made(method, **length) for method in ("csd", "lwf") for length in (short, whole)]
    records = on_disk(tmp_path, [*records, made("initial", **whole)])
    names = {"CSD": "LwF", "CSD, later_epochs=1": "LwF, later_epochs=1"}
    found, text = differences(records, method="lwf")
    assert {row: cells[0] for row, cells in found.items()} == names
    assert text.count("several to compare with") == 1, "what learns no later task, with both"
    found, _ = differences(records, method="lwf", later_epochs=1)
    assert {cells[0] for cells in found.values()} == {"LwF, later_epochs=1"} and len(found) == 4
    for usual in (2, None):
        found, _ = differences(records, later_epochs=usual)
        assert {row: cells[0] for row, cells in found.items()} == {
            f"{name}, later_epochs=1": name for name in ("CSD", "LwF")
        }


def test_a_prefix_is_compared_with_no_whole_run():
    prefix, whole = dict(epochs=2, stop_at_epoch=1), dict(epochs=2, stop_at_epoch=2)
    found, text = differences([made("csd", **prefix), made("lwf", **whole)], method="lwf")
    assert not found and text.count("no two runs of one seed") == 2
    records = [made(method, **length) for method in ("csd", "lwf") for length in (prefix, whole)]
    found, text = differences(records, method="lwf")
    assert {row: cells[0] for row, cells in found.items()} == {"CSD": "LwF"}
    assert text.count("Differences, ") == 4 and "several" not in text
    with pytest.raises(InputError, match="differ in stop_at_epoch"):
        report.render(records, against={"stop_at_epoch": 1})


def test_a_headline_says_of_all_its_rows_how_long_they_were_trained():
    prefix, whole = made("csd", epochs=2, stop_at_epoch=1), made("lwf", epochs=2)
    for records in ([prefix, whole], [whole, prefix]):
        _, *blocks = report.render(records).split(": 2 epochs a task, ")
        said = {"LwF" in block: block.startswith("of which only the first 1 ") for block in blocks}
        assert len(blocks) == 2 and said == {True: False, False: True}
        (group,) = report.grouped(records, "method", "stop_at_epoch")
        assert "prefix" not in report.headline(group)[0]
    # What is as usual is no other length, whether it is given or not.
    same = [whole, made("csd", epochs=2, stop_at_epoch=2), made("mmd", epochs=2, later_epochs=2)]
    text = report.render(same)
    assert text.count(": 2 epochs a task, seeds") == 1 and "prefix" not in text
    shorter = made("csd", epochs=2, later_epochs=1)
    for records in ([whole, shorter], [shorter, whole]):
        assert ": 2 epochs, then 1 or 2 a task, seeds" in report.render(records)
    first = made("initial", epochs=2)  # has no later task
    assert ": 2 epochs, then 1 a task, seeds" in report.render([first, shorter])


def test_later_tasks_that_are_as_long_as_the_first_are_named_where_the_preset_has_shorter_ones():
    config = TrainConfig(dataset="cifar100", depth=8, preset="class")
    assert config.later_epochs < config.epochs
    long = replace(config, later_epochs=config.epochs)
    assert report.changed_settings(long) == {"depth": 8, "later_epochs": config.epochs}
    assert report.changed_settings(config) == {"depth": 8}


def test_of_several_partners_none_is_taken_and_all_are_named(tmp_path):
    records = [made("lwf", kd_temperature=t) for t in (2.0, 4.0)] + [made("fine-tuning")]
    records += [made("csd", kd_temperature=t) for t in (2.0, 4.0)]
    records = on_disk(tmp_path, records)
    found, text = differences(records, method="lwf")
    same = {"CSD": "LwF", "CSD, kd_temperature=4": "LwF, kd_temperature=4"}
    assert {row: cells[0] for row, cells in found.items()} == same
    (line,) = (line for line in text.splitlines() if "several to compare with" in line)
    assert line.startswith("Fine-tuning has") and line.count("LwF") == 2
    found, text = differences(records, method="lwf", kd_temperature=2.0)
    assert {*found} == {"LwF, kd_temperature=4", *same, "Fine-tuning"}


def test_what_cannot_be_compared_is_said():
    _, alone = differences([made("csd"), made("lwf", 1)], method="csd")
    assert "no two runs of one seed that differ in this alone: method=csd" in alone
    older = [made(m, fingerprint="0" * 8) for m in ("csd", "lwf")]
    text = report.render(older, against={"method": "csd"})
    assert "Differences" not in text and "not compared: see above" in text
    for name in ("epochs", "tasks", "preset", "dataset", "seed", "device", "init_from"):
        with pytest.raises(InputError, match=f"differ in {name}"):
            report.render([made()], against={name: 1})


def test_other_images_behind_a_known_name_are_announced(digits):
    text = "digits (other images than this kit's), 2 tasks"
    assert text in report.render([made(data="0" * 64)])
    assert text not in report.render([made(data=digits.sha256())])
    assert text not in report.render([made(data="")]), "older records do not say"


def test_the_kit_knows_its_own_images():
    for name in ("digits", "fashion"):
        assert load_dataset(name).sha256().startswith(get_spec(name).data) and get_spec(name).data
    recorded = {r.data for r in read_ledger()[0] if r.config.dataset == "cifar100"}
    assert len(recorded) == 1 and recorded.pop().startswith(get_spec("cifar100").data)


def test_a_method_registered_at_run_time_has_a_row_and_removed_is_one_line(tmp_path):
    with patch.dict(METHODS, mine=Method("My method", "ce+triplet+fecd")):
        write(tmp_path, [made("mine"), made("csd")])
        records, problems = report.load_runs(tmp_path)
        assert "My method" in report.render(records) and not problems
    records, (problem,) = report.load_runs(tmp_path)
    assert [found.config.method for found in records] == ["csd"]
    assert "digits-0" in problem and "mine" in problem and "\n" not in problem


def test_a_damaged_record_is_one_line_and_every_other_one_is_shown(tmp_path):
    many = [made(name, seed, None) for name in ("csd", "lwf", "joint") for seed in range(3)]
    write(tmp_path, many)
    (tmp_path / "broken").mkdir()
    for content in ('{"config": {}}', "{", json.dumps({"config": {"method": "gone"}})):
        (tmp_path / "broken" / "results.json").write_text(content)
        records, (problem,) = report.load_runs(tmp_path)
        assert "broken" in problem and "\n" not in problem
        assert {r.key() for r in records} == {r.key() for r in many} and len(records) == 9
        assert len(json.loads(report.render_json(records))) == 9
        (group,) = report.grouped(records, "method", "seed")
        assert {r.key() for r in group.records} == {r.key() for r in many}
        assert report.render(records).count("  3  ") == 6, "n of three methods, two galleries"


def test_a_record_of_another_shape_than_its_runs_is_left_out(tmp_path):
    write(tmp_path, [made(seed=0), made(seed=1)])
    path = tmp_path / "digits-1" / "results.json"
    content = json.loads(path.read_text())
    content["matrix"] = {name: rows[:1] for name, rows in content["matrix"].items()}
    path.write_text(json.dumps(content))
    records, problems = report.load_runs(tmp_path)
    assert len(records) == len(problems) == 1 and report.render(records)


def test_odd_values_in_a_history_do_not_stop_the_report():
    epochs = ({"task": [0], "epoch": {}, "seconds": 3600.0}, 7, {"seconds": "long"})
    assert ", 1.0 hours," in report.render([made(history=epochs)])


def test_a_first_task_in_several_runs_folders_counts_once_in_the_hours(tmp_path):
    """A run's own record has no history: it lies beside it."""
    first = [{"task": 0, "epoch": 0, "seconds": 3600.0}]
    runs = [("initial", 1.0, first)]
    runs += [
        (m, 1.5, [*first, {"task": 1, "epoch": 0, "seconds": s}])
        for m, s in (("csd", 1800.0), ("lwf", 1800.5))
    ]
    write(tmp_path, [made(m, first_column=None, training_seconds=3600 * h) for m, h, _ in runs])
    for number, (_, _, history) in enumerate(runs):
        lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
        (tmp_path / f"digits-{number}" / "history.jsonl").write_text(lines)
    records, _ = report.load_runs(tmp_path)
    assert not any(r.history for r in records) and ", 2.0 hours," in report.render(records)
    # Where it is damaged, empty or was not copied, the run's own sum counts.
    path = tmp_path / "digits-2" / "history.jsonl"
    for content in ("{", "", "7\n", '{"seconds": "long"}'):
        path.write_text(content)
        assert ", 3.0 hours," in report.render(records)
    path.unlink()
    assert ", 3.0 hours," in report.render(records)


def test_a_text_of_a_stranger_cannot_steer_the_terminal():
    for text in (report.render([made(device="\x1b[2J")]), report.render_csv([made(device="\x1b")])):
        assert "\x1b" not in text


# --- for programs ------------------------------------------------------------------------------


def from_csv(text):
    def value(cell):
        try:
            return json.loads(cell)
        except ValueError:
            return {"": None, "True": True, "False": False}.get(cell, cell)

    return [{k: value(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


@pytest.mark.parametrize(
    "parsed",
    [lambda r: json.loads(report.render_json(r)), lambda r: from_csv(report.render_csv(r))],
    ids=["json", "csv"],
)
def test_programs_read_every_record_with_its_settings_and_numbers(parsed):
    data = "f" * 64
    records = [made("csd", 3, data=data), made("joint", first_column=(0.5,), data=data)]
    records += [made("lwf", fingerprint="other000", data=data, training_seconds=float("nan"))]
    objects = parsed(records)
    assert len(objects) == 3 and [o["is_current"] for o in objects] == [True, True, False]
    for found, of in zip(objects, records, strict=True):
        assert (found["fingerprint"], found["data"]) == (of.fingerprint, of.data)
        settings = json.loads(json.dumps(vars(of.config)))
        assert {name: found[name] for name in settings} == settings
        for name, values in vars(of.matrix).items():
            np.testing.assert_allclose(np.array(found[name], dtype=float), values)
            if name == "old_gallery":
                continue
            assert found[f"average_{name}"] == pytest.approx(values[-1].mean())
            assert found[f"task1_after_{name}"] == pytest.approx(values[-1, 0])
            assert found[f"last_task_{name}"] == pytest.approx(values[-1, -1])
            before = None if len(values) == 1 else pytest.approx(values[0, 0])
            assert found[f"task1_before_{name}"] == before
        in_first = of.matrix.in_first_gallery()
        assert found["in_first_gallery"] == (None if np.isnan(in_first) else in_first)
    assert objects[0]["forgetting_own"] == pytest.approx(0.1)
    assert objects[1]["forgetting_own"] is None and objects[2]["training_seconds"] is None
    assert parsed([]) == []


def test_a_table_for_programs_has_every_column_of_any_record():
    newer = made()
    older = made(matrix=replace(newer.matrix, old_gallery=None))
    objects = from_csv(report.render_csv([older, newer]))
    assert objects[0]["old_gallery"] is None and objects[1]["old_gallery"] is not None


def test_json_has_no_number_that_json_does_not_know():
    own = np.array([[0.9, np.nan], [np.inf, 0.8]])
    text = report.render_json([made(matrix=RetrievalMatrix(own, own, own))])
    json.loads(text, parse_constant=pytest.fail)


# --- one run -----------------------------------------------------------------------------------


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


def test_records_are_found_where_reproduce_puts_them_the_oldest_first(tmp_path):
    newer, older = made(seed=3, date="2026-03-03"), made(seed=4)
    (found,), _ = report.load_runs(write(tmp_path / "digits", [newer]))
    assert found.config.seed == 3 and isinstance(found, Record)
    write(tmp_path / "x", [older])
    assert [found.config.seed for found in report.load_runs(tmp_path)[0]] == [4, 3]


def test_no_results_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        report.load_runs(tmp_path)
    assert read_ledger(tmp_path) == ([], [])
