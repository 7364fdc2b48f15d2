"""Every notebook as on Google Colab: its older packages, and csd_lib only from the wheel.

    make colab

What a chapter says about its own outputs is checked here, too, as in tests/chapters.py.

Each process of tests makes a small environment under build/, with packages from PyPI, laid over the
one that runs the tests. Not part of the ordinary tests, which need no network: pytest collects this
file only by name.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RUNS = ROOT / "build" / "colab-runs"
NOTEBOOKS = [p for f in ("", "solutions") for p in sorted((ROOT / "notebooks" / f).glob("*.ipynb"))]

# Run in the notebook's own kernel, before and after its cells.
WITHOUT_CSD_LIB = "import importlib.util\nassert importlib.util.find_spec('csd_lib') is None"
AS_ON_COLAB = """
import importlib, sys
packages = ("IPython", "ipykernel", "ipywidgets", "numpy", "matplotlib")
found = [importlib.import_module(name).__version__ for name in packages]
assert found == ["7.34.0", "6.17.1", "7.7.1", "2.1.3", "3.10.0"], found
import csd_lib
assert csd_lib.__file__.startswith(sys.prefix), csd_lib.__file__
"""


@dataclass(frozen=True)
class Runtime:
    """An environment with Colab's packages, and behind them those of this one but no csd_lib."""

    folder: Path

    @property
    def site(self):
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))

    @property
    def jupyter(self):
        return self.folder / "share" / "jupyter"

    def make(self):
        venv.create(self.folder, clear=True, symlinks=True, with_pip=True)
        python = str(self.folder / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pins = HERE / "requirements.txt"
        subprocess.run([*install, "--no-compile", "--no-deps", "-r", pins], check=True)
        behind = self.folder / "behind"
        behind.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "csd_lib" not in entry.name and entry.suffix != ".pth":
                (behind / entry.name).symlink_to(entry)
        loaded = f"{behind}\n{HERE / 'stand_in'}\nimport google.colab\n"
        (self.site / "colab.pth").write_text(loaded)
        command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": command, "display_name": "Colab", "language": "python"}
        (self.jupyter / "kernels" / "colab").mkdir(parents=True)
        (self.jupyter / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))

    def remove_csd_lib(self):
        for path in self.site.glob("csd_lib*"):
            shutil.rmtree(path)

    def files(self):
        """Every file of the environment, so that a change of any of them is seen."""
        files = (p for p in self.site.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(self.site): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    def run(self, notebook, folder):
        """Run a notebook in a kernel of this runtime and return what nbval says.

        nbval sees what other runners miss, such as errors inside widgets. What one notebook has
        trained, the next one loads, as from Drive; that saves minutes.
        """
        nbformat.write(notebook, folder / "notebook.ipynb")
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CSD_RESULTS")}
        settings = {
            "JUPYTER_PATH": str(self.jupyter),
            "OMP_NUM_THREADS": "1",
            "CSD_MODE": "smoke",
            "CSD_RUNS": str(RUNS),
            "CSD_FILES": str(ROOT / "data" / "results"),
        }
        options = ["--nbval-lax", "--nbval-kernel-name=colab", "--nbval-cell-timeout=300"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "notebook.ipynb"],
            cwd=folder,
            env={**inherited, **settings},
            capture_output=True,
            text=True,
        ).stdout


@pytest.fixture(scope="session")
def made(worker_id):
    """A runtime for each process of tests."""
    runtime = Runtime(ROOT / "build" / f"colab-env-{worker_id}")
    runtime.make()
    return runtime


@pytest.fixture
def runtime(made):
    made.remove_csd_lib()
    return made


def with_install_cell(cells, wheel):
    """What a reader runs after a click on the badge, in a runtime without csd_lib."""
    source = f"{WITHOUT_CSD_LIB}\n%pip install -q --no-deps {wheel}"
    return new_notebook(cells=[new_code_cell(source), *cells])


def assert_all_cells_passed(notebook, printed):
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    summary = printed.strip().splitlines()[-1]
    assert re.search(rf"= {cells} passed(, \d+ warnings?)? in ", summary), printed[-6000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_runs_and_changes_nothing_but_csd_lib(path, runtime, wheel, tmp_path):
    """A notebook that lies alone in a folder, and what it says about its outputs."""
    cells = nbformat.read(path, as_version=4).cells
    if path.parent.name == "notebooks":
        said = HERE.parent / "notebook_checks" / f"{path.stem}.py"
        cells.append(new_code_cell(said.read_text("utf-8")))
    notebook = with_install_cell([*cells, new_code_cell(AS_ON_COLAB)], wheel)
    before = runtime.files()
    assert_all_cells_passed(notebook, runtime.run(notebook, tmp_path))
    changed = {name.parts[0] for name, _ in before.items() ^ runtime.files().items()}
    assert changed == {"csd_lib", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_a_second_session_installs_nothing(runtime, wheel, tmp_path):
    """With the set-up cell, which is the same in every notebook; the first one installs it."""
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    (set_up,) = (c for c in cells if c.source.startswith("# Run this first"))
    first = with_install_cell([], wheel)
    assert_all_cells_passed(first, runtime.run(first, tmp_path))
    before = runtime.files()
    second = new_notebook(cells=[set_up, new_code_cell(AS_ON_COLAB)])
    assert_all_cells_passed(second, runtime.run(second, tmp_path))
    assert runtime.files() == before


def test_an_error_inside_a_widget_is_seen(runtime, tmp_path):
    """Or the tests above would prove little."""
    widget = "from ipywidgets import interact\ninteract(lambda x: 1 / x, x=[0, 1]);"
    printed = runtime.run(new_notebook(cells=[new_code_cell(widget)]), tmp_path)
    assert "ZeroDivisionError" in printed


def test_without_a_wheel_the_notebook_stops_at_its_setup_cell(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(runtime.jupyter))
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    where = {"metadata": {"path": tmp_path}}
    client = NotebookClient(notebook, kernel_name="colab", resources=where)
    with pytest.raises(CellExecutionError, match="No module named 'csd_lib'"):
        client.execute()
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert [error.ename for error in errors] == ["ModuleNotFoundError"]
    assert not list(runtime.site.glob("csd_lib*"))
