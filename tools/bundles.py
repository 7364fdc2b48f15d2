"""Pack what students get, and what instructors get, each into one zip.

    python tools/bundles.py            # what `make bundles` does: into build/
    python tools/bundles.py FOLDER

Both are made from files that git tracks, and from what is generated here; nothing else that lies
in the folder can slip in. The same files give the same zip, byte for byte.

The student's zip runs every notebook and exercise, `make run` and `make lab`. It has no solved
notebook and nothing of the instructors; the solutions folded away under each exercise stay, on
purpose. Left out of both: tests (they need the repository) and the recorded networks, which no
notebook reads.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import nbformat
from answers import SOLVED, answer_key, quizzes, solved_notebooks
from exercises import student_copy
from slides import SOURCE, page

from csd_lib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
# Patterns as in Path.match: a star stands for any name, but not for a folder's slash.
STUDENT = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff"),
    *("Makefile", "pyproject.toml"),
    *("constraints.txt", "environment.yml", "csd_lib/py.typed"),
    *("Dockerfile", ".dockerignore", ".gitignore", "csd_lib/*.py", "csd_lib/*/*.py"),
    *("csd_lib/*/*/*.py", "csd_lib/embedded/*", "docs/*.png", "docs/*.md", "data/README.md"),
    *("data/results/*.npz", "data/results/*/*.jsonl"),
    *("data/results/*/*/results.json", "data/results/*/*/features.npz"),
    *("notebooks/*.ipynb", "notebooks/ruff.toml", "notebooks/exercises/*.ipynb"),
    *("notebooks/PAPER_TO_CODE.md", "notebooks/GLOSSARY.md", "notebooks/RELATED_WORK.md"),
    *("notebooks/CAPSTONE.md", "benchmarks/*", "tools/run_notebooks.py"),
)
INSTRUCTOR = (
    *STUDENT,
    *("notebooks/solutions/*.ipynb", "notebooks/INSTRUCTORS.md", "notebooks/slides.md"),
    *("tools/exercises.py", "tools/answers.py", "tools/slides.py"),
)
TOP = "csd-kit"  # the folder that unpacking makes
SECRET = b"BEGIN SOLUTION"  # stands in the solved notebooks only


def tracked_files() -> list[str]:
    """Return the paths of all files that git tracks."""
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {ROOT} is not a git repository; bundles are made from what git tracks")
    return [name for name in done.stdout.split("\0") if name]


def chosen(patterns: tuple[str, ...], tracked: list[str]) -> dict[str, bytes]:
    """Read the tracked files that fit one of the patterns."""
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in tracked):
            sys.exit(f"error: git tracks no file {pattern}: git add it first")
    names = [name for name in tracked if any(_fits(name, p) for p in patterns)]
    return {name: (ROOT / name).read_bytes() for name in names}


def _fits(name: str, pattern: str) -> bool:
    return PurePosixPath("/" + name).match("/" + pattern)


def generated() -> dict[str, bytes]:
    """Return what only instructors get and git does not hold: slides, answers, quizzes, graded."""
    graded = {
        f"notebooks/graded/{path.name}": nbformat.writes(student_copy(notebook, graded=True)) + "\n"
        for path, notebook in zip(sorted(SOLVED.glob("*.ipynb")), solved_notebooks(), strict=True)
    }
    texts = {
        "slides.html": page(SOURCE.read_text("utf-8")),
        "ANSWERS.md": answer_key(),
        "quizzes.gift": quizzes(),
        **graded,
    }
    return {name: text.encode() for name, text in texts.items()}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Write a zip in which nothing depends on when, where or by whom it was made."""

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w") as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(f"{TOP}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, files[name])

    write_atomically(path, write)
    print(f"{path}: {len(files)} files, {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Write both zips and say how large they are."""
    folder = Path(*sys.argv[1:] or [ROOT / "build"]).resolve()
    tracked = tracked_files()
    student = chosen(STUDENT, tracked)
    leaks = [name for name, content in student.items() if SECRET in content]
    if leaks:
        sys.exit(f"error: {', '.join(leaks)} would give a solution to the students")
    try:
        instructor = chosen(INSTRUCTOR, tracked) | generated()
    except ValueError as error:
        sys.exit(f"error: {SOURCE.name}, {error}")
    folder.mkdir(parents=True, exist_ok=True)
    write_zip(folder / "csd-kit-student.zip", student)
    write_zip(folder / "csd-kit-instructor.zip", instructor)


if __name__ == "__main__":
    main()
