"""Seed known defects, one at a time, and see whether the test meant for each turns red.

The list is tests/mutants.toml: what would be wrong, the lines that make it so, and the test that
must notice. It happens in copies of the files that git knows. A defect counts as caught only if a
test fails on it, not if its file cannot be imported, or tests be collected, or a fixture be made.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from multiprocessing import connection, get_context
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname
from xml.etree import ElementTree

import pytest

LIST = Path(__file__).resolve().parent.parent / "tests" / "mutants.toml"
# Slow to import and the same for all defects: imported once, before the processes are forked.
SLOW = ["torch._dynamo", "torchvision", "pytorch_metric_learning.losses", "sklearn.datasets"]
SLOW += ["seaborn", "IPython", "ipywidgets", "nbformat", "jupyter_client"]


@dataclass(frozen=True)
class Defect:
    """One entry of the list."""

    name: str
    what: str
    file: str
    before: str
    after: str
    test: list[str]


def copy_files(root: Path, folder: Path) -> Path:
    """Copy all files that git tracks, and new ones that it does not ignore, into a folder."""
    known = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(known, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # git also lists what was deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder.resolve()


def installed_from() -> Path | None:
    """Return the folder whose csd_lib this environment has, if it is an editable one."""
    try:
        origin = json.loads(distribution("csd-lib").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    is_editable = origin.get("dir_info", {}).get("editable")
    return Path(url2pathname(urlsplit(origin["url"]).path)).resolve() if is_editable else None


def run_pytest(folder: Path, defect: Defect) -> None:
    """Run a defect's test in a copy, in a process of its own; its exit code is pytest's."""
    log = os.open(folder / "mutants.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    # Ends the process, should the defect make it run for ever; all tests take longer than one.
    signal.alarm(600 + 10 * len(defect.test))
    for name in [name for name in os.environ if name.startswith("CSD_")]:
        del os.environ[name]
    # Without .pyc files: one of a defect of the same second and size would be taken for the next.
    os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    module = defect.file[:-3].replace("/", ".") if "csd_lib/" in defect.file else "csd_lib"
    origin = Path(importlib.import_module(module).__file__)
    assert origin.is_relative_to(folder), f"{origin} is tested, not the copy in {folder}"
    sys.exit(pytest.main(["-qx", "-pno:cacheprovider", "--junitxml=mutants.xml", *defect.test]))


class Trial:
    """A defect seeded in a copy, and its tests running there."""

    def __init__(self, folder: Path, defect: Defect):
        self.folder, self.defect, self.started = folder, defect, time.monotonic()
        self.path, self.report = folder / defect.file, folder / "mutants.xml"
        self.original = self.path.read_text("utf-8")
        self.path.write_text(self.original.replace(defect.before, defect.after), "utf-8")
        self.report.unlink(missing_ok=True)
        self.process = get_context("fork").Process(target=run_pytest, args=(folder, defect))
        self.process.start()

    def outcome(self) -> tuple[str, str]:
        """Wait for the end, undo the defect, and return what came out and what pytest said."""
        self.process.join()
        self.path.write_text(self.original, "utf-8")
        output = (self.folder / "mutants.log").read_text("utf-8", errors="replace").strip()
        if not self.report.exists():
            ended = f"ended after {time.monotonic() - self.started:.0f} s without a report"
            return "BROKEN", f"{output}\n{ended}, exit code {self.process.exitcode}"
        counts = ElementTree.parse(self.report).getroot().find("testsuite").attrib
        if self.process.exitcode == 0 and counts["skipped"] == "0":
            return "SURVIVED", output
        failed = self.process.exitcode == 1 and counts["failures"] != "0"
        return "caught" if failed else "BROKEN", output

    def is_caught(self) -> bool:
        """Wait for the end, print what came out, and say whether the defect was caught."""
        outcome, output = self.outcome()
        defect, seconds = self.defect, f"{time.monotonic() - self.started:.1f} s"
        lines = [f"{outcome:8}  {defect.name:40}  {seconds:>7}  {' '.join(defect.test)}"]
        if outcome != "caught":
            lines += [f"{'':10}{defect.what} ({defect.file})", *output.splitlines()[-3:]]
        print("\n".join(lines), flush=True)
        return outcome == "caught"


def main() -> int:
    """Try the defects that are asked for; 1 if any is not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names or files: only those defects")
    parser.add_argument("--list", type=Path, default=LIST, help="default: tests/mutants.toml")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (default 1)")
    args = parser.parse_args()
    root, entries = args.list.resolve().parent.parent, tomllib.loads(args.list.read_text("utf-8"))
    if (place := installed_from()) not in (None, root):  # a process could import that one
        parser.error(f"this environment's csd_lib is that of {place}: use the one of {root}")
    defects = [Defect(name, **entry) for name, entry in entries.items()]
    if args.names:
        defects = [d for d in defects if any(n in f"{d.name} {d.file}" for n in args.names)]
    for defect in defects or parser.error("no defect of that name"):
        count = (root / defect.file).read_text("utf-8").count(defect.before)
        if count != 1:
            parser.error(f"{defect.name}: `before` is {count} times in {defect.file}, not once")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in SLOW:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        free = [copy_files(root, Path(scratch) / str(n)) for n in range(max(1, args.jobs))]
        tests = list(dict.fromkeys(test for defect in defects for test in defect.test))
        outcome, output = Trial(free[0], Defect("", "", defects[0].file, "", "", tests)).outcome()
        if outcome != "SURVIVED":
            print(f"{output}\nWithout any defect these tests must pass, and none be skipped.")
            return 1
        waiting, running, caught = defects[::-1], {}, 0
        while waiting or running:
            while waiting and free:
                trial = Trial(free.pop(), waiting.pop())
                running[trial.process.sentinel] = trial
            for trial in map(running.pop, connection.wait(running)):
                caught += trial.is_caught()
                free.append(trial.folder)
    print(f"{caught} of {len(defects)} defects caught")
    return 0 if caught == len(defects) else 1


if __name__ == "__main__":
    sys.exit(main())
