"""Render the tables and figures of README.md and docs/ from the records under data/results/.

python tools/readme.py           # rewrite them
python tools/readme.py --check   # exit code 1 if a table is not that of the records
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from answers import between_marks
from matplotlib.figure import Figure

from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.identity import key
from csd_lib.methods import METHODS, get_method
from csd_lib.paper import figures, seeds
from csd_lib.paper.comparison import (
    Table,
    claim_rows,
    difference_rows,
    paper_groups,
    render_paper,
    tables,
    term_rows,
)
from csd_lib.paper.ledger import load_records
from csd_lib.paper.published import EXPERIMENTS, TABLE_1, TABLE_3
from csd_lib.paper.report import (
    GALLERIES,
    Group,
    changed_settings,
    describe,
    format_table,
    grouped,
    headline,
    mean_and_sd,
    plain_runs,
    render,
    table_rows,
    titled,
    variants,
)
from csd_lib.record import Record
from csd_lib.retrieval import average, recall_at_k, wrong_before_right

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import bench
import rates
import tuned  # so that the rule by which weights are chosen is written once

ROOT = Path(__file__).resolve().parent.parent
LOOKS = {"features": ("features", "o", "-"), "softmax": ("softmax of the head", "^", "--")}

# An experiment: its title, the factors of each method's weights, and each method's runs.
Lead = tuple[str, dict[str, tuned.Factors], dict[str, list[Record]]]

LARGE, SMALL = (f"CIFAR-100, ResNet-{depth}, 25 + 8 epochs" for depth in (32, 8))
SEARCHES = {  # where weights were chosen for each method
    LARGE: TrainConfig(dataset="cifar100", preset="class", precision="amp"),
    SMALL: TrainConfig(dataset="cifar100", preset="class", depth=8, precision="amp"),
    "digits": TrainConfig(dataset="digits"),
    "clothes": TrainConfig(dataset="fashion"),
    "stand-in for birds and dogs": TrainConfig(dataset="kinds"),
}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(format_table(header, rows, markdown=True))


@functools.cache
def runs_in(folder: str) -> list[Record]:
    """The records in a folder of data/."""
    return load_records(ROOT / "data" / folder)


@functools.cache
def groups_of(name: str) -> list[Group]:
    """The recorded runs of a data set; to tell which are today's code's takes seconds."""
    return paper_groups(runs_in(f"results/{name}"))


def tables_of(name: str, experiment: str) -> list[Table]:
    """The tables of an experiment among the runs of a data set, those of few tasks first."""
    found = [t for group in groups_of(name) for t in tables(group) if t.name == experiment]
    return sorted(found, key=lambda table: table.group.config.tasks)


lines_of = functools.partial(bench.read, folder=ROOT / "data" / "results" / "benchmarks")


def newest(benchmark: str, **wanted: int) -> dict:
    """Return the last measurement of a benchmark, with these values if any are given."""
    return [f for f in lines_of(benchmark) if wanted.items() <= f.items()][-1]


def speed_table() -> str:
    """Images per second as a Markdown table, and the line about recall."""
    found = newest("common_practice")
    machine = found["machine"]
    header, rows = ["", "baseline", "images/s", "this kit, fp32", "this kit, amp"], []
    for title, speeds in found.items():
        if isinstance(speeds, dict) and "this kit, fp32" in speeds:
            baseline, *ours = speeds
            cells = [
                f"{speeds[name]['images_per_second']} ({speeds[name]['ratio']:.2f} ×)"
                for name in ours
            ]
            rows.append([title, baseline, str(speeds[baseline]["images_per_second"]), *cells])
    versions = f"torch {machine['torch']}, Avalanche {machine['avalanche']}"
    where = f"({machine['device']}, {versions}, {machine['date']}.)"
    return f"{markdown(header, rows)}\n\n{where} {recall_line(10_000)}."


def recall_line(images: int) -> str:
    """Time and memory of one search."""
    found = newest("recall", images=images)
    return (
        f"Recall@1 over {images:,} × {images:,} images: {found['seconds']:.1f} s and "
        f"{found['memory_mb_on_top']:.0f} MB ([`recall.py`](../benchmarks/recall.py))"
    )


def long_and_large() -> str:
    """Say what was measured on long and large runs, as a Markdown list."""
    soak, own, many = newest("soak"), newest("own_images"), newest("many_runs", runs=1000)
    later = soak["memory_mb"][len(soak["memory_mb"]) // 3 :]
    lines = [
        f"{soak['runs']} runs of ten tasks, one after the other in one process for "
        f"{soak['minutes']:.0f} minutes: {min(later)} to {max(later)} MB after the first third, "
        f"{soak['mb_a_minute_in_the_last_two_thirds']:+.2f} MB a minute "
        f"([`soak.py`](../benchmarks/soak.py))",
        recall_line(100_000),
        f"`report` of {many['runs']:,} runs, their fingerprints known: {min(many['seconds'])} s, "
        f"the fastest of {len(many['seconds'])}, start of Python "
        f"included ([`many_runs.py`](../benchmarks/many_runs.py))",
        f"{own['images']:,} images of {own['size']} × {own['size']} from a file of "
        f"{own['file_mb']:,} MB train within {own['peak_mb']:,} MB, {own['own_memory_mb']} MB of "
        f"them not pages of that file ([`own_images.py`](../benchmarks/own_images.py))",
    ]
    return "".join(f"* {line}\n" for line in lines)


def many_cells() -> str:
    """Say what was measured on thousands of records, as a Markdown list."""
    lines = []
    for runs, epochs in ((10_000, 25), (500, 800)):
        found = newest("many_runs", runs=runs, epochs=epochs)
        plan, machine = found["plan"], found["machine"]
        seconds = [min(each["seconds"]) for each in (found, plan)]
        lines.append(
            f"{runs:,} records of two tasks with {epochs} epochs each: "
            f"{found['records_mb']:.0f} MB on the disk. `csd report` takes {seconds[0]:.0f} s and "
            f"{found['memory_mb']:,} MB of memory, `csd sweep … --dry-run` for as many cells "
            f"{seconds[1]:.0f} s and {plan['memory_mb']:,} MB"
        )
    lines.append(
        f"the folder of one finished run of two tasks, ResNet-32: {found['run_files']} files, "
        f"{found['run_mb']} MB"
    )
    where = (
        f"({machine['device']}, torch {machine['torch']}, {machine['date']}, beside other work: "
    )
    where += f"a load of {found['load']:.0f} on two cores.)"
    return "".join(f"* {line}\n" for line in lines) + f"\n{where}"


def terms_table(table: Table) -> list[str]:
    """An experiment in the gallery of the own classes; ``csd report`` has the other one."""
    found = table_rows(table.rows, "own", table.columns)
    if table.name == "figure5":
        title, rows = "What adding a term changes, in points", term_rows(table, "own")
    else:
        title, rows = "Differences from CSD, in points", difference_rows(table, "own")
    below = [*titled("Recall@1 in %", found, True), *titled(title, rows, True)]
    return [f"## {table.title}", "", *below]


def forgetting_figure(records: Sequence[Record]) -> Figure:
    """Recall@1 on the first task after each of two tasks."""
    shown = {
        name: 100 * np.array([r.matrix.own[:, 0] for r in records if r.config.method == name])
        for name in ("fine-tuning", "lwf", "mmd", "ce+kd", "csd")
    }
    stages = ("after task 1", "after task 2")
    return figures.method_curves(shown, "Recall@1 on task 1 (%)", xlabels=stages)


def headline_of(found: Sequence[Table]) -> list[str]:
    """Say all that one must know of the runs that these tables of a group have."""
    shown = dict.fromkeys(r for table in found for row in table.rows for r in row)
    return headline(replace(found[0].group, records=[*shown]))


def terms_page(groups: list[Group]) -> str:
    """All experiments on digits but the table of methods, which results.md has."""
    lines = []
    for group in groups:
        found = [table for table in tables(group) if table.name not in ("table1", "")]
        if found:
            lines += ["\n\n".join(headline_of(found)), ""]
        lines += [line for table in found for line in terms_table(table)]
    return "\n".join(lines)


def effect_table(records: list[Record]) -> str:
    """The effect in one table: own classes, and the old gallery."""
    shown = ("initial", "fine-tuning", "lwf", "ce+kd", "csd", "joint")
    records = [record for record in records if record.config.method in shown]
    (about, *_) = headline(paper_groups(records)[0])
    header = ["", "recipe", "seeds", "old classes, before", "after", "new classes", "old gallery"]
    rows = []
    for row in variants(records):
        method = get_method(row[0].config.method)
        own = np.array([record.matrix.own for record in row])
        before = mean_and_sd(own[:, 0, 0].tolist()) if own.shape[1] > 1 else "–"
        cells = [mean_and_sd(own[:, -1, column].tolist()) for column in (0, 1)]
        old = mean_and_sd([record.matrix.in_first_gallery() for record in row])
        rows.append([method.title, method.recipe, str(len(row)), before, *cells, old])
    return f"{markdown(header, rows)}\n\n({about}.)"


def choice_table(name: str) -> str:
    """What the settings of a data set were chosen from: old / new classes, and the old gallery."""
    records = runs_in(f"choosing/{name}")
    methods = ("initial", "fine-tuning", "lwf", "csd", "joint")
    names = ("epochs", "learning_rate", "later_learning_rate", "class_order_seed", "seed")
    rows: dict[tuple[float, ...], dict[str, str]] = {}
    for record in records:
        settings = tuple(-1 if v is None else v for v in map(vars(record.config).get, names))
        old, new = (f"{100 * value:.1f}" for value in record.matrix.own[-1])
        gallery = record.matrix.in_first_gallery()
        text = f"{old} / {new}" + ("" if np.isnan(gallery) else f" ({100 * gallery:.1f})")
        rows.setdefault(settings, {})[record.config.method] = text
    header = ["epochs", "first rate", "later rate", "class order", "seed"]
    header += [get_method(name).title for name in methods]
    lines = []
    for settings, cells in sorted(rows.items()):
        epochs, first, later, order, seed = settings
        left = [f"{epochs:g}", f"{first:g}", f"{later:g}"]
        left += ["label" if order < 0 else f"seed {order:g}", f"{seed:g}"]
        lines.append([*left, *(cells.get(name, "–") for name in methods)])
    devices = ", ".join(sorted({f"{r.device}, {r.date}" for r in records}))
    return f"{markdown(header, lines)}\n\n({devices}.)"


def both_sides(name: str, experiment: str, raw: Sequence[float] = ()) -> str:
    """Both sides of every method on a data set of two tasks; ``raw``: of raw pixels, a last row."""
    plain = plain_runs(runs_in(f"results/{name}"), name, "clean")
    (group,) = grouped([r for row in plain.values() for r in row.values()], "method", "seed")
    header = ["method", "n", *(f"{k}: {t}" for k in ("own", "all") for t in ("old", "new", "both"))]
    header.append("old gallery")
    rows = []
    for row in variants(group.records):
        ends = [[*seeds.last_values(r, "own")[:3], *seeds.last_values(r, "seen")] for r in row]
        columns = map(mean_and_sd, zip(*ends, strict=True))
        rows.append([describe(row[0].config), str(len(row)), *columns])
    if raw:
        rows.append(["Raw pixels", "–", *[f"{100 * value:.1f}" for value in raw], "–"])
    table = next(table for table in tables(group) if table.name == experiment)
    lines = [*headline(group), "", *titled("Recall@1 in % after both tasks", (header, rows), True)]
    return "\n".join(
        [*lines, "In points, own classes where nothing else is said:", "", csd_table(table)]
    )


def weights_page() -> str:
    """The paper's grid of two weights, on its birds and on the stand-in; then ours in detail."""
    table, *_ = tables_of("kinds", "table3")
    ours = {
        (row[0].config.lambda_kd, row[0].config.lambda_csd): [
            float(average(r.matrix.own)) for r in row
        ]
        for row in table.rows
        if row[0].config.method == "csd"
    }
    weights = sorted({csd for _, csd in TABLE_3})
    lines = [
        [f"{kd:g}"] + [f"{TABLE_3[kd, csd]:.2f} / {mean_and_sd(ours[kd, csd])}" for csd in weights]
        for kd in weights
    ]
    header = ["weight of KD", *(f"CSD {csd:g}: paper / ours" for csd in weights)]
    below = [*headline_of([table]), "", *terms_table(table)[2:]]
    return "\n".join([markdown(header, lines), "", *below])


def claims_table(table: Table) -> str:
    """The paper's claims in one table: what they say, and what our runs say in both galleries."""
    own, seen = (claim_rows(table, gallery)[1] for gallery in ("own", "seen"))
    both = {row[0]: row[3:] for row in seen}
    header = ["claim", "paper", "n", "ours, own classes", "all classes"]
    rows = [
        [claim, published, n, _verdict(*cells), _verdict(*both[claim]) if claim in both else "–"]
        for claim, published, n, *cells in own
        if n != "1"  # one seed decides nothing
    ]
    return markdown(header, rows)


def _verdict(difference: str, interval: str, verdict: str) -> str:
    between = "" if interval == "–" else f" [{interval}]"
    return f"{verdict}: {difference.split()[0]}{between}"


# Two rows each, whose difference docs/results.md tells.
MEANS = ", head_init=class_means"
WEIGHT_PAIRS = (
    ("MMD + KD", "CSD"),
    ("CSD, lambda_csd=10", "MMD + KD"),
    ("CSD, lambda_kd=10, lambda_csd=10", "MMD + KD"),
    ("CSD, lambda_kd=10, lambda_csd=0.1", "LwF"),
    ("CSD, lambda_kd=10, lambda_csd=10", "LwF, lambda_kd=3"),
    ("CSD, lambda_kd=10, lambda_csd=10", "LwF, lambda_kd=10"),
    ("CSD, lambda_kd=10", "CSD, lambda_kd=10, lambda_csd=0.1"),
)
HEAD_PAIRS = (
    (f"Fine-tuning{MEANS}", "Fine-tuning"),
    (f"Fine-tuning{MEANS}", "LwF"),
    (f"LwF{MEANS}", f"Fine-tuning{MEANS}"),
    (f"LwF{MEANS}", "CSD"),
    (f"CSD{MEANS}", f"LwF{MEANS}"),
    (f"MMD + KD{MEANS}", f"CSD{MEANS}"),
)
COLUMNS = ["old", "new", "average", "average, all", "old gallery"]


def ends_of(records: Sequence[Record]) -> dict[tuple[int, str, str], list[float]]:
    """What COLUMNS say of runs of two tasks, by seed, precision and data; as shares."""
    found = {}
    for r in records:
        *own, old_gallery = seeds.last_values(r, "own")
        ends = [*own, float(average(r.matrix.seen)), old_gallery]
        found[r.config.seed, r.config.precision, r.data] = ends
    return found


def differences(first: Sequence[Record], second: Sequence[Record]) -> list[list[float]]:
    """What COLUMNS say: a row of differences for each that ``ends_of`` tells apart; as shares."""
    return list(seeds.minus(ends_of(first), ends_of(second)).values())


def minus_table(
    left: list[str], pairs: Sequence[tuple[Sequence[str], Sequence[Record], Sequence[Record]]]
) -> str:
    """For each pair what stands on the left, and COLUMNS: its first runs minus its second ones.

    In points, by seed, with the interval of the mean if there are several.
    """
    rows = []
    for cells, first, second in pairs:
        found = differences(first, second)
        rows.append([*cells, str(len(found)), *without_spread(found)])
    return markdown([*left, "n", *COLUMNS], rows)


def without_spread(rows: Sequence[Sequence[float]]) -> list[str]:
    """The mean of each column, in points, and its interval if there are several rows."""
    return [re.sub(" ± [0-9.]+", "", cell) for cell in seeds.cells(rows)]


def csd_table(table: Table) -> str:
    """CSD minus each other method of a table, in points."""
    rows = {row[0].config.method: row for row in table.rows}
    csd = rows.pop("csd")
    pairs = [([describe(row[0].config)], csd, row) for row in rows.values()]
    return minus_table(["CSD minus"], pairs)


def protocol_table(table: Table) -> str:
    """Table 1 in the paper's own schedule, in the own classes, beside the paper."""
    header = ["method", "n"]
    header += [f"{c}: {who}" for c in ("old", "new", "average") for who in ("paper", "ours")]
    rows = []
    for row in table.rows:
        *ends, everything, old_gallery = np.array(list(ends_of(row).values())).T.tolist()
        published = table.published[row[0].config.method]
        pairs = zip(published, map(mean_and_sd, ends), strict=True)
        cells = [cell for paper, ours in pairs for cell in (f"{paper:.1f}", ours)]
        left = [get_method(row[0].config.method).title, str(len(row))]
        rows.append([*left, *cells, mean_and_sd(everything), mean_and_sd(old_gallery)])
    (about, *_) = headline(table.group)
    return f"{markdown([*header, 'average, all', 'old gallery'], rows)}\n\n({about}.)"


def steps_table() -> str:
    """Milliseconds of a training step on a GPU, step by step and as a CUDA graph."""
    found = newest("step_anatomy", complete=True)
    tasks = ("first task", "later task (CSD)")
    ways = ("eager", "captured")
    header = ["task", "precision", "kernels a step", *ways, "ratio"]
    rows = []
    for task in tasks:
        for precision, counted in found[task]["profile"].items():
            times = found[task]["milliseconds"]
            eager, captured = (times[f"{precision} channels_last {way}"] for way in ways)
            cells = [f"{eager:.1f} ms", f"{captured:.1f} ms", f"{eager / captured:.1f}"]
            rows.append([task, precision, str(counted["kernels"]), *cells])
    machine, many = found["machine"], found["runs side by side, ms a step of all"]
    about = f"({machine['device']}, torch {machine['torch']}, {machine['date']}.)"
    differ = max(found[task]["captured = eager"]["largest"] for task in tasks)
    count = found[tasks[0]]["captured = eager"]["steps"]
    streams = ", ".join(f"{n} in {ms:.1f} ms" for n, ms in many.items())
    return (
        f"{markdown(header, rows)}\n\n"
        f"Losses of {count} steps in fp32, eager and captured, differ by at most {differ:.1e}. "
        f"A captured step of several CSD runs side by side on "
        f"streams of one process (later task, amp), all of them: {streams}. {about}"
    )


def pairs_table(group: Group, pairs: Sequence[tuple[str, str]]) -> str:
    """Differences between two rows of a group, in points, by seed."""
    found = {describe(row[0].config, {"precision"}): row for row in variants(group.records)}
    rows = [(pair, *(found[name] for name in pair)) for pair in pairs]
    return minus_table(["row", "minus"], rows)


def learned_table(found: dict[str, Table]) -> str:
    """What learning the second task gives over the initial model, on average, in points."""
    lines = []
    for title, table in found.items():
        rows = {row[0].config.method: row for row in table.rows}
        for method in ("fine-tuning", "lwf", "mmd", "mmd-kd", "csd"):
            if method in rows:
                gaps = differences(rows[method], rows["initial"])
                shown = without_spread([averages for _, _, *averages, _ in gaps])
                lines.append([title, get_method(method).title, str(len(gaps)), *shown])
    search = SEARCHES[SMALL]
    chosen = tuned.chosen_factors(search)
    for method, row in rows_with(search, chosen).items():  # against each run's own first model
        row.sort(key=lambda r: r.config.precision == search.precision)  # each seed counts once
        ends = [r.matrix.own.mean(axis=1) for r in {r.config.seed: r for r in row}.values()]
        gained = [[end[-1] - end[0]] for end in ends]
        title = f"{get_method(method).title}, weights × {chosen[method]:g}"
        lines.append(["ResNet-8, 25 + 8", title, str(len(ends)), *without_spread(gained), "–"])
    header = ["epochs", "minus initial model", "n", "average, own classes", "average, all"]
    return markdown(header, lines)


def said(factors: tuned.Factors) -> str:
    """Name the factors of a method's weights."""
    if isinstance(factors, tuple):
        return "× {:g} (KD), × {:g} (CSD term)".format(*factors)
    return f"× {factors:g}"


def rows_with(
    config: TrainConfig,
    factors: Mapping[str, tuned.Factors],
    folder: str = "results",
    precision: bool = False,
) -> dict[str, list[Record]]:
    """The runs of each method with its weights times its factors, and else as the config.

    Seeds may differ and, unless asked for, the precision; in the folder ``orders`` the order too.
    """
    without = ["seed"] + ([] if precision else ["precision"])
    without += ["class_order_seed"] if folder == "orders" else []
    return {
        m: runs_like(tuned.times(replace(config, method=m), *np.atleast_1d(f)), folder, *without)
        for m, f in factors.items()
    }


def runs_like(asked: TrainConfig, folder: str, *without: str) -> list[Record]:
    """The runs in a folder that differ from a config at most in the settings named."""
    wanted = key(asked, *without)
    return [r for r in runs_in(f"{folder}/{asked.dataset}") if key(r.config, *without) == wanted]


def leads(protocol: Table) -> list[Lead]:
    """The main experiments of two tasks with LwF and CSD."""
    long = {row[0].config.method: row for row in protocol.rows}
    found: list[Lead] = [("CIFAR-100, ResNet-32, 230 + 230 epochs", tuned.USUAL, long)]
    for title, config in SEARCHES.items():
        for factors in tuned.all_factors(config):
            found.append((title, factors, rows_with(config, factors)))
    return found


def leads_table(found: Sequence[Lead]) -> str:
    """CSD minus LwF in each experiment, in points."""
    pairs = [
        ([title, *map(said, factors.values())], rows["csd"], rows["lwf"])
        for title, factors, rows in found
    ]
    return minus_table(["CSD minus LwF", "LwF's weights", "CSD's"], pairs)


def orders_table() -> str:
    """CSD minus fine-tuning and LwF where each seed has an order of the classes of its own."""
    pairs = []
    for title, config in SEARCHES.items():
        base = rows_with(config, {"fine-tuning": 1.0} | tuned.USUAL, "orders")
        if base["csd"]:
            pairs.append(([title, "fine-tuning", "", "× 1"], base["csd"], base["fine-tuning"]))
            for factors in tuned.all_factors(config):
                rows = rows_with(config, factors, "orders")
                weights = map(said, factors.values())
                pairs.append(([title, "LwF", *weights], rows["csd"], rows["lwf"]))
    return minus_table(["CSD in random orders", "minus", "its weights", "CSD's"], pairs)


# Where first tasks of several lengths were tried: their epochs, and those of the second task.
FIRST_LENGTHS = {"clothes": ((5, 20, 80), 5), SMALL: ((25, 100), 8)}


@functools.cache
def after_first_task_of(where: str, epochs: int) -> list[tuple[dict, dict[str, list[Record]]]]:
    """Factors and runs by method after a first task of so long: usual weights, and chosen ones."""
    (*_, longest), later_epochs = FIRST_LENGTHS[where]
    config = replace(SEARCHES[where], precision="fp32", later_epochs=later_epochs)
    found = []
    usual = {"initial": 1.0, "fine-tuning": 1.0, **tuned.USUAL}
    for factors in (usual, tuned.chosen_factors(SEARCHES[where])):
        long = rows_with(replace(config, epochs=longest), factors, precision=True)
        rows = rows_with(replace(config, epochs=epochs), factors, precision=True)
        found.append((factors, {name: of_seeds(long[name], rows[name]) for name in rows}))
    return found


def of_seeds(others: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    """Those of the records whose seeds others have, too."""
    seeds_of_others = {r.config.seed for r in others}
    return [r for r in records if r.config.seed in seeds_of_others]


def first_length_table(where: str) -> str:
    """CSD minus LwF after first tasks of several lengths, same seeds, in points."""
    pairs = []
    lengths, _ = FIRST_LENGTHS[where]
    for epochs in lengths:
        for factors, rows in after_first_task_of(where, epochs):
            lwf, csd = rows["lwf"], rows["csd"]
            weights = said(factors["lwf"]), said(factors["csd"])
            pairs.append(([str(epochs), *weights], csd, lwf))
            if len(csd) == 8 and epochs == lengths[-1] and factors["lwf"] == 1:
                few = [r for r in csd if r.config.seed < 4]  # what half would have said
                pairs.append(([f"{epochs}, seeds 0 to 3 only", *weights], few, lwf))
    return minus_table(["CSD minus LwF: first task's epochs", "LwF's weights", "CSD's"], pairs)


def second_length_table() -> str:
    """What changes with a longer second task, on CIFAR-100 with a ResNet-8; same seeds."""
    config = replace(SEARCHES[SMALL], precision="fp32")
    usual = config.later_learning_rate
    found = {}
    for epochs, rate in ((8, usual), (40, usual), (40, 6e-5)):
        longer = replace(config, later_epochs=epochs, later_learning_rate=rate)
        found[epochs, rate] = rows_with(longer, tuned.USUAL | {"initial": 1.0}, precision=True)
    pairs = []
    for other in ("lwf", "initial"):
        title = f"CSD minus {get_method(other).title}"
        for (epochs, rate), rows in found.items():
            first = of_seeds(found[40, usual]["csd"], rows["csd"])
            pairs.append(([title, str(epochs), f"{rate:g}"], first, rows[other]))
    return minus_table(["runs", "second task's epochs", "rate"], pairs)


def first_length_figure(where: str) -> Figure:
    """Old and new classes after both tasks, by how long the first was learned."""
    lengths, _ = FIRST_LENGTHS[where]
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.8))
    shown: dict[tuple[str, float], list[np.ndarray]] = {}  # [runs, columns] for each length
    for epochs in lengths:
        for factors, rows in after_first_task_of(where, epochs):
            for method, row in rows.items():
                ends = 100 * np.array(list(ends_of(row).values()))
                shown.setdefault((method, factors[method]), []).append(ends)
    styles = figures.method_styles(method for method, _ in shown)
    for (method, factor), ends in shown.items():
        style = styles[method] | ({} if factor == 1 else dict(linestyle=":", mfc="white", mew=2))
        label = get_method(method).title + ("" if factor == 1 else f", × {factor:g}")
        aside = 0.03 * (list(shown).index((method, factor)) - (len(shown) - 1) / 2)
        means, spread = np.mean(ends, axis=1), np.std(ends, axis=1, ddof=1)
        for axis, values, bars in zip(axes, means.T, spread.T, strict=False):
            at = np.arange(len(lengths)) + aside
            axis.errorbar(at, values, yerr=bars, capsize=4, label=label, **style)
    for axis, title in zip(axes, ("old classes", "new classes"), strict=True):
        axis.set(title=title, xlabel="epochs of the first task")
        axis.set_xticks(range(len(lengths)), lengths)
    axes[0].set_ylabel("Recall@1 after both tasks (%)")
    axes[-1].legend(title=figures.said_of_bars(e[0] for e in shown.values()), **figures.BESIDE)
    return figure


def tuned_table(config: TrainConfig) -> str:
    """What methods reach with weights chosen for them: on held-out images, and against CSD."""
    tries = tuned.load_tries(config)
    reached = tuned.found(tries)
    factors = sorted({factor for each in reached.values() for factor in each})
    lines = []
    for method, each in reached.items():
        shown = best_in_bold(each)
        values = [shown.get(factor, "–") for factor in factors]
        lines.append([get_method(method).title, get_method(method).recipe, *values])
    header = ["method", "recipe", *(f"× {factor:g}" for factor in factors)]
    chosen = {method: tuned.best(each) for method, each in reached.items()}
    rows = rows_with(config, chosen)
    csd = rows.pop("csd")
    names = {m: f"{get_method(m).title}, {said(factor)}" for m, factor in chosen.items()}
    pairs = [([names["csd"], names[method]], csd, row) for method, row in rows.items()]
    if tuned.pair_tries(config):
        pair = tuned.chosen_pair(config)
        title, its = f"CSD, {said(pair['csd'])}", rows_with(config, pair)["csd"]
        pairs.append(([title, names["lwf"]], its, rows["lwf"]))
        pairs.append(([title, names["csd"]], its, csd))
    differences = minus_table(["CSD's runs", "minus"], pairs)
    return f"{markdown(header, lines)}\n\n{said_of_tries(tries)}\n\n{differences}"


def tries_in(folder: Path) -> dict[str, list[Record]]:
    """The tries of later rates, by experiment."""
    found = {
        title: tuned.load_tries(config, folder)
        for title, config in SEARCHES.items()
        if (folder / config.dataset).is_dir()
    }
    return {title: tries for title, tries in found.items() if tries}


def rates_page() -> str:
    """What methods reach with a later rate chosen for them: on held-out images, and against CSD."""
    lines, pairs = [], []
    for title, tries in (searches := tries_in(rates.FOLDER)).items():
        reached = tuned.found(tries, rates.both_of)
        for method, each in reached.items():
            shown = best_in_bold(each)
            values = [shown.get((factor, 1.0), "–") for factor in rates.FACTORS]
            lines.append([title, get_method(method).title, *values])
        pairs += against_csd(title, reached, 1)
    header = ["later rate", "method", *map(said, rates.FACTORS)]
    where = said_of_tries([*itertools.chain(*searches.values())])
    differences = minus_table(["later rate", "CSD's runs", "minus"], pairs)
    return f"{markdown(header, lines)}\n\n{where}\n\n{differences}"


def both_page() -> str:
    """The same with weights chosen as well; fine-tuning has none, so its tries are those above."""
    lines, pairs = [], []
    of_rates = tries_in(rates.FOLDER)
    for title, tries in (searches := tries_in(rates.BOTH)).items():
        without_weights = [r for r in of_rates[title] if r.config.method == "fine-tuning"]
        reached = tuned.found([*tries, *without_weights], rates.both_of)
        for method, each in reached.items():
            best = tuned.best(each)
            found = [*map(said, best), f"{each[best]:.1f}", str(len(each))]
            lines.append([title, get_method(method).title, *found])
        pairs += against_csd(title, reached, 2)
    header = ["rate and weights", "method", "later rate", "weights", "average", "tried"]
    where = said_of_tries([*itertools.chain(*searches.values())])
    differences = minus_table(["rate and weights", "CSD's runs", "minus"], pairs)
    return f"{markdown(header, lines)}\n\n{where}\n\n{differences}"


def against_csd(
    title: str, reached: Mapping[str, Mapping[tuple[float, float], float]], named: int
) -> list[tuple[list[str], list[Record], list[Record]]]:
    """The runs tested with what was chosen: CSD's beside another's, named by so many factors."""
    config, rows = SEARCHES[title], {}
    for method, each in reached.items():
        best = tuned.best(each)
        asked = rates.times(replace(config, method=method), *best)
        runs = runs_like(asked, "results", "seed", "precision")
        rows[method] = ", ".join([get_method(method).title, *map(said, best[:named])]), runs
    name, csd = rows.pop("csd")
    return [([title, name, other], csd, row) for other, row in rows.values() if row]


def pair_tables() -> str:
    """What each pair of CSD's weights reaches on held-out images."""
    parts = []
    for title, config in SEARCHES.items():
        if tries := tuned.pair_tries(config):
            shown = best_in_bold(tuned.found(tries, tuned.pair_of)["csd"])
            of_kd, of_csd = (sorted(set(factors)) for factors in zip(*shown, strict=True))
            lines = [[f"KD {said(kd)}"] + [shown.get((kd, c), "–") for c in of_csd] for kd in of_kd]
            header = ["", *(f"CSD term {said(factor)}" for factor in of_csd)]
            parts.append(f"{title} {said_of_tries(tries)}:\n\n{markdown(header, lines)}")
    return "\n\n".join(parts)


def best_in_bold(reached: Mapping[Any, float]) -> dict[Any, str]:
    """What each factor, or pair of factors, reaches, as text."""
    best = tuned.best(reached)
    return {f: f"**{value:.1f}**" if f == best else f"{value:.1f}" for f, value in reached.items()}


def said_of_tries(tries: Sequence[Record]) -> str:
    """Say with which seeds, where and when."""
    tried = sorted({r.config.seed for r in tries})
    where = ", ".join(sorted({f"{r.device}, {r.date}" for r in tries}))
    return f"({'Seed' if len(tried) == 1 else 'Seeds'} {', '.join(map(str, tried))}; {where}.)"


def leads_figure(found: Sequence[Lead]) -> Figure:
    """The table of leads as a picture: old classes, average, old gallery, with 95 % intervals."""
    shown = {"old classes": "old", "old and new, average": "average", "old gallery": "old gallery"}
    names = [
        title if f == tuned.USUAL else f"LwF {said(f['lwf'])}, CSD {said(f['csd'])}"
        for title, f, _ in found
    ]
    figure, axes, places = figures.panels_of_rows(
        names, list(shown), "\npoints", figsize=(13, 0.5 * len(found) + 2.6)
    )
    labels = {True: (figures.BLUE, "usual weights"), False: (figures.ORANGE, "chosen weights")}
    for place, (_, factors, rows) in zip(places, found, strict=True):
        usual = factors == tuned.USUAL
        style = dict(marker="o" if usual else "D", ls="", color=labels[usual][0])
        gaps = differences(rows["csd"], rows["lwf"])
        for axis, column in zip(axes, shown.values(), strict=True):
            at = COLUMNS.index(column)
            values = [100 * gap[at] for gap in gaps]
            if len(values) == 2:  # an interval of two can be narrow by luck
                axis.plot(values, [place] * 2, ms=8, mfc="white", mew=2, lw=2.5, **style)
                continue
            mean, half = seeds.mean_and_half(values)
            axis.errorbar(mean, place, xerr=half, ms=8, capsize=6, lw=2.5, **style)
        axes[-1].annotate(len(gaps), (1.03, place), xycoords=("axes fraction", "data"), va="center")
    for axis in axes:
        axis.axvline(0, color="black", lw=1.5)
        axis.grid(axis="y", visible=False)
        below: dict[str, Any] = dict(
            xy=(0, 0), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
        )
        axis.annotate("LwF ahead ←", xytext=(-6, -26), ha="right", **below)
        axis.annotate("→ CSD ahead", xytext=(6, -26), ha="left", **below)
    axes[-1].annotate("seeds", (1.03, 1.03), xycoords="axes fraction")
    for (above, *_), (title, *_), place in zip(found, found[1:], places[1:], strict=False):
        if above != title:  # a line between experiments
            for axis in axes:
                axis.axhline(place + 0.5, color="gray", lw=1, zorder=0)
    for usual, (color, label) in labels.items():
        axes[1].plot([], [], "o" if usual else "D", color=color, label=label)
    axes[1].plot([], [], "o", color="black", mfc="white", mew=2, label="each of two seeds")
    under = -1.1 / figure.get_figheight()
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, under), ncols=3, frameon=False)
    return figure


def factors_figure() -> Figure:
    """What each method reaches on held-out images, by the factor of all of its weights."""
    figure, axes = plt.subplots(1, len(SEARCHES), figsize=(19, 5), layout="constrained")
    styles = figures.method_styles(tuned.RECIPES)
    for axis, (title, config) in zip(axes, SEARCHES.items(), strict=True):
        tries = tuned.load_tries(config)
        for method, reached in tuned.found(tries).items():
            label = get_method(method).title
            axis.plot([*reached], [*reached.values()], label=label, **styles[method])
        axis.set(xscale="log", xlabel="factor of the weights")
        axis.set_xticks([0.1, 1, 10, 100], ["× 0.1", "× 1", "× 10", "× 100"])
        axis.set_title(title.replace(", 25", ",\n25"))
    axes[0].set_ylabel("old and new, mean (%)")
    axes[-1].legend(**figures.BESIDE)
    return figure


def rates_figure() -> Figure:
    """What each later rate finds of old and of new classes, on held-out images."""
    shown = tries_in(rates.FOLDER)
    size = (4.2 * len(shown) + 2, 4.6)
    figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained")
    styles = figures.method_styles(rates.METHODS)
    for axis, (title, tries) in zip(axes, shown.items(), strict=True):
        for method in rates.METHODS:
            ends: dict[float, list[np.ndarray]] = {}
            for r in (r for r in tries if r.config.method == method):
                ends.setdefault(rates.both_of(r.config)[0], []).append(100 * r.matrix.own[-1])
            if not ends:
                continue
            factors = sorted(ends)
            old, new = np.transpose([np.mean(ends[factor], axis=0) for factor in factors])
            axis.plot(new, old, label=get_method(method).title, **styles[method])
            usual = factors.index(1.0)
            ring = axis.plot(new[usual], old[usual], "o", ms=17, mfc="none", mec="black", mew=2)
        ring[0].set_label("usual rate")
        axis.set_xlabel("new classes (%)")
        axis.set_title(title.replace(", 25", ",\n25"))
    axes[0].set_ylabel("old classes (%)")
    axes[-1].legend(**figures.BESIDE)
    return figure


def changes_table(group: Group) -> str:
    """What has fewer seeds than Table 1, and LwF for comparison, each minus CSD as it is."""
    rows = {describe(row[0].config, {"precision"}): row for row in variants(group.records)}
    csd = rows.pop(METHODS["csd"].title)
    lwf = METHODS["lwf"].title
    named = {name: row for name, row in rows.items() if len(row) < len(csd) or name == lwf}
    others = {r.config.seed for name, row in named.items() if name != lwf for r in row}
    named[lwf] = [r for r in rows[lwf] if r.config.seed in others]
    return minus_table(["minus CSD"], [([name], row, csd) for name, row in named.items()])


def curves_page(found: Sequence[Table]) -> str:
    """Where the curves begin and end, in both galleries, and how far each is from CSD."""
    lines = []
    for table in found:
        lines += ["\n\n".join(headline(table.group)), ""]
        ends = {"after task 1", f"after task {table.group.config.tasks}"}
        for gallery, title in GALLERIES.items():
            header, rows = table_rows(table.rows, gallery, table.columns)
            left_out = {name for name in header if name.startswith("after")} - ends
            left_out |= {"fingerprint", "AC", "AA"}
            kept = [i for i, name in enumerate(header) if name not in left_out]
            header, *rows = [[row[i] for i in kept] for row in (header, *rows)]
            lines += titled(f"Recall@1 in % on task 1, {title}", (header, rows), True)
        about = "Differences from CSD, own classes; in points"
        lines += titled(about, difference_rows(table, "own"), True)
    return "\n".join(lines)


def first_task_page(looks: Sequence[dict]) -> str:
    """What features and the head's softmax find while the protocol's first task is learned."""
    header = ["epoch", "learning rate", "features: old", "new", "softmax: old", "new"]
    header += ["effective rank: old", "new", "dead dimensions"]
    shown = [look for look in looks if look["epoch"] % 50 == 0]
    rows = [
        [
            str(look["epoch"]),
            f"{look['learning_rate']:g}",
            *(f"{100 * look[f'{what}_{part}']:.1f}" for what in LOOKS for part in ("old", "new")),
            *(f"{look[f'effective_rank_{part}']:.1f}" for part in ("old", "new")),
            str(look["dead_dimensions_old"]),
        ]
        for look in shown
    ]
    last, machine = looks[-1], looks[-1]["machine"]
    where = f"(seed {last['seed']}, {last['precision']}, {machine['device'].split(',')[0]}, torch "
    where += f"{machine['torch']}, {machine['date']}.)"
    return f"{markdown(header, rows)}\n\n{where}"


def first_task_figure(looks: Sequence[dict]) -> Figure:
    """Recall@1 of features and softmaxes, on old and new classes, by epoch."""
    figure, axis = plt.subplots(figsize=(8, 4.6))
    epochs = [look["epoch"] for look in looks]
    for what, (title, marker, style) in LOOKS.items():
        for part, color in (("old", figures.BLUE), ("new", figures.ORANGE)):
            values = [100 * look[f"{what}_{part}"] for look in looks]
            label = f"{title}, {'learned' if part == 'old' else 'new'} classes"
            axis.plot(epochs, values, marker=marker, linestyle=style, color=color, label=label)
    for value, color in zip(TABLE_1["initial"], (figures.BLUE, figures.ORANGE), strict=False):
        axis.axhline(value, color=color, linestyle=":", linewidth=2)
        axis.annotate(f"paper: {value}", (2, value + 0.8), color=color, fontsize=13)
    for before, look in itertools.pairwise(looks):
        if (rate := look["learning_rate"]) < before["learning_rate"]:  # it fell between two looks
            axis.axvline(before["epoch"], color="gray", lw=1.5)
            text = f"learning rate falls to {rate:g}"
            axis.annotate(text, (before["epoch"] - 3, 47), ha="right", fontsize=13)
    axis.set(xlabel="epoch of the first task", ylabel="Recall@1 (%)", xlim=(0, None))
    axis.legend(**figures.BESIDE)
    return figure


def second_task_table(lines: Sequence[dict]) -> str:
    """What a second task does to the first model of a long run: a row for each model and recipe."""
    header = ["first model", "method", "new head rows", *COLUMNS]
    rows: list[list[str]] = []
    order = [(start, name) for start in ("random", "class_means") for name in METHODS]
    for run in dict.fromkeys(line["first_run"] for line in lines):
        own_lines = [line for line in lines if line["first_run"] == run]
        first, about = own_lines[0]["own"][0], own_lines[0]
        model = f"{about['first_epochs']} epochs, seed {about['seed']}"
        before = [f"{100 * value:.1f}" for value in (*first, np.mean(first), first[0])]
        # Of all classes "seen" knows nothing: its first row has a gallery of the old ones alone.
        rows.append([model, get_method("initial").title, "–", *before[:3], "–", before[3]])
        for line in sorted(own_lines, key=lambda x: order.index((x["head_init"], x["method"]))):
            method, own, seen = get_method(line["method"]), line["own"][-1], line["seen"][-1]
            values = (*own, np.mean(own), np.mean(seen), line["old_gallery"])
            cells = (f"{100 * value:.1f}" for value in values)
            rows.append([model, method.title, line["head_init"], *cells])
    return markdown(header, rows)


def raw_pixels() -> list[float]:
    """Recall@1 without any network: old, new and both, among own classes, then among all."""
    tasks = class_incremental_split(load_dataset("fashion"), 2)
    pixels = [task.test_images.flatten(1).float() for task in tasks]
    own = [recall_at_k(p, t.test_labels)[1] for p, t in zip(pixels, tasks, strict=True)]
    hits = wrong_before_right(torch.cat(pixels), torch.cat([t.test_labels for t in tasks])) == 0
    seen = [part.double().mean().item() for part in hits.split([len(p) for p in pixels])]
    return [value for pair in (own, seen) for value in (*pair, np.mean(pair))]


def halves_table(found: Sequence[Table]) -> str:
    """The average at the end if all later tasks together count as much as the first, in points."""
    lines = []
    for table in found:
        rows = {row[0].config.method: row for row in table.rows}
        ends = {
            method: {
                r.config.seed: [
                    (m[-1, 0] + m[-1, 1:].mean()) / 2 for m in (r.matrix.own, r.matrix.seen)
                ]
                for r in row
            }
            for method, row in rows.items()
        }
        for one, other in [("csd", "lwf"), *((m, "initial") for m in rows if m != "initial")]:
            gaps = list(seeds.minus(ends[one], ends[other]).values())
            titles = [get_method(method).title for method in (one, other)]
            later = str(table.group.config.tasks - 1)
            lines.append([later, *titles, str(len(gaps)), *without_spread(gaps)])
    header = ["later tasks", "row", "minus", "n", "average of halves, own classes", "all"]
    return markdown(header, lines)


def main() -> None:
    """Rewrite or check the pages."""
    plain = [  # the rows of Table 1 with the preset's settings
        r
        for r in runs_in("results/digits")
        if r.config.method in EXPERIMENTS["table1"].methods and not changed_settings(r.config)
    ]
    beside_paper = [t for t in tables_of("cifar100", "table1") if t.published]
    papers = beside_paper[0]
    protocol = max(beside_paper, key=lambda t: (t.group.stop is not None, len(t.rows)))
    small = max((t for t in beside_paper if t.group.config.depth == 8), key=lambda t: len(t.rows))
    five, *_ = tables_of("cifar100", "figure3")
    kinds = tables_of("kinds", "figure4")
    leading = leads(protocol)
    content = {
        "README.md": {"effect": effect_table(plain)},
        "docs/results.md": {
            "leads": leads_table(leading),
            "orders": orders_table(),
            "protocol": protocol_table(protocol),
            "protocol claims": claims_table(protocol),
            "claims": claims_table(papers),
            "small": csd_table(small),
            "learned": learned_table(
                {
                    "ResNet-32, 230 + 230": protocol,
                    "ResNet-32, 25 + 8": papers,
                    "ResNet-8, 25 + 8": small,
                }
            ),
            "pairs": pairs_table(papers.group, WEIGHT_PAIRS),
            "head pairs": pairs_table(papers.group, HEAD_PAIRS),
            "tuned": tuned_table(SEARCHES["digits"]),
            "tuned large": tuned_table(SEARCHES[LARGE]),
            "tuned small": tuned_table(SEARCHES[SMALL]),
            "rates": rates_page(),
            "both": both_page(),
            "first length": first_length_table(SMALL),
            "second length": second_length_table(),
            "first task": first_task_page(lines_of("first_task")),
            "second task": second_task_table(lines_of("second_task")),
        },
        "docs/tables.md": {
            "ledger": render_paper(groups_of("cifar100"), markdown=True),
            "changes": changes_table(papers.group),
            "weights tried": pair_tables(),
        },
        "docs/fashion.md": {
            "fashion": both_sides("fashion", "table1", raw_pixels()),
            "choice": choice_table("fashion"),
            "tuned": tuned_table(SEARCHES["clothes"]),
            "first length": first_length_table("clothes"),
        },
        "docs/fine-grained.md": {
            "kinds": both_sides("kinds", "table2"),
            "kinds choice": choice_table("kinds"),
            "weights": weights_page(),
            "tuned": tuned_table(SEARCHES["stand-in for birds and dogs"]),
            "halves": halves_table(kinds),
            "figure4": curves_page(kinds),
        },
        "docs/terms.md": {
            "digits": render(plain, markdown=True),
            "terms": terms_page(groups_of("digits")),
        },
        "docs/speed.md": {"speed": speed_table()},
        "docs/gpu.md": {"steps": steps_table()},
        "docs/promises.md": {"long": long_and_large()},
        "docs/sweeps.md": {"many": many_cells()},
    }
    stale = []
    for name, marks in content.items():
        text = rendered = (ROOT / name).read_text("utf-8")
        for mark, table in marks.items():
            rendered = between_marks(rendered, mark, table)
        if rendered != text:
            stale.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(rendered, "utf-8")
    if "--check" in sys.argv:
        sys.exit(f"not up to date: {', '.join(stale)}: python tools/readme.py" if stale else 0)

    figures.use_style()
    (terms,) = (t for t in tables_of("digits", "figure5") if t.group.config.tasks == 2)
    drawn = {
        "forgetting": forgetting_figure(plain),
        "terms": figures.term_effects(terms, "own"),
        "first-task": first_task_figure(lines_of("first_task")),
        "leads": leads_figure(leading),
        "first-length": first_length_figure("clothes"),
        "factors": factors_figure(),
        "rates": rates_figure(),
    }
    for table in (five, *kinds):
        name = f"{table.name}-{table.group.config.tasks}-tasks"
        drawn[name] = figures.first_task_curves(table)
    for name, figure in drawn.items():
        figure.savefig(ROOT / "docs" / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
