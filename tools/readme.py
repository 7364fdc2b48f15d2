"""Render the tables and figures of README.md and docs/ from the records under data/results/.

python tools/readme.py           # rewrite them
python tools/readme.py --check   # exit code 1 if a table is not that of the records
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from csd_lib.methods import get_method
from csd_lib.paper import figures
from csd_lib.paper.comparison import paper_groups, render_paper
from csd_lib.paper.ledger import load_records
from csd_lib.paper.report import (
    changed_settings,
    format_table,
    load_runs,
    mean_and_sd,
    render,
    variants,
)
from csd_lib.record import Record

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("fine-tuning", "lwf", "mmd", "csd")


def between_marks(text: str, mark: str, content: str) -> str:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    marks = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
    rendered, places = marks.subn(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)
    if places != 1:
        sys.exit(f"error: {places} places are marked {mark!r}, expected one")
    return rendered


def newest(benchmark: str, **wanted: int) -> dict:
    """Return the last measurement of a benchmark, with these values if any are given."""
    lines = (ROOT / "data" / "results" / "benchmarks" / f"{benchmark}.jsonl").read_text()
    found = [json.loads(line) for line in lines.splitlines()]
    return [f for f in found if wanted.items() <= f.items()][-1]


def speed_table() -> str:
    """Images per second as a Markdown table, and the line about recall."""
    found = newest("common_practice")
    machine = found["machine"]
    rows = [
        "| | baseline | images/s | this kit, fp32 | this kit, amp |",
        "|---|---|---:|---:|---:|",
    ]
    for title, rates in found.items():
        if isinstance(rates, dict) and "this kit, fp32" in rates:
            baseline, *ours = rates
            cells = [
                f"{rates[name]['images_per_second']} ({rates[name]['ratio']:.2f} ×)"
                for name in ours
            ]
            cells = [title, baseline, str(rates[baseline]["images_per_second"]), *cells]
            rows.append(f"| {' | '.join(cells)} |")
    versions = f"torch {machine['torch']}, Avalanche {machine['avalanche']}"
    return "\n".join(rows) + (
        f"\n\n({machine['device']}, {versions}, {machine['date']}.) {recall_line(10_000)}."
    )


def recall_line(images: int) -> str:
    """Time and memory of one search."""
    found = newest("recall", images=images)
    return (
        f"Recall@1 over {images:,} × {images:,} images: {found['seconds']:.1f} s and "
        f"{found['memory_mb_on_top']:.0f} MB ([`recall.py`](../benchmarks/recall.py))"
    )


def long_and_large() -> str:
    """Say what was measured on long and large runs, as a Markdown list."""
    soak, many, own = (newest(name) for name in ("soak", "many_runs", "own_images"))
    later = soak["memory_mb"][len(soak["memory_mb"]) // 3 :]
    lines = [
        f"{soak['runs']} runs of ten tasks, one after the other in one process for "
        f"{soak['minutes']:.0f} minutes: {min(later)} to {max(later)} MB after the first third, "
        f"{soak['mb_a_minute_in_the_last_two_thirds']:+.2f} MB a minute "
        f"([`soak.py`](../benchmarks/soak.py))",
        recall_line(100_000),
        f"`report` of {many['runs']:,} runs: {min(many['seconds'])} s, start of Python included "
        f"([`many_runs.py`](../benchmarks/many_runs.py))",
        f"{own['images']:,} images of {own['size']} × {own['size']} from a file of "
        f"{own['file_mb']:,} MB train within {own['peak_mb']:,} MB, {own['own_memory_mb']} MB of "
        f"them not pages of that file ([`own_images.py`](../benchmarks/own_images.py))",
    ]
    return "".join(f"* {line}\n" for line in lines)


def effect_table(records: list[Record]) -> str:
    """The effect in one table: own classes, and the old gallery."""
    header = ["", "recipe", "seeds", "old classes, before", "after", "new classes", "old gallery"]
    rows = []
    for row in variants([r for r in records if not changed_settings(r.config)]):
        method = get_method(row[0].config.method)
        own = np.array([record.matrix.own for record in row])
        before = mean_and_sd(own[:, 0, 0].tolist()) if own.shape[1] > 1 else "–"
        cells = [mean_and_sd(own[:, -1, column].tolist()) for column in (0, 1)]
        old = mean_and_sd([record.matrix.in_first_gallery() for record in row])
        rows.append([method.title, method.recipe, str(len(row)), before, *cells, old])
    return "\n".join(format_table(header, rows, markdown=True))


def main() -> None:
    """Rewrite or check the pages."""
    digits, _ = load_runs(ROOT / "data" / "results" / "digits")
    groups = paper_groups(load_records(ROOT / "data" / "results" / "cifar100"))
    content = {
        "README.md": {"effect": effect_table(digits)},
        "docs/results.md": {
            "digits": render(digits, markdown=True),
            "ledger": render_paper(groups, markdown=True),
        },
        "docs/speed.md": {"speed": speed_table()},
        "docs/promises.md": {"long": long_and_large()},
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
    matrices = {
        name: np.array([r.matrix.own for r in digits if r.config.method == name])
        for name in METHODS
    }
    first_task = {name: 100 * stages[:, :, 0] for name, stages in matrices.items()}
    figure = figures.method_curves(
        first_task, "Recall@1 on task 1 (%)", xlabels=("after task 1", "after task 2")
    )
    figure.savefig(ROOT / "docs" / "forgetting.png", dpi=100)
    figures.paper_figures(groups, ROOT / "docs")


if __name__ == "__main__":
    main()
