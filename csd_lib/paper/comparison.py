"""Paper against ours: the recorded runs beside the paper's numbers and claims."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from csd_lib import InputError, checks
from csd_lib.methods import get_method
from csd_lib.paper import published as paper
from csd_lib.paper.report import GALLERIES, changed_settings, format_table, mean_and_sd


def paper_groups(records: Sequence[dict[str, Any]], tasks: int = 2) -> list[list[dict[str, Any]]]:
    """Group the records of Table 1's setting: one group per preset and other settings.

    Within a group only method and seed differ, and where a run was made (device, version of the
    code), which the headline says. Of several records of one thing the newest counts.

    Raises:
        InputError: for what are no records; so do all below.
    """
    checks.records("records", records)
    checks.whole("tasks", tasks, 1)
    groups: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for record in records:
        config = record["config"]
        if config["dataset"] == "cifar100" and config["tasks"] == tasks and "preset" in config:
            different = ("method", "seed", "device", "cuda_graph")
            shared = {k: v for k, v in config.items() if k not in different}
            group = groups.setdefault(json.dumps(shared, sort_keys=True), {})
            group[config["method"], config["seed"]] = record
    return [list(group.values()) for group in groups.values()]


def paper_rows(group: Sequence[dict[str, Any]], gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Table 1: the paper's value, ours and the gap for each of its columns.

    The verdict looks at the largest of the three gaps: up to 1 point agrees, up to 3 is near.
    """
    _check_table_1(group, gallery)
    header = ["method", "n"]
    for column in ("1-50", "51-100", "average"):
        header += [f"{column}: paper", "ours", "gap"]
    header.append("verdict")
    rows = []
    for name, values in paper.TABLE_1.items():
        last_rows = [r["matrix"][gallery][-1] for r in group if r["config"]["method"] == name]
        cells, gaps = [], []
        columns = [*zip(*last_rows, strict=True), [statistics.fmean(row) for row in last_rows]]
        for published, ours in zip(values, columns if last_rows else [(), (), ()], strict=True):
            gap = round(100 * statistics.fmean(ours) - published, 1) if ours else None
            gaps.append(abs(gap) if ours else 0.0)
            cells += [f"{published:.1f}", mean_and_sd(ours) if ours else "–"]
            cells.append(f"{gap:+.1f}" if ours else "–")
        verdict = "agrees" if max(gaps) <= 1 else "near" if max(gaps) <= 3 else "differs"
        title = get_method(name).title
        rows.append([title, str(len(last_rows)), *cells, verdict if last_rows else "not run"])
    return header, rows


# The paper's claims on Table 1 as differences: what is better, than what, in which column.
_CLAIMS = [
    ("CSD keeps the old classes better than fine-tuning", "csd", "fine-tuning", 0),
    ("CSD is above fine-tuning on average", "csd", "fine-tuning", 2),
    ("CSD is above LwF on average", "csd", "lwf", 2),
    ("CSD is above MMD on average", "csd", "mmd", 2),
    ("Joint training stays above CSD on average", "joint", "csd", 2),
    ("Fine-tuning learns the new classes better than CSD", "fine-tuning", "csd", 1),
]


def claim_rows(group: Sequence[dict[str, Any]], gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paper's claims: differences in points, ours paired by seed."""
    _check_table_1(group, gallery)
    by_method: dict[str, dict[int, list[float]]] = {}
    for record in group:
        row = record["matrix"][gallery][-1]
        by_seed = by_method.setdefault(record["config"]["method"], {})
        by_seed[record["config"]["seed"]] = [*row, statistics.fmean(row)]
    rows = []
    for text, better, worse, column in _CLAIMS:
        published = paper.TABLE_1[better][column] - paper.TABLE_1[worse][column]
        first, second = by_method.get(better, {}), by_method.get(worse, {})
        ours = [first[seed][column] - second[seed][column] for seed in sorted({*first} & {*second})]
        if not ours:
            holds = "not run"
        elif len(ours) == 1:
            holds = "yes, one seed" if ours[0] > 0 else "no, one seed"
        else:  # two standard errors, the usual yardstick
            error = 2 * statistics.stdev(ours) / len(ours) ** 0.5
            mean = statistics.fmean(ours)
            holds = "yes" if mean > error else "no" if mean < -error else "not decided"
        sign = "+" if ours and statistics.fmean(ours) > 0 else ""
        rows.append([text, f"{published:+.1f}", sign + mean_and_sd(ours) if ours else "–", holds])
    return ["claim", "paper", "ours", "holds"], rows


def render_paper(records: Sequence[dict[str, Any]], markdown: bool = False) -> str:
    """Render the ledger: paper, ours, gap and verdict per cell, and what was not reproduced."""
    checks.flag("markdown", markdown)
    lines = []
    groups = paper_groups(records)
    for group in groups:
        lines += [line for text in _headline(group) for line in (text, "")]
        for gallery, title in GALLERIES.items():
            lines += [f"Recall@1 in % after the last task, {title}", ""]
            lines += [*format_table(*paper_rows(group, gallery), markdown), ""]
        lines += ["The paper's claims, in points (gallery: all classes)", ""]
        lines += [*format_table(*claim_rows(group, "seen"), markdown), ""]
    bullet = "* " if markdown else "  "
    lines += ["Not reproduced:", ""]
    recorded = {group[0]["config"]["preset"] for group in groups}
    for preset in ("reference", "clean"):
        if preset not in recorded:
            lines.append(f"{bullet}Table 1 with preset {preset}: no run recorded yet")
    if not any(paper_groups(records, tasks) for tasks in (5, 10)):
        lines.append(f"{bullet}Figure 3 (5 and 10 tasks): no run recorded yet")
    lines += [f"{bullet}{what}: {why}" for what, why in paper.NOT_ATTEMPTED.items()]
    return "\n".join(lines)


def _check_table_1(group: Sequence[dict[str, Any]], gallery: str) -> None:
    checks.one_of("gallery", gallery, GALLERIES)
    checks.records("group", group, ["matrix"], galleries=[gallery])
    for record in group:
        if len(record["matrix"][gallery][-1]) != 2:
            raise InputError(
                f"group has a run with tasks={record['config']['tasks']}: Table 1 has 2 tasks"
            )


def _headline(group: Sequence[dict[str, Any]]) -> list[str]:
    """Say all that one must know to believe a group of records."""
    needed = ("history", "device", "versions", "code", "date", "peak_memory_mb")
    checks.records("records", group, needed, ("preset", "epochs", "precision"))
    config = group[0]["config"]

    def all_of(values: Iterable[Any]) -> str:
        return ", ".join(map(str, sorted(set(values))))

    # A first task that several methods share is in each one's history, and counts once.
    epochs = {
        (record["config"]["seed"], epoch["task"], epoch["epoch"], epoch["seconds"])
        for record in group
        for epoch in record["history"]
    }
    hours = sum(seconds for *_, seconds in epochs) / 3600
    lines = [
        f"CIFAR-100, {config['tasks']} tasks, preset {config['preset']}: {config['epochs']} epochs "
        f"a task, seeds {all_of(r['config']['seed'] for r in group)}, "
        f"{all_of(r['device'] for r in group)}, {config['precision']}, "
        f"torch {all_of(r['versions']['torch'] for r in group)}, "
        f"code {all_of(r['code'] for r in group)}, {all_of(r['date'] for r in group)}, "
        f"{hours:.1f} hours, at most {max(r['peak_memory_mb'] for r in group)} MB"
    ]
    changed = changed_settings(config)
    if changed:
        lines.append(f"changed from the preset: {changed}")
    if config["preset"] == "class":
        lines.append(
            "This is a short schedule, and new head rows start from class means, not at random as "
            "in the paper: the gaps show how far it stays behind the full protocol."
        )
    return lines
