"""The tables and figures that set our records beside the paper's."""

import json
import re
from dataclasses import replace
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up import record

from csd_lib import InputError, identity
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_name
from csd_lib.methods import METHODS, Method
from csd_lib.paper import comparison, figures, report
from csd_lib.paper import published as paper

pytestmark = pytest.mark.usefixtures("one_number")


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


def test_every_experiment_is_a_set_of_different_possible_configs():
    for name in paper.EXPERIMENTS:
        for preset in ("reference", "clean", "class"):
            if preset == "class" and data_of(name) != "cifar100":
                continue  # it is a preset of CIFAR-100's
            settings = dict(dataset=data_of(name), preset=preset)
            configs = paper.get_experiment(name).configs((0, 1), **settings)
            assert len({run_name(config, "", "") for config in configs}) == len(configs) > 1, name
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


def test_each_cell_shows_paper_ours_gap_and_a_verdict():
    records = [made("csd", s, (0.651 + 0.01 * s, 0.616)) for s in (0, 1)]
    records.append(made("csd", 2, (0.641, 0.616)))
    records += [made("lwf", 0, (0.64, 0.564)), made("mmd", 0, (0.5, 0.609))]
    records += [made("fine-tuning", 0, (0.414, 0.601))]
    rows = rows_of(records)
    assert rows["Fine-tuning"]["verdict"] == "differs", "by 4 points in two cells, by 0 on average"
    csd = rows["CSD"]
    assert csd["1-50: paper"] == "65.1" and csd["n"] == "3" and csd["verdict"] == "agrees"
    assert rows["LwF"]["verdict"] == "near" and rows["MMD"]["verdict"] == "differs"
    assert rows["LwF"]["gap"] == "-1.5", "60.2 on average, where the paper has 61.7"
    text = comparison.render_paper(comparison.paper_groups(records), markdown=True)
    assert "65.1 ± 1.0" in text and "+0.0" in text
    (line,) = [line for line in text.splitlines() if "not run: " in line]
    named = line.removeprefix("not run: ").split("; ")
    assert "Joint training" in named and "MMD + KD" in named and "CSD" not in named


@pytest.mark.parametrize(
    "changes",
    [dict(preset="reference"), dict(precision="amp"), dict(epochs=10), dict(weight_decay=0.1)],
)
def test_presets_and_settings_never_share_a_table(changes):
    groups = comparison.paper_groups([made("csd"), made("lwf", **changes)])
    assert [len(group.records) for group in groups] == [1, 1]


def test_a_changed_weight_never_stands_in_the_papers_table():
    (group,) = comparison.paper_groups([made("csd"), made("csd", 1, csd_temperature=0.3)])
    table, other = comparison.tables(group)
    assert table.published and [len(row) for row in table.rows] == [1]
    assert not other.published and other.rows[0][0].config.csd_temperature == 0.3


@pytest.mark.parametrize("split", [dict(first_classes=10), dict(class_order_seed=3)])
def test_another_split_is_not_set_beside_the_papers_numbers(split):
    table = table_of([made("csd", **split), made("lwf", **split)])
    assert not table.published
    assert table_of([made("csd", first_classes=50)]).published


@pytest.mark.parametrize("machine", [dict(device="cuda:1"), dict(cuda_graph=True)])
def test_the_machine_never_splits_a_table(machine):
    config = TrainConfig(dataset="cifar100", depth=8, seed=1, **machine)
    assert [len(row) for row in table_of([made("csd"), record(config)]).rows] == [2]


def test_claims_are_compared_seed_by_seed():
    records = [made("csd", s, (0.6 + 0.1 * s, 0.6)) for s in (0, 1, 2)]
    records += [made("lwf", s, (0.58 + 0.1 * s, 0.6)) for s in (2, 0, 1)]
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


def test_a_claim_says_which_methods_it_compares_and_where():
    columns = {"old classes": 0, "new classes": 1, "on average": 2, "old gallery": 3}
    records = [made(name, last=None) for name in METHODS]
    values = {r.config.method: comparison.seeds.last_values(r, "own") for r in records}
    titles = {method.title.lower(): name for name, method in METHODS.items()}
    longest_first = "|".join(map(re.escape, sorted(titles, key=len, reverse=True)))
    _, rows = comparison.claim_rows(table_of(records), "own")
    assert len(rows) == 10
    for claim, published, _, ours, *_ in rows:
        better, worse = (titles[n] for n in re.findall(longest_first, claim.lower()))
        (column,) = (place for words, place in columns.items() if words in claim)
        gap = values[better][column] - values[worse][column]
        assert float(ours) == pytest.approx(100 * gap, abs=0.051), claim
        if published != "–":
            gap = paper.TABLE_1[better][column] - paper.TABLE_1[worse][column]
            assert float(published) == pytest.approx(gap, abs=0.051) and gap > 0, claim


def test_every_table_is_of_the_gallery_that_is_asked_for():
    """Where the numbers of the two galleries change places, so do the tables."""
    recipes = {"fine-tuning": 0.5, "lwf": 0.6, "ce": 0.45, "ce+kd": 0.52, "csd": 0.7}
    records = []
    for name, value in recipes.items():
        for seed in (0, 1):
            matrix = made(name, seed, (value + 0.01 * seed**2, value)).matrix
            records.append(made(name, seed, matrix=replace(matrix, seen=matrix.own**2)))
    turned = [
        replace(r, matrix=replace(r.matrix, own=r.matrix.seen, seen=r.matrix.own)) for r in records
    ]

    def cells(records, gallery):
        found = {t.name: t for t in comparison.tables(comparison.paper_groups(records)[0])}
        made = [comparison.paper_rows(found["table1"], gallery)]
        made += [comparison.claim_rows(found["table1"], gallery)]
        made += [comparison.difference_rows(found["table1"], gallery)]
        made += [comparison.term_rows(found["figure5"], gallery)]
        made += [report.table_rows(report.variants(records), gallery)]
        programs = report.differences(records, {"method": "lwf"})
        rows = [tuple(d.values()) for d in programs if d.pop("gallery") == gallery]
        made.append((["", *programs[0]], [(d[0], *d) for d in rows]))
        return [
            {(*row[:2], *pair) for row in rows for pair in zip(header, row, strict=True)}
            for header, rows in made
        ]

    pairs = [*zip(cells(records, "seen"), cells(turned, "own"), strict=True)]
    for (seen, own), other in zip(pairs, cells(records, "own"), strict=True):
        assert seen <= own and not seen <= other  # own classes have an old gallery, too


def test_an_interval_is_students_and_decides_in_both_directions():
    mean_and_sd, interval, verdict = comparison.paired([0.01, 0.02, 0.03])
    assert mean_and_sd == "+2.0 ± 1.0" and verdict == "undecided"
    assert interval == "-0.5 to +4.5", "t(0.975, 2 degrees of freedom) = 4.303, times 1 / sqrt(3)"
    assert comparison.paired([0.02, 0.02, 0.03])[2] == "holds"
    assert comparison.paired([-0.02, -0.02, -0.03])[2] == "does not"


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
    panels = figures.term_effects(found["figure5"], "own").axes
    task_1, average = (
        [stroke.get_offsets()[0, 0] for stroke in axis.collections[1::2]] for axis in panels[:2]
    )
    assert np.allclose(sorted(task_1), [-5, 2.5, 10.5, 12, 20])
    assert np.allclose(average, np.array(task_1) / 2), "all are alike on the other task"


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


def test_what_has_no_old_gallery_is_still_compared_in_the_other_columns():
    records = [made("csd", s) for s in (0, 1)] + [made("joint", s, (0.7, 0.7)) for s in (0, 1)]
    header, (row,) = comparison.difference_rows(table_of(records), "own")
    row = dict(zip(header, row, strict=True))
    assert row["n"] == "2" and row["average"].startswith("+") and row["old gallery"] == "–"


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


def test_a_shared_first_task_is_not_counted_twice_in_the_hours():
    shared, own = made("initial"), {"task": 1, "epoch": 0, "seconds": 5400.0}
    both = [shared, made("csd", history=(*shared.history, own))]
    assert ", 2.0 hours," in comparison.render_paper(comparison.paper_groups(both))


def test_what_was_not_reproduced_is_said():
    text = comparison.render_paper([])
    for words in ("with preset reference", "preset clean", "Figure 3", "Table 2", "CUB"):
        assert words in text
    render = lambda r: comparison.render_paper(comparison.paper_groups([r]))  # noqa: E731
    some = render(made("csd", preset="reference"))
    assert "with preset reference" not in some and "with preset clean" in some
    assert "with preset clean" in render(made("csd", fingerprint="other000"))


def test_only_a_whole_run_of_the_presets_own_length_reproduces_table_1():
    def says_it_is_missing(**changes):
        groups = comparison.paper_groups([made("csd", **changes)])
        return "Table 1 with preset clean: no whole run" in comparison.render_paper(groups)

    assert says_it_is_missing(stop_at_epoch=230) and says_it_is_missing(epochs=10)
    assert says_it_is_missing(later_epochs=8)
    assert says_it_is_missing(epochs=1600, stop_at_epoch=800), "which has other milestones"
    assert not says_it_is_missing() and not says_it_is_missing(stop_at_epoch=800)


def test_class_preset_is_never_taken_for_the_papers_protocol():
    groups = comparison.paper_groups([made("csd", preset="class")])
    assert "short schedule" in comparison.render_paper(groups)


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


def test_what_was_recorded_of_one_experiment_makes_no_table_of_another():
    for group in comparison.paper_groups(experiment_records("figure5")):
        found = {table.name: table for table in comparison.tables(group)}
        assert len(found["figure5"].rows) == 8 and not found.pop("figure5").missing
        assert found.keys() <= {"table1", "figure3"}, "which have fine-tuning, LwF and CSD too"
    assert comparison.tables(comparison.paper_groups([made("csd")])[0])[0].name == "table1"


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


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_curves_have_a_panel_for_each_gallery_and_bars_only_of_several_seeds(seeds):
    found = [made("csd", seed, tasks=3, last=None) for seed in seeds]
    growing = [replace(r.matrix, seen=r.matrix.own / 2) for r in found]
    found = [replace(r, matrix=matrix) for r, matrix in zip(found, growing, strict=True)]
    axes = figures.first_task_curves(table_of(found)).axes
    assert [axis.get_title() for axis in axes] == [*report.GALLERIES.values()]
    mean = 100 * np.mean([r.matrix.own[:, 0] for r in found], axis=0)
    gallery_of = {title: name for name, title in report.GALLERIES.items()}
    for axis, expected in zip(axes, (mean, mean / 2), strict=True):
        ((curve, *bars),) = axis.containers
        assert np.allclose(curve.get_ydata(), expected)
        assert any(bars) == (len(seeds) > 1)
        if any(bars):
            ends = np.array([*bars[1][0].get_segments()])[:, :, 1]
            runs = [getattr(r.matrix, gallery_of[axis.get_title()])[:, 0] for r in found]
            assert np.allclose(np.ptp(ends, axis=1) / 2, 100 * np.std(runs, axis=0, ddof=1))


def test_the_papers_values_stand_above_ours_of_each_gallery_with_their_spread():
    records = [made("csd", s, (0.6 + 0.1 * s, 0.5 - 0.1 * s)) for s in (0, 1)]
    records = [replace(r, matrix=replace(r.matrix, seen=r.matrix.own / 2)) for r in records]
    for axis, paper_says, ours in zip(
        figures.paper_against_ours(table_of(records)).axes, (65.1, 61.6), (65, 45), strict=True
    ):
        assert axis.collections[0].get_offsets()[0, 0] == paper_says
        for (point, _, (bar,)), value in zip(axis.containers, (ours, ours / 2), strict=True):
            assert point.get_xdata() == pytest.approx([value])
            ((start, end),) = bar.get_segments()
            sd = 10 / 2**0.5 * value / ours
            assert (end[0] - start[0]) / 2 == pytest.approx(sd)


@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_every_experiment_is_drawn_into_files_of_their_own(tmp_path, name):
    groups = comparison.paper_groups(experiment_records(name))
    paths = figures.paper_figures(groups, tmp_path)
    tables = [table for group in groups for table in comparison.tables(group)]
    assert len(paths) == len(tables)
    assert len(set(paths)) == len(paths) and {*tmp_path.iterdir()} == {*paths}
    assert all(path.stat().st_size > 10_000 for path in paths)


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


def test_a_figure_is_named_after_a_stop_only_where_it_stops_something(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "paper_against_ours", lambda _: plt.figure(figsize=(1, 1)))
    names = {}
    for stop in (None, 800, 230):
        groups = comparison.paper_groups([made("csd", stop_at_epoch=stop)])
        (names[stop],) = (path.name for path in figures.paper_figures(groups, tmp_path))
    assert names[None] == names[800] and "-800epochs-" in names[800]
    assert "-230of800epochs-" in names[230]


def test_a_figure_of_the_same_records_with_a_seed_more_takes_the_place_of_the_old(tmp_path):
    draw = lambda *r: figures.paper_figures(comparison.paper_groups(r), tmp_path)  # noqa: E731
    assert draw(made("csd")) == draw(made("csd"), made("csd", 1))
    (tmp_path / "somebody.png").write_bytes(b"")
    (path,) = draw(made("csd"))
    path.write_bytes(b"a picture of somebody")
    (other,) = draw(made("csd"))
    assert other != path and path.read_bytes() == b"a picture of somebody"
