"""Every chapter and solution runs alone, and chapters say what their own outputs show.

    make chapters

Not part of the ordinary tests, because they take minutes, and CI runs each notebook in make colab,
too: pytest collects this file only by name.
"""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from gate import CHECKS, NOTEBOOKS, SOLUTIONS, every_cell_passes


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_runs_alone_from_a_fresh_kernel_in_an_empty_folder(path, tmp_path, made_once):
    """What one has trained with ``session.run``, the next one loads; that saves minutes."""
    notebook = nbformat.read(path, as_version=4)
    if path in NOTEBOOKS:
        source = (CHECKS / f"{path.stem}.py").read_text("utf-8")
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    shared = "session.run(" in path.read_text("utf-8")
    runs_folder = made_once("runs", lambda folder: None) if shared else tmp_path / "runs"
    every_cell_passes(notebook, tmp_path / path.name, "smoke", runs_folder)


def test_a_chapter_runs_on_photographs_of_clothes(tmp_path):
    """What others have trained in $CSD_RUNS is not trained again."""
    (path,) = (path for path in NOTEBOOKS if path.stem == "02_first_task")
    notebook = nbformat.read(path, as_version=4)
    source = 'assert session.load_dataset().name == "fashion"; assert len(session.seeds) == 1'
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    runs_folder = tmp_path / "runs"
    for run in Path(os.environ.get("CSD_RUNS", runs_folder)).glob("fashion-*"):
        shutil.copytree(run, runs_folder / run.name)
    every_cell_passes(notebook, tmp_path / path.name, "clothes", runs_folder)
