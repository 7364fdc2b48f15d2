"""Run the fast tests and one notebook with the oldest and the newest packages that are allowed.

    python tools/versions.py                   # every set that has its Python here (make versions)
    python tools/versions.py lowest --keep     # one set; keep its environment

Each set gets an environment of its own (5 GB; needs a network), which is removed at the end.
`lowest` has exactly the lower bounds of pyproject.toml, `newest` whatever pip finds today, and the
others constraints.txt. A set without its Python is skipped, and the summary says so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.14", "3.13", "3.12", "3.11")
# The Python and the constraints of every set. None: the newest Python that is here, no constraints.
SETS = {
    "lowest": ("3.11", "lowest.txt"),
    "pinned-3.12": ("3.12", "constraints.txt"),
    "pinned-3.13": ("3.13", "constraints.txt"),
    "pinned-3.14": ("3.14", "constraints.txt"),
    "newest": (None, None),
}
# Without the tests that run all notebooks, build bundles or kill hundreds of processes.
FAST = (
    *("losses", "retrieval", "data", "model", "drift", "engine", "train", "ledger", "report"),
    *("plots", "checkers", "cli", "widgets", "house", "properties", "fuzz", "strangers"),
)
NOTEBOOK = "02"
SHOWN = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "pytest")


def lower_bounds() -> str:
    """Return pyproject.toml's lower bounds as the text of a constraints file.

    Of a package that is named twice (an extra needs a newer one), the higher bound counts.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lowest: dict[str, Version] = {}
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue  # an extra that includes another one
        bounds = [Version(bound.version) for bound in requirement.specifier]
        lowest[requirement.name] = max([*bounds, lowest.get(requirement.name, Version("0"))])
    return "".join(f"{name}=={version}\n" for name, version in lowest.items())


def find_python(version: str) -> str | None:
    """Return a program that is this Python, for example 3.12, or None.

    A pyenv shim exists also for versions that are not selected, so the program is asked. pyenv's
    own folders are searched, too.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), sys.executable]
    for program in [*found, *sorted(pyenv.glob(f"{version}.*/bin/python"))]:
        if program:
            ask = [program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            answer = subprocess.run(ask, capture_output=True, text=True)
            if answer.stdout.strip() == version:
                return str(program)
    return None


def run(command: list[str | Path], log: Path) -> tuple[bool, str, float]:
    """Run a command, add its output to a log; return if it succeeded, the output, the seconds."""
    started = time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # as in make test
    with log.open("a+") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        begin = file.tell()
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        file.seek(begin)
        return done.returncode == 0, file.read(), time.monotonic() - started


def installed(python: Path) -> str:
    """Return the versions of the packages that matter most, in one line."""
    code = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]))"
    answer = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True)
    return ", ".join(f"{n} {v}" for n, v in zip(SHOWN, answer.stdout.split(), strict=False))


def check(
    name: str, program: str, constraints: str | None, also: list[str], folder: Path
) -> tuple[bool, str]:
    """Make the environment of one set in a folder, run the checks; return the result in words."""
    log = folder.parent / f"{name}.log"
    log.unlink(missing_ok=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-e", ".[lab,test]", *also]
    if name == "lowest":
        (folder.parent / constraints).write_text(lower_bounds())
        install += ["-c", folder.parent / constraints]
    elif constraints:
        install += ["-c", ROOT / constraints]
    run([program, "-m", "venv", "--clear", folder], log)
    done, output, _ = run(install, log)
    if not done:
        return False, f"not installed, see {log}: {output.strip().splitlines()[-1:]}"
    files = [f"tests/test_{test}.py" for test in FAST]
    options = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--maxprocesses", "8"]
    options += ["-W", "default"]  # only those of the pinned versions are known, and fail a test
    passed, output, seconds = run([python, "-m", "pytest", *options, *files], log)
    ends = re.findall(r"^.*\d+ \w+.* in [\d.]+s.*$", output, flags=re.MULTILINE) or [""]
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)", ends[-1]))
    words = f"{installed(python)}: {counts or 'no test ran'} in {seconds:.0f} s"
    build = folder.parent / f"{name}-pages"
    command = [python, "tools/run_notebooks.py", NOTEBOOK, "--build", build]
    ran, _, seconds = run(command, log)
    words += f"; notebook {NOTEBOOK} {'ran' if ran else 'FAILED'} in {seconds:.0f} s"
    return passed and ran, words if passed and ran else f"{words}; see {log}"


def main() -> None:
    """Check the sets one after the other and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "versions")
    parser.add_argument("--also", action="append", default=[], help="require this, too: torch<2.13")
    parser.add_argument("--keep", action="store_true", help="do not remove the environments")
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    failed, skipped = [], []
    for name in arguments.sets or SETS:
        version, constraints = SETS[name]
        version = version or next(filter(find_python, PYTHONS), PYTHONS[-1])
        program = find_python(version)
        if program is None:
            skipped.append(name)
            print(f"{name}: SKIPPED, there is no python{version} here", flush=True)
            continue
        print(f"{name}: Python {version}, installing and testing ...", flush=True)
        try:
            good, words = check(name, program, constraints, arguments.also, folder / name)
        finally:
            if not arguments.keep:
                shutil.rmtree(folder / name, ignore_errors=True)
        failed += [] if good else [name]
        print(f"{name}: {'ok' if good else 'FAILED'}, {words}", flush=True)
    if skipped:
        print(f"NOT CHECKED, for want of their Python: {', '.join(skipped)}", file=sys.stderr)
    if failed or len(skipped) == len(arguments.sets or SETS):
        sys.exit(f"error: {', '.join(failed) or 'nothing was checked'}")


if __name__ == "__main__":
    main()
