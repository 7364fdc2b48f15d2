"""The notebook gate: nbval sees what other runners miss, such as errors inside widgets."""

import os
import re
from pathlib import Path

import nbformat
from warm import run_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
CHECKS = ROOT / "tests" / "notebook_checks"  # what each chapter says, as code for its own kernel


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def every_cell_passes(notebook, path, mode, runs_folder):
    nbformat.write(notebook, path)
    environment = {**os.environ, "CSD_MODE": mode, "CSD_RUNS": str(runs_folder)}
    done = run_notebook(path.name, cwd=path.parent, env=environment)
    assert done.returncode == 0, done.stdout[-6000:]
    summary = done.stdout.strip().splitlines()[-1]
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    assert f"{cells} passed" in summary, summary
    assert not re.search("skipped|xfailed|xpassed|failed", summary), summary
