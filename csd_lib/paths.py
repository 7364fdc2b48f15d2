"""Where things are: this checkout, its data, runs and results, and the variables that move them.

All ``CSD_*`` environment variables are listed here and read here.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

VARIABLES = {
    "CSD_MODE": "smoke, clothes, class or paper: what the notebooks run; default: by the GPU",
    "CSD_RUNS": "folder that keeps runs; default: runs/",
    "CSD_RESULTS": "the only folder of records, read and written; default: data/results/",
    "CSD_DATA": "folder with cifar100.npz or its archive, or one of these files; default: data/",
    "CSD_MIRRORS": "addresses or folders to fetch CIFAR-100's archive from, with spaces between",
    "CSD_FILES": "folder, or address of one, that is like data/results/: recorded models, features",
    "CSD_DOWNLOAD_MINUTES": "how long a download may take before it gives up; default: 15",
    "CSD_WIDGETS": "0 leaves the controls out of the notebooks; default: 1",
    "CSD_WHEEL": "path or address of the wheel that a notebook installs on Google Colab",
    "CSD_KILLS": "how often the test of kills kills a run; default: 15",
    "CSD_EXAMPLES": "how many examples the property tests look at; default: 100",
}


def variable(name: str) -> str:
    """Return the value of one of the ``VARIABLES``; an empty one counts as not set."""
    assert name in VARIABLES, f"{name} is not in the list"
    return os.environ.get(name, "").strip()


def unknown_variables() -> list[str]:
    """Return one line for each ``CSD_*`` variable that is set but has no meaning: a typo."""
    lines = []
    for name in sorted(name for name in os.environ if name.startswith("CSD_")):
        if name not in VARIABLES:
            meant = difflib.get_close_matches(name, VARIABLES, n=1)
            lines.append(f"{name} has no meaning" + (f": is it {meant[0]}?" if meant else ""))
    return lines


def home() -> Path:
    """The checkout that this file is in or, if csd_lib is installed, the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def visible_devices() -> str:
    """Which GPUs CUDA may use: ``$CUDA_VISIBLE_DEVICES``, or an empty text."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def pass_on_imports() -> None:
    """Let processes that this one starts find modules beside its script, as it does itself."""
    folders = [os.path.abspath(sys.path[0]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))


def data_folder() -> Path:
    """Where data sets are looked for: ``data/``."""
    return home() / "data"


def runs_folder() -> Path:
    """Where runs are kept: ``$CSD_RUNS``, else ``runs/``."""
    return Path(variable("CSD_RUNS") or home() / "runs")


def results_folder() -> Path:
    """Where records are written: ``$CSD_RESULTS``, else ``data/results/``."""
    return Path(variable("CSD_RESULTS") or data_folder() / "results")


def cache_folder() -> Path:
    """Where the kit keeps what it can compute again: ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "csd-lib")


def try_writing(folder: Path) -> None:
    """Raise OSError if no file can be made in a folder or, if it is missing, where it would be."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    probe = there / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink(missing_ok=True)  # another thread may have removed it
