"""Paper against ours: the recorded runs of each experiment, beside the paper's numbers and claims.

Records that share all settings but the method, the seed and what the experiments vary make a group.
Each experiment that has runs in it becomes one table, with a row for every variant and, above them,
the methods that it is compared with.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from csd_lib import InputError, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.datasets import get_spec
from csd_lib.methods import METHODS, TERMS, LossSettings, get_method
from csd_lib.output import printable
from csd_lib.paper import published as paper
from csd_lib.paper import seeds
from csd_lib.paper.report import (
    Group,
    changed_settings,
    describe,
    grouped,
    headline,
    render_rows,
    shared_changes,
    titled,
    variants,
)
from csd_lib.paper.seeds import GALLERIES, mean_and_sd, paired
from csd_lib.record import Record

BASELINES = ("fine-tuning", "csd", "joint")  # stand in every table, if there are such runs
VARIED = {
    *(name for e in paper.EXPERIMENTS.values() for variant in e.variants for name in variant),
    *(field.name for field in fields(LossSettings)),
}


@dataclass(frozen=True, eq=False)
class Table:
    """One experiment's rows among the records of a group."""

    name: str  # of the experiment; empty for runs that belong to none
    title: str
    group: Group
    rows: list[list[Record]]  # of ``report.variants``
    settings: tuple[str, ...] = ()  # what the experiment varies
    missing: tuple[TrainConfig, ...] = ()  # rows without a run

    def columns(self, config: TrainConfig) -> dict[str, str]:
        """Return what stands on the left of a row."""
        method = get_method(config.method)
        if not self.name:
            shared = shared_changes(self.group.records)
            return {"method": describe(config, shared), "recipe": method.recipe}
        values = {name: str(identity.key(config).get(name, "–")) for name in self.settings}
        return {"method": method.title, "recipe": method.recipe, **values}

    def label(self, config: TrainConfig) -> str:
        """Name a row in one text."""
        title, _, *values = self.columns(config).values()
        return ", ".join([title, *map("{}={}".format, self.settings, values)])

    @property
    def published(self) -> Mapping[str, tuple[float, ...]]:
        """The paper's numbers by method; empty if it has none for this data set and split."""
        config = self.group.config
        classes = get_spec(config.dataset).classes
        if config.class_order_seed is not None or config.first_classes not in (None, classes // 2):
            return {}
        papers = {("table1", "cifar100"): paper.TABLE_1}
        papers |= {("table2", dataset): values for dataset, values in paper.TABLE_2.items()}
        return papers.get((self.name, config.dataset), {})

    @property
    def halves(self) -> tuple[str, str]:
        """Which classes are old and which are new, in a table of two tasks."""
        config = self.group.config
        classes = get_spec(config.dataset).classes
        old = config.first_classes or classes // 2
        return f"1-{old}", f"{old + 1}-{classes}"


def paper_groups(records: Sequence[Record]) -> list[Group]:
    """Group records that an experiment can compare; those that today's code made come first."""
    return grouped(records, "method", "seed", *sorted(VARIED))


def tables(group: Group) -> list[Table]:
    """Return a table for each experiment that has runs in a group, and one for all other runs."""
    checks.instance("group", group, Group, "one of paper_groups")
    shared = {
        field.name: getattr(group.config, field.name)
        for field in fields(TrainConfig)
        if field.name not in {"method", "tasks", "seed", *VARIED}
    }
    rows: dict[str, list[list[Record]]] = {}
    for row in variants(group.records):
        rows.setdefault(_recipe(row[0].config), []).append(row)
    found, shown = [], set()
    for name, experiment in paper.EXPERIMENTS.items():
        if group.config.tasks not in experiment.tasks or not experiment.fits(group.config.dataset):
            continue
        cells = experiment.configs((0,), only_tasks=group.config.tasks, **shared)
        # CSD as it is stands in several experiments, and alone makes none of them.
        own = [c for c in cells if c.method not in METHODS or _is_varied(c)]
        if experiment.fine_grained is not None:  # a table of all methods
            own = []
        if not any(_recipe(cell) in rows for cell in own or cells):
            continue
        beside = [
            TrainConfig(method=method, tasks=group.config.tasks, **shared)
            for method in (BASELINES if own else ())
        ]
        recipes = list(dict.fromkeys(map(_recipe, [*beside, *cells])))
        chosen = [row for recipe in recipes for row in rows.get(recipe, ())]
        missing = tuple(cell for cell in cells if _recipe(cell) not in rows)
        settings = tuple(experiment.variants[0])
        found.append(Table(name, experiment.title, group, chosen, settings, missing))
        shown |= {*recipes}
    others = [row for recipe in rows if recipe not in shown for row in rows[recipe]]
    return found + ([Table("", "Other runs", group, others)] if others else [])


def paper_rows(table: Table, gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Table 1 or 2: the paper's value, ours and the gap for each of its columns.

    The verdict looks at the largest of the three gaps: up to 1 point agrees, up to 3 is near.
    """
    _check_table_1(table, gallery)
    header = ["method", "recipe", "n"]
    for column in (*table.halves, "average"):
        header += [f"{column}: paper", "ours", "gap"]
    rows = []
    for row in table.rows:
        values = [seeds.last_values(record, gallery) for record in row]
        *columns, old = zip(*values, strict=True)
        name, cells, gaps = row[0].config.method, [], []
        published_row = table.published.get(name, (None,) * 3)
        for published, ours in zip(published_row, columns, strict=True):
            if published is None:
                cells += ["–", mean_and_sd(ours), "–"]
                continue
            gap = round(100 * statistics.fmean(ours) - published, 1)
            gaps.append(abs(gap))
            cells += [f"{published:.1f}", mean_and_sd(ours), f"{gap:+.1f}"]
        largest = max(gaps, default=math.nan)
        verdict = "agrees" if largest <= 1 else "near" if largest <= 3 else "differs"
        method = get_method(name)
        found = [*cells, verdict if gaps else "–", mean_and_sd(old), row[0].fingerprint or "–"]
        rows.append([method.title, method.recipe, str(len(row)), *found])
    return [*header, "verdict", "old gallery", "fingerprint"], rows


# The paper's claims on Table 1 as differences: what is better, than what, in which column.
_CLAIMS = [
    ("CSD keeps the old classes better than fine-tuning", "csd", "fine-tuning", 0),
    ("CSD is above fine-tuning on average", "csd", "fine-tuning", 2),
    ("CSD is above LwF on average", "csd", "lwf", 2),
    ("CSD is above MMD on average", "csd", "mmd", 2),
    ("Joint training stays above CSD on average", "joint", "csd", 2),
    ("Fine-tuning learns the new classes better than CSD", "fine-tuning", "csd", 1),
]
# What the paper did not measure: its column 3 is the old gallery, which is the same in both tables.
_OLD_GALLERY = [
    ("CSD finds more in the old gallery than fine-tuning", "csd", "fine-tuning", 3),
    ("CSD finds more in the old gallery than LwF", "csd", "lwf", 3),
    ("CSD finds more in the old gallery than MMD", "csd", "mmd", 3),
    ("CSD finds more in the old gallery than MMD + KD", "csd", "mmd-kd", 3),
]


def claim_rows(table: Table, gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the claims: differences in points, ours paired by seed.

    One rule for all: a claim holds, or does not, if the 95 % interval of the mean difference
    (Student's t) lies above, or below, zero. One seed has no interval and decides nothing.
    """
    _check_table_1(table, gallery)
    by_method = {row[0].config.method: row for row in table.rows}
    rows = []
    for text, better, worse, column in _CLAIMS + (_OLD_GALLERY if gallery == "own" else []):
        published = "–"
        if column < 3 and {better, worse} <= table.published.keys():
            gap = table.published[better][column] - table.published[worse][column]
            published = f"{gap:+.1f}"
        gaps = seeds.by_seed(by_method.get(better, ()), by_method.get(worse, ()), gallery)
        ours = [values[column] for values in gaps.values()]
        if ours and math.isfinite(sum(ours)):
            rows.append([text, published, str(len(ours)), *paired(ours)])
    return ["claim", "paper", "n", "ours", "95 % interval", "verdict"], rows


def difference_rows(table: Table, gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each row minus CSD with the preset's settings, paired by seed.

    Without a row of CSD there are no rows.
    """
    checks.instance("table", table, Table, "one of tables")
    plain = [r for r in table.rows if r[0].config.method == "csd" and not _is_varied(r[0].config)]
    others = [row for row in table.rows if plain and row is not plain[0]]
    pairs = [(table.columns(row[0].config), row, plain[0]) for row in others]
    return seeds.difference_rows(pairs, gallery)


def term_rows(table: Table, gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what adding a term changes, in points, recipe by recipe and in the mean.

    The mean is over all recipes that the term was added to, of the seeds that all of these have;
    in brackets stands the 95 % interval over the seeds.
    """
    rows = []
    for term, effects in term_effects(table, gallery).items():
        name = f"+ {TERMS[term].title}"
        for recipe, by_seed in effects.items():
            found = list(by_seed.values())
            rows.append([name, recipe, str(len(found)), *seeds.cells(found)])
        shared = sorted(set.intersection(*map(set, effects.values())))
        means = [np.mean([e[seed] for e in effects.values()], axis=0).tolist() for seed in shared]
        if len(effects) > 1 and means:
            rows.append([name, f"mean of {len(effects)}", str(len(means)), *seeds.cells(means)])
    return ["term added", "to", *seeds.COLUMNS], rows


def term_effects(table: Table, gallery: str) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return ``{term: {recipe it was added to: {seed: changes}}}``, as of ``seeds.by_seed``."""
    checks.one_of("gallery", gallery, GALLERIES)
    checks.instance("table", table, Table, "one of tables")
    plain = [row for row in table.rows if not _is_varied(row[0].config)]
    methods = [get_method(row[0].config.method) for row in plain]
    by_recipe = {  # joint training and the frozen network have no terms on a second task
        "+".join(name for name in TERMS if name in method.recipe.split("+")): row
        for method, row in zip(methods, plain, strict=True)
        if method.learns_later and not method.joint
    }
    effects: dict[str, dict[str, dict[int, list[float]]]] = {}
    for term, recipe in itertools.product(TERMS, sorted(by_recipe, key=len)):
        terms = recipe.split("+")
        without = "+".join(name for name in terms if name != term)
        if term in terms and without in by_recipe:
            found = seeds.by_seed(by_recipe[recipe], by_recipe[without], gallery)
            if found:
                effects.setdefault(term, {})[without] = found
    return effects


def render_paper(groups: Sequence[Group], markdown: bool = False) -> str:
    """Render the ``paper_groups``: a table for each experiment, and what was not reproduced."""
    checks.flag("markdown", markdown)
    checks.instance("groups", groups, (list, tuple), "what paper_groups returns")
    lines: list[str] = []
    note = ""
    recorded: set[str | tuple[str, str]] = set()  # experiments, and with which presets
    for group in groups:
        checks.instance("groups", group, Group, "what paper_groups returns")
        if group.note != note:
            note = group.note
            lines += [note, ""]
        lines += ["\n\n".join(headline(group)), ""]
        for table in tables(group):
            lines += render_table(table, markdown)
            if group.config.dataset in ("cifar100", *paper.TABLE_2) and group.is_current:
                recorded.add(table.name)
                if _is_whole(group.config):
                    recorded.add((table.name, group.config.preset))
    bullet = "* " if markdown else "  "
    lines += ["Not reproduced:", ""]
    for preset in ("reference", "clean"):
        if ("table1", preset) not in recorded:
            lines.append(f"{bullet}Table 1 with preset {preset}: no whole run recorded yet")
    for name, experiment in paper.EXPERIMENTS.items():
        if name != "table1" and name not in recorded:
            data = " --dataset cub200" if experiment.fine_grained else ""
            command = f"python -m csd_lib reproduce {name}{data}"
            lines.append(
                f"{bullet}{experiment.title}: no run on the paper's images recorded yet ({command})"
            )
    lines += [f"{bullet}{what}: {why}" for what, why in paper.NOT_ATTEMPTED.items()]
    return printable("\n".join(lines))


def render_table(table: Table, markdown: bool = False) -> list[str]:
    """Return the lines of one experiment: its rows in each gallery, and what they say of it."""
    checks.instance("table", table, Table, "one of tables")
    checks.flag("markdown", markdown)
    lines = [f"**{table.title}**" if markdown else table.title, ""]
    parts = []
    if table.published:
        parts.append(("Recall@1 in % after the last task, {}", paper_rows))
        methods = {row[0].config.method for row in table.rows}
        if len(methods) == len(table.rows):  # else rows of several older codes
            parts.append(("The claims as differences in points, {}", claim_rows))
    else:
        lines += render_rows(table.rows, markdown, table.columns)
        if table.name == "figure5":
            parts.append(("What a term changes, {}; in points", term_rows))
        elif table.name:
            parts.append(("Differences from CSD, {}; in points", difference_rows))
    for (about, rows_in), (gallery, title) in itertools.product(parts, GALLERIES.items()):
        lines += titled(about.format(title), rows_in(table, gallery), markdown)
    if table.missing:
        lines += [f"not run: {'; '.join(map(table.label, table.missing))}", ""]
    return lines


def _is_varied(config: TrainConfig) -> bool:
    return bool(VARIED & changed_settings(config).keys())


def _is_whole(config: TrainConfig) -> bool:
    """Say whether a run is no prefix, and each task as long as the preset has it."""
    usual = TrainConfig(dataset=config.dataset, preset=config.preset)
    return all(
        config.epochs_to_run(task) == config.schedule_length(task) == usual.schedule_length(task)
        for task in range(config.tasks)
    )


def _recipe(config: TrainConfig) -> str:
    return str(sorted(identity.key(config, "seed").items()))


def _check_table_1(table: Table, gallery: str) -> None:
    checks.one_of("gallery", gallery, GALLERIES)
    checks.instance("table", table, Table, "one of tables")
    if not table.published:
        raise InputError(f"table={table.title!r} has no numbers in the paper: give Table 1's")
