"""Several seeds of a run: their mean, and differences from another run, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from csd_lib import checks
from csd_lib.record import Record

GALLERIES = {
    "own": "gallery: the task's own classes",
    "seen": "gallery: all classes seen so far",
}
COLUMNS = ["n", "task 1 at the end", "last task", "average", "old gallery"]


def mean_and_sd(values: Sequence[float], percent: bool = True) -> str:
    """Format values as ``mean ± sample sd``; a single value has no sd, NaN becomes a dash."""
    checks.sequence("values", values, (int, float, type(None)), "one or more numbers")
    checks.flag("percent", percent)
    if any(value is None or not math.isfinite(value) for value in values):
        return "–"
    values = [100 * value if percent else value for value in values]
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def mean_and_half(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of differences, one for each seed, and half its 95 % interval (one: NaN)."""
    checks.sequence("differences", differences, (int, float), "one or more numbers")
    for difference in differences:
        checks.number("differences", difference)
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return mean, math.nan
    return mean, float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / n**0.5


def paired(differences: Sequence[float]) -> tuple[str, str, str]:
    """Describe differences between two methods, one for each seed, in points.

    Returns mean ± sample sd, the 95 % interval of the mean, and whether it is above zero.
    """
    mean, half = mean_and_half(differences)
    shown = ("+" if mean > 0 else "") + mean_and_sd(differences)
    if len(differences) == 1:
        return shown, "–", "undecided (one seed)"
    verdict = "holds" if mean > half else "does not" if mean < -half else "undecided"
    return shown, f"{100 * (mean - half):+.1f} to {100 * (mean + half):+.1f}", verdict


def last_values(record: Record, gallery: str) -> list[float]:
    """Return the last row of a matrix, its mean, and Recall@1 in the first model's gallery."""
    row = getattr(record.matrix, gallery)[-1].tolist()
    return [*row, statistics.fmean(row), record.matrix.in_first_gallery()]


def minus(
    first: Mapping[Any, Sequence[float]], second: Mapping[Any, Sequence[float]]
) -> dict[Any, list[float]]:
    """Return numbers of one kind of runs minus those of another, for each key that both have."""
    shared = sorted(first.keys() & second.keys())
    return {k: [a - b for a, b in zip(first[k], second[k], strict=True)] for k in shared}


def by_seed(
    first: Sequence[Record], second: Sequence[Record], gallery: str
) -> dict[int, list[float]]:
    """By seed, at the end: task 1, the last task, average, first model's gallery; in shares."""
    one, other = (
        {r.config.seed: last_values(r, gallery) for r in records} for records in (first, second)
    )
    found = minus(one, other)
    return {seed: [gaps[c] for c in (0, -3, -2, -1)] for seed, gaps in found.items()}


def cells(differences: Sequence[Sequence[float]]) -> list[str]:
    """Describe lists of differences, one for each seed, in a cell for each column."""
    described = []
    for column in zip(*differences, strict=True):
        if not math.isfinite(sum(column)):  # joint training has no older gallery
            described.append("–")
            continue
        shown, interval, _ = paired(column)
        described.append(shown if interval == "–" else f"{shown} [{interval}]")
    return described


def difference_rows(
    pairs: Sequence[tuple[dict[str, str], Sequence[Record], Sequence[Record]]], gallery: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row of ``report.variants`` minus another, in points, paired by seed.

    In brackets stands the 95 % interval of the mean. Two without a common seed have no row. Before
    the two of a pair comes what stands on the left, by column.
    """
    checks.one_of("gallery", gallery, GALLERIES)
    rows, names = [], []
    for left, row, other in pairs:
        if found := list(by_seed(row, other, gallery).values()):
            names = list(left)
            rows.append([*left.values(), str(len(found)), *cells(found)])
    return [*names, *COLUMNS], rows
