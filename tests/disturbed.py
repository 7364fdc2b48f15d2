"""What the processes do that tests kill, starve and let wait for each other.

A module of its own, because every one of them imports it.
"""

import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO

import torch
from typed import csd

from csd_lib import files, fingerprint
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment

SETTINGS = dict(tasks=2, epochs=2)


def train_here(folder):
    torch.set_num_threads(1)  # sums are added in another order with more
    return run_experiment(TrainConfig(**SETTINGS), folder=folder, progress=False)


def train_and_copy(folder, copies):
    """Train, and copy the folder right before every change of it: what a kill there would leave."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if folder.exists():
                shutil.copytree(folder, copies / str(seen))

    sys.addaudithook(watch)
    train_here(folder)


def train_in_each(folders):
    measured, found = fingerprint._measured, []

    def once(*tiny):  # the same code and settings: it is the same each time
        found[:] = found or [measured(*tiny)]
        return [*found[0]]

    fingerprint._measured = once
    for folder in folders:
        train_here(folder)


def command(connection, arguments, limit=None):
    """Run the command line; with a limit no file may grow beyond it, as on a full disk."""
    torch.set_num_threads(1)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = csd(*map(str, arguments))
    if connection:
        connection.send((done.returncode, done.stderr))
    elif done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr}")


def train_and_say(connection, folder):
    printed = StringIO()
    with redirect_stdout(printed):
        train_here(folder)
    connection.send(printed.getvalue())


def hold(folder, inside, leave, seconds=60):
    with files.only_one(folder, "sleeping"):
        inside.set()
        leave.wait(seconds)
