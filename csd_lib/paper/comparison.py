"""Paper against ours: the recorded runs of each experiment, beside the paper's numbers and claims.

Records that share all settings but the method, the seed and what the experiments vary make a group.
Each experiment that has runs in it becomes one table, with a row for every variant and, above them,
the methods that it is compared with.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.methods import METHODS, LossSettings, get_method
from csd_lib.output import printable
from csd_lib.paper import published as paper
from csd_lib.paper.report import (
    GALLERIES,
    OLDER,
    Group,
    changed_settings,
    describe,
    format_table,
    grouped,
    headline,
    mean_and_sd,
    render_rows,
    shared_changes,
    variants,
)
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
        if not self.name:
            return {"method": describe(config, shared_changes(self.group.records))}
        values, title = config.key(), get_method(config.method).title
        return {"method": title, **{name: str(values.get(name, "–")) for name in self.settings}}

    def label(self, config: TrainConfig) -> str:
        """Name a row in one text."""
        title, *values = self.columns(config).values()
        return ", ".join([title, *map("{}={}".format, self.settings, values)])

    @property
    def is_papers(self) -> bool:
        """Whether the paper has numbers for it."""
        return self.name == "table1" and self.group.config.dataset == "cifar100"


def paper_groups(records: Sequence[Record]) -> list[Group]:
    """Group records that an experiment can compare; those that today's code made come first.

    Raises:
        InputError: for what are no records.
    """
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
        if group.config.tasks not in experiment.tasks:
            continue
        cells = experiment.configs((0,), only_tasks=group.config.tasks, **shared)
        # CSD as it is stands in several experiments, and alone makes none of them.
        own = [c for c in cells if c.method not in METHODS or VARIED & changed_settings(c).keys()]
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
    """Header and rows of Table 1: the paper's value, ours and the gap for each of its columns.

    The verdict looks at the largest of the three gaps: up to 1 point agrees, up to 3 is near.
    """
    _check_table_1(table, gallery)
    header = ["method", "n"]
    for column in ("1-50", "51-100", "average"):
        header += [f"{column}: paper", "ours", "gap"]
    rows = []
    for row in table.rows:
        last_rows = [_last_row(record, gallery) for record in row]
        cells, gaps = [], []
        name = row[0].config.method
        for published, ours in zip(paper.TABLE_1[name], zip(*last_rows, strict=True), strict=True):
            gap = round(100 * statistics.fmean(ours) - published, 1)
            gaps.append(abs(gap))
            cells += [f"{published:.1f}", mean_and_sd(ours), f"{gap:+.1f}"]
        verdict = "agrees" if max(gaps) <= 1 else "near" if max(gaps) <= 3 else "differs"
        title = get_method(name).title
        rows.append([title, str(len(row)), *cells, verdict, row[0].fingerprint or "–"])
    return [*header, "verdict", "fingerprint"], rows


# The paper's claims on Table 1 as differences: what is better, than what, in which column.
_CLAIMS = [
    ("CSD keeps the old classes better than fine-tuning", "csd", "fine-tuning", 0),
    ("CSD is above fine-tuning on average", "csd", "fine-tuning", 2),
    ("CSD is above LwF on average", "csd", "lwf", 2),
    ("CSD is above MMD on average", "csd", "mmd", 2),
    ("Joint training stays above CSD on average", "joint", "csd", 2),
    ("Fine-tuning learns the new classes better than CSD", "fine-tuning", "csd", 1),
]


def claim_rows(table: Table, gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paper's claims: differences in points, ours paired by seed."""
    _check_table_1(table, gallery)
    by_method: dict[str, dict[int, list[float]]] = {}
    for record in (record for row in table.rows for record in row):
        by_seed = by_method.setdefault(record.config.method, {})
        by_seed[record.config.seed] = _last_row(record, gallery)
    rows = []
    for text, better, worse, column in _CLAIMS:
        published = paper.TABLE_1[better][column] - paper.TABLE_1[worse][column]
        first, second = by_method.get(better, {}), by_method.get(worse, {})
        ours = [first[seed][column] - second[seed][column] for seed in sorted({*first} & {*second})]
        if not ours:
            continue
        if len(ours) == 1:
            holds = "yes, one seed" if ours[0] > 0 else "no, one seed"
        else:  # two standard errors, the usual yardstick
            error = 2 * statistics.stdev(ours) / len(ours) ** 0.5
            mean = statistics.fmean(ours)
            holds = "yes" if mean > error else "no" if mean < -error else "not decided"
        sign = "+" if statistics.fmean(ours) > 0 else ""
        rows.append([text, f"{published:+.1f}", sign + mean_and_sd(ours), holds])
    return ["claim", "paper", "ours", "holds"], rows


def render_paper(groups: Sequence[Group], markdown: bool = False) -> str:
    """Render the ledger: a table for each experiment, and what was not reproduced.

    Args:
        groups: of ``paper_groups``.
        markdown: write Markdown.
    """
    checks.flag("markdown", markdown)
    checks.instance("groups", groups, (list, tuple), "what paper_groups returns")
    lines: list[str] = []
    older, recorded = False, set()
    for group in groups:
        checks.instance("groups", group, Group, "what paper_groups returns")
        if not group.is_current and not older:
            lines, older = [*lines, OLDER, ""], True
        lines += [line for text in headline(group) for line in (text, "")]
        for table in tables(group):
            lines += _render_table(table, markdown)
            if group.config.dataset == "cifar100" and group.is_current:
                recorded |= {table.name, (table.name, group.config.preset)}
    bullet = "* " if markdown else "  "
    lines += ["Not reproduced:", ""]
    for preset in ("reference", "clean"):
        if ("table1", preset) not in recorded:
            lines.append(f"{bullet}Table 1 with preset {preset}: no run recorded yet")
    for name, experiment in paper.EXPERIMENTS.items():
        if name != "table1" and name not in recorded:
            command = f"python -m csd_lib reproduce {name}"
            lines.append(f"{bullet}{experiment.title}: no run recorded yet ({command})")
    lines += [f"{bullet}{what}: {why}" for what, why in paper.NOT_ATTEMPTED.items()]
    return printable("\n".join(lines))


def _render_table(table: Table, markdown: bool) -> list[str]:
    lines = [f"**{table.title}**" if markdown else table.title, ""]
    if table.is_papers:
        for gallery, title in GALLERIES.items():
            lines += [f"Recall@1 in % after the last task, {title}", ""]
            lines += [*format_table(*paper_rows(table, gallery), markdown), ""]
        claims = claim_rows(table, "seen")
        methods = {row[0].config.method for row in table.rows}
        if claims[1] and len(methods) == len(table.rows):  # else rows of several older codes
            lines += ["The paper's claims, in points (gallery: all classes)", ""]
            lines += [*format_table(*claims, markdown), ""]
    else:
        lines += render_rows(table.rows, markdown, table.columns)
    if table.missing:
        lines += [f"not run: {'; '.join(map(table.label, table.missing))}", ""]
    return lines


def _recipe(config: TrainConfig) -> str:
    return str(sorted(config.key("seed").items()))


def _last_row(record: Record, gallery: str) -> list[float]:
    row = getattr(record.matrix, gallery)[-1].tolist()
    return [*row, statistics.fmean(row)]


def _check_table_1(table: Table, gallery: str) -> None:
    checks.one_of("gallery", gallery, GALLERIES)
    checks.instance("table", table, Table, "one of tables")
    if not table.is_papers:
        raise InputError(f"table={table.title!r} has no numbers in the paper: give Table 1's")
