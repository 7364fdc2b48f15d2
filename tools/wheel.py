"""Build the wheel that Google Colab installs: csd_lib, its images, the recorded results: 5 MB.

    python tools/wheel.py            # into build/ (make wheel)
    python tools/wheel.py FOLDER

It is attached to the release of its version, or handed out as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from csd_lib import __version__

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel into a folder and return its path; this needs no network.

    It is built from a clean copy: setuptools would also pack what an older build has left behind.
    """
    with TemporaryDirectory() as name:
        copy = Path(name)
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, copy)
        for tree in ("csd_lib", "data/results"):
            shutil.copytree(ROOT / tree, copy / tree, ignore=shutil.ignore_patterns("__pycache__"))
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder]
        subprocess.run([*pip, *options, copy], check=True)
    return folder / f"csd_lib-{__version__}-py3-none-any.whl"


if __name__ == "__main__":
    print(build_wheel(Path(*sys.argv[1:] or [ROOT / "build"]).resolve()))
