"""Render the README's table and figure from the recorded runs under data/results/.

python tools/readme.py           # rewrite them
python tools/readme.py --check   # exit code 1 if the README's table is not that of the runs
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from csd_lib import plots
from csd_lib.report import load_results, render

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BETWEEN_MARKS = re.compile(r"(<!-- results -->\n).*?(\n<!-- end of results -->)", re.DOTALL)


def main() -> None:
    """Rewrite or check the README."""
    results = load_results(ROOT / "data" / "results" / "digits")
    text = README.read_text("utf-8")
    rendered = BETWEEN_MARKS.sub(
        lambda marks: f"{marks[1]}{render(results, markdown=True).strip()}{marks[2]}", text
    )
    if "--check" in sys.argv:
        sys.exit("README.md is not up to date: python tools/readme.py" if rendered != text else 0)
    README.write_text(rendered, "utf-8")

    plots.use_style()
    matrices = {
        name: np.array([r["matrix"]["own"] for r in results if r["config"]["method"] == name])
        for name in ("fine-tuning", "lwf", "csd")
    }
    first_task = {name: 100 * stages[:, :, 0] for name, stages in matrices.items()}
    figure = plots.method_curves(
        first_task, "Recall@1 on task 1 (%)", xlabels=("after task 1", "after task 2")
    )
    figure.savefig(ROOT / "docs" / "forgetting.png", dpi=100)


if __name__ == "__main__":
    main()
