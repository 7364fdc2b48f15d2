"""From the results of many runs to one table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csd_lib import InputError, checks, runs
from csd_lib.config import TrainConfig
from csd_lib.experiment import read_results
from csd_lib.methods import METHODS, get_method
from csd_lib.retrieval import RetrievalMatrix, average, backward_transfer, forgetting

GALLERIES = {
    "own": "gallery: the task's own classes",
    "seen": "gallery: all classes seen so far",
}


def load_results(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Read every ``results.json`` under a folder (default: ``runs/`` or ``$CSD_RUNS``).

    Raises:
        InputError: if there is none, or one is damaged.
    """
    checks.instance("folder", folder, (str, Path, type(None)), "a folder, or None")
    folder = Path(folder or runs.runs_folder())
    try:
        paths = sorted(folder.rglob("results.json"))
    except OSError as error:
        raise InputError(f"folder={checks.shown(folder)}: {error.strerror}") from error
    results = [read_results(path) for path in paths]
    if not results:
        raise InputError(
            f"no finished run under {folder}: make one with 'python -m csd_lib train', or name "
            f"another folder with --folder"
        )
    return results


def mean_and_sd(values: Sequence[float], percent: bool = True) -> str:
    """Format values as ``mean ± sample sd``; a single value has no sd, NaN becomes a dash.

    Raises:
        InputError: for no values, or what are no numbers.
    """
    checks.sequence("values", values, (int, float, type(None)), "one or more numbers")
    checks.flag("percent", percent)
    if any(value is None or not math.isfinite(value) for value in values):
        return "–"
    values = [100 * value if percent else value for value in values]
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def comparable_groups(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group results that differ in method and seed only; no table mixes others in one block.

    Raises:
        InputError: for what are no results; so do all below.
    """
    checks.records("results", results, ("code", "device"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        shared = {k: v for k, v in result["config"].items() if k not in ("method", "seed")}
        key = json.dumps([shared, result["code"], result["device"]], sort_keys=True)
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def table_rows(group: Sequence[dict[str, Any]], gallery: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one block: Recall@1 on the first task after each task, and the means.

    Args:
        group: results that differ in method and seed only.
        gallery: ``"own"`` or ``"seen"``.
    """
    checks.one_of("gallery", gallery, GALLERIES)
    checks.records("group", group, ("matrix", "average", "forgetting"), galleries=[gallery])
    if not group:
        raise InputError("group=[]: give at least one record")
    tasks = group[0]["config"]["tasks"]
    after = [f"task 1 after task {i + 1}" for i in range(tasks)]
    header = ["method", *after, "average", "forgetting"]
    rows = []
    for name in _methods_of(group):
        runs_of_method = [r for r in group if r["config"]["method"] == name]
        matrices = [r["matrix"][gallery] for r in runs_of_method]
        first_task = [mean_and_sd([m[i][0] for m in matrices]) for i in range(len(matrices[0]))]
        rows.append(
            [
                get_method(name).title,
                *["–"] * (tasks - len(first_task)),  # joint training has only a last stage
                *first_task,
                mean_and_sd([r["average"][gallery] for r in runs_of_method]),
                mean_and_sd([r["forgetting"][gallery] for r in runs_of_method]),
            ]
        )
    return header, rows


def _methods_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Methods that occur, those with a name first and in their order."""
    found = {result["config"]["method"] for result in results}
    return [*(name for name in METHODS if name in found), *sorted(found - set(METHODS))]


def render(results: Sequence[dict[str, Any]], markdown: bool = False) -> str:
    """Render results as text for a terminal, or as Markdown, one block per setting and gallery."""
    checks.records("results", results, ("date", "versions"), ("preset", "epochs"))
    checks.flag("markdown", markdown)
    lines = []
    for group in comparable_groups(results):
        config = group[0]["config"]
        seeds = sorted({result["config"]["seed"] for result in group})
        dates = sorted({result["date"] for result in group})
        lines.append(
            f"Recall@1 in %, mean ± sd over seeds {', '.join(map(str, seeds))}: "
            f"{config['dataset']}, {config['tasks']} tasks, preset {config['preset']}, "
            f"{config['epochs']} epochs a task, {group[0]['device']}, "
            f"torch {group[0]['versions']['torch']}, "
            f"{dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}"
        )
        changed = changed_settings(config)
        if changed:
            lines.append(f"changed from the preset: {changed}")
        for gallery, title in GALLERIES.items():
            header, rows = table_rows(group, gallery)
            lines += ["", title, "", *format_table(header, rows, markdown)]
        lines.append("")
    return "\n".join(lines)


def changed_settings(config: dict[str, Any]) -> str:
    """List the fields that differ from the defaults and are not in the headline already."""
    if not isinstance(config, dict) or not {"dataset", "preset"} <= config.keys():
        raise InputError(f"config={checks.shown(config)}: give the config of a record")
    default = TrainConfig(dataset=config["dataset"], preset=config["preset"])
    default = json.loads(json.dumps(asdict(default)))
    in_headline = ("method", "tasks", "epochs", "seed", "device", "cuda_graph", "preset")
    return ", ".join(
        f"{name}={value}"
        for name, value in config.items()
        if name not in in_headline and value != default.get(name)
    )


def render_matrix(matrix: RetrievalMatrix) -> str:
    """Render one run's matrices in %: a row after each task, a column for each task's images."""
    checks.instance("matrix", matrix, RetrievalMatrix, "a RetrievalMatrix")
    blocks = []
    titles = {
        **{name: f"Recall@1, {title}" for name, title in GALLERIES.items()},
        "accuracy": "Classification accuracy over all classes seen so far",
    }
    for name, title in titles.items():
        values = getattr(matrix, name)
        stages, tasks = values.shape
        header = ["", *[f"task {j + 1}" for j in range(tasks)]]
        rows = [
            [f"after task {tasks - stages + i + 1}", *[mean_and_sd([v]) for v in values[i]]]
            for i in range(stages)
        ]
        summary = (
            f"average {mean_and_sd([average(values)])}, forgetting "
            f"{mean_and_sd([forgetting(values)])}, backward transfer "
            f"{mean_and_sd([backward_transfer(values)])}"
        )
        blocks.append("\n".join([f"{title} (%)", *format_table(header, rows, False), summary]))
    return "\n\n".join(blocks)


def format_table(header: list[str], rows: list[list[str]], markdown: bool) -> list[str]:
    """Return the lines of a table, in Markdown or aligned for a terminal."""
    checks.names("header", header, 1)
    checks.instance("rows", rows, list, "a list of rows, which may be empty")
    for row in rows:
        checks.names("rows", row, len(header), more=False)
    checks.flag("markdown", markdown)
    if markdown:
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
    widths = [max(len(cells[i]) for cells in (header, *rows)) for i in range(len(header))]
    lines = []
    for cells in (header, *rows):
        first, *rest = cells
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
